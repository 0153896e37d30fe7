"""The register tile, M rows times the columns of one panel, and the loops that take all rows through all panels.

Each sum is a chain of fused multiply-adds that starts from a given value and takes k = 0, 1, 2 … in order. The promise
"the same bits, whole or split, alone or batched" rests on that order: no tile shape may split k into partial sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.native.ir import Function, Value, Vectors
from service.engine.native.panels import WEIGHT_BYTES, Panels

UNROLL = 4  # values of k that one round of the inner loop takes
CHAINS = 8  # independent sums that keep the multiply-add units busy: 2 units with 4 cycles of latency


@dataclass(frozen=True)
class TileShape:
    """M rows by `abreast` panels of `vectors` vectors each."""

    rows: int
    vectors: int
    abreast: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}x{self.abreast}"

    def panels(self, f: Function, panels: Panels) -> list[Value]:
        """The addresses of the tile's panels, of which the first is `%panel`."""
        return [f.at("%panel", number * panels.panel_bytes(self.vectors)) for number in range(self.abreast)]


class Product:
    """The loops over `rows` rows and the panels at `%panels`, emitted into `f` by `emit`.

    Panel by panel, and in a panel tile by tile, so that a panel comes into the nearest cache once for all rows. A
    single row takes several panels abreast: with one panel it would have too few sums under way, and each multiply-add
    would wait for the one before it (AVX2, one row of H = 256: 1.29 ms against 0.82).

    `tile(shape)` is the function for a shape. It is called with its panel and then `arguments(row, column)`.
    """

    def __init__(self, f: Function, panels: Panels, rows: Value, tile: Callable[[TileShape], Function]) -> None:
        self._f, self._panels, self._rows, self._tile = f, panels, rows, tile
        self._abreast = min(panels.full, -(-CHAINS // panels.per_panel))
        most = panels.rows
        # At least 1, so that the division is sound; a tile of no rows matches no height.
        self._count = f.most(f.div(f.add(rows, most - 1), most), 1)
        self._low = f.div(rows, self._count)
        self._taller = f.sub(rows, f.mul(self._low, self._count))

    def emit(self, arguments: Callable[[Value | int, Value | int], list[Value]]) -> None:
        f = self._f

        def one_row(panel: Value, column: Value | int, shape: TileShape) -> None:
            f.call(self._tile(shape), [panel, *arguments(0, column)])

        def all_rows(panel: Value, column: Value | int, shape: TileShape) -> None:
            """Rows in the fewest tiles of at most `Panels.rows` rows, as equal as can be."""
            first = f.variable("i64", 0)
            with f.loop(self._count) as i:
                height = f.add(self._low, f.select(f.compare("slt", i, self._taller), 1, 0))
                row = first.get()
                # Two rows or more in equal tiles of at most 3 rows or more never leave a tile of one row.
                for rows in range(1 if self._panels.rows < 3 else 2, self._panels.rows + 1):
                    with f.when(f.compare("eq", height, rows)):
                        f.call(self._tile(TileShape(rows, shape.vectors)), [panel, *arguments(row, column)])
                first.set(f.add(row, height))

        with f.when(f.compare("eq", self._rows, 1)):
            self._over_panels(self._abreast, one_row)
        with f.when(f.compare("ne", self._rows, 1)):
            self._over_panels(1, all_rows)

    def _over_panels(self, abreast: int, body: Callable[[Value, Value | int, TileShape], None]) -> None:
        """Emit `body(address, first column, shape for one row)` for panels side by side, then for what is left."""
        f, panels = self._f, self._panels
        each, size = panels.per_panel, panels.panel_bytes(panels.per_panel)
        groups = panels.full // abreast
        with f.loop(groups) as p:
            address = f.at("%panels", f.mul(p, abreast * size))
            body(address, f.mul(p, abreast * each * panels.width), TileShape(1, each, abreast))
        done = groups * abreast
        for vectors, count, before in ((each, panels.full - done, done), (panels.rest, 1, panels.full)):
            if vectors and count:
                body(f.at("%panels", before * size), before * each * panels.width, TileShape(1, vectors, count))


def accumulate(
    v: Vectors, panels: Panels, weights: Sequence[Value], rows: Sequence[Value], starts: Sequence[Sequence[Value]]
) -> list[list[Value]]:
    """Emit sums[m][j] = starts[m][j] + Σ_k rows[m][k] · weights[k][j], k in order.

    `weights` are the addresses of panels side by side, equally wide; `rows` are M addresses of K floats.
    """
    f = v.function
    each = len(starts[0]) // len(weights)
    first = [f.at(panel, panels.bias_bytes(each)) for panel in weights]
    sums = [[f.variable(v.type, start) for start in row] for row in starts]
    read = v.load if panels.weights == "f32" else v.load_bf16
    size = WEIGHT_BYTES[panels.weights] * v.width

    def add(k: Value | int, count: int) -> None:
        across = [f.at(row, f.mul(k, 4)) for row in rows]
        down = [f.at(panel, f.mul(k, panels.row_bytes(each))) for panel in first]
        for step in range(count):
            columns = [read(panel, step * panels.row_bytes(each) + j * size) for panel in down for j in range(each)]
            for address, row in zip(across, sums, strict=True):
                x = v.broadcast(address, 4 * step)
                for total, column in zip(row, columns, strict=True):
                    total.set(v.fma(x, column, total.get()))

    whole = panels.depth - panels.depth % UNROLL
    with f.loop(whole, UNROLL) as k:
        add(k, UNROLL)
    add(whole, panels.depth - whole)
    return [[total.get() for total in row] for row in sums]
