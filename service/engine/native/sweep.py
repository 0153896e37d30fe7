"""Takes all rows through all panels of a matrix: the loops around the tiles.

Panel by panel, and in a panel tile by tile, so that a panel comes into the nearest cache once for all the rows. A
single row takes several panels abreast: with one panel it would have too few sums under way, and each multiply-add
would wait for the one before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.native.ir import Function, Value
from service.engine.native.tile import Panels

Arguments = Callable[[Value | int, Value | int], list[Value]]
"""What a tile is called with after its panel, for its first row and column."""

CHAINS = 8
"""Independent sums that keep the multiply-add units busy: 2 units with 4 cycles of latency."""


@dataclass(frozen=True)
class TileShape:
    """M rows by `abreast` panels of `vectors` vectors each."""

    rows: int
    vectors: int
    abreast: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}x{self.abreast}"


class Sweep:
    """The loops over `rows` rows and the panels at `base`, emitted into `main` as often as `emit` is called.

    A tile's first parameter is the address of its (first) panel. `share`: which part of the panels, and of how many.
    """

    def __init__(
        self,
        main: Function,
        panels: Panels,
        rows: Value,
        tile: "Tiles",
        base: Value = "%panels",
        share: tuple[Value, Value] | None = None,
    ) -> None:
        self._main, self._panels, self._rows, self._base = main, panels, rows, base
        self._tile = tile
        self._share = share
        self._abreast = min(panels.full, -(-CHAINS // panels.per_panel))
        f, most = main, panels.rows
        # Never 0 tiles, so that the division is sound; a tile of no rows matches no height.
        self._tiles = f.most(f.div(f.add(rows, most - 1), most), 1)
        self._low = f.div(rows, self._tiles)
        self._taller = f.sub(rows, f.mul(self._low, self._tiles))

    def emit(self, arguments: Arguments) -> None:
        """Emit the sweep; `arguments(row, column)` are a tile's after the panel, for its first row and column."""
        f = self._main
        one = f.compare("eq", self._rows, 1)
        with f.when(one):
            self.one_row(arguments)
        with f.when(f.value(f"xor i1 {one}, true")):
            self._over(1, lambda panel, column, shape: self._many_rows(panel, column, shape.vectors, arguments))

    def one_row(self, arguments: Arguments) -> None:
        """Emit the sweep for one row only."""

        def call(panel: Value, column: Value | int, shape: TileShape) -> None:
            self._main.call(self._tile(shape), [panel, *arguments(0, column)])

        self._over(self._abreast, call)

    def _many_rows(self, panel: Value, column: Value | int, vectors: int, arguments: Arguments) -> None:
        """Rows in the fewest tiles of at most `Panels.rows` rows, as equal as can be."""
        f = self._main
        first = f.variable("i64", 0)
        with f.loop(self._tiles) as i:
            height = f.add(self._low, f.select(f.compare("slt", i, self._taller), 1, 0))
            row = first.get()
            # Equally tall tiles of at most 3 rows or more are never of one row, when there are two rows to deal out.
            for rows in range(1 if self._panels.rows < 3 else 2, self._panels.rows + 1):
                with f.when(f.compare("eq", height, rows)):
                    f.call(self._tile(TileShape(rows, vectors)), [panel, *arguments(row, column)])
            first.set(f.add(row, height))

    def _over(self, abreast: int, body: Callable[[Value, Value | int, TileShape], None]) -> None:
        """Emit `body(address, first column, shape for one row)` for panels side by side, then for what is left."""
        f, panels = self._main, self._panels
        each, size = panels.per_panel, panels.panel_bytes(panels.per_panel)
        groups = panels.full // abreast
        narrow = [
            (vectors, count, done)
            for vectors, count, done in (
                (each, panels.full - groups * abreast, groups * abreast),
                (panels.rest, 1, panels.full),
            )
            if vectors and count
        ]
        first, end = self._part(groups + len(narrow))
        with f.loop(f.least(groups, end) if self._share else groups, first=first) as p:
            address = f.at(self._base, f.mul(p, abreast * size))
            body(address, f.mul(p, abreast * each * panels.width), TileShape(1, each, abreast))
        for number, (vectors, count, done) in enumerate(narrow, start=groups):
            arguments = (f.at(self._base, done * size), done * each * panels.width, TileShape(1, vectors, count))
            if self._share:
                inside = f.value(f"and i1 {f.compare('sge', number, first)}, {f.compare('slt', number, end)}")
                with f.when(inside):
                    body(*arguments)
            else:
                body(*arguments)

    def _part(self, items: int) -> tuple[Value | int, Value | int]:
        """First and end of this share's of `items`."""
        if not self._share:
            return 0, items
        f, (part, parts) = self._main, self._share
        return f.div(f.mul(part, items), parts), f.div(f.mul(f.add(part, 1), items), parts)


class Tiles:
    """The tile functions of a matrix, written when first asked for."""

    def __init__(self, write: Callable[[TileShape], Function]) -> None:
        self._write = write
        self._functions: dict[TileShape, Function] = {}

    @property
    def functions(self) -> list[Function]:
        """The tiles that were needed."""
        return list(self._functions.values())

    def __call__(self, shape: TileShape) -> Function:
        """The function for a shape."""
        if shape not in self._functions:
            self._functions[shape] = self._write(shape)
        return self._functions[shape]
