"""The register tile: M rows times the columns of one panel, summed over k in one order for every M.

    rows × k          panel: k × columns           sums: rows × columns, in registers
    x0 ────►      ┌ v0 ┬ v1 ┬ v2 ┬ v3 ┐
    x1 ────►   k  │    │    │    │    │      sums[m][j] = fma(broadcast(x_m[k]), v_j[k], sums[m][j])
    x2 ────►   ↓  └────┴────┴────┴────┘

Each sum is a chain of fused multiply-adds that starts from a given value and takes k = 0, 1, 2 … in order. That order
is the promise behind "the same bits, whole or split, alone or batched": no tile shape may split k into partial sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.engine.native.ir import Value
from service.engine.native.vectors import Vectors
from service.spec import WeightsDtype

UNROLL = 4
"""Values of k that one turn of the inner loop takes."""

WEIGHT_BYTES: dict[WeightsDtype, int] = {"f32": 4, "bf16": 2}


@dataclass(frozen=True)
class Panels:
    """How the columns of a weight matrix are cut into panels, and rows into tiles.

    - depth: K, the length of the sums
    - vectors: columns in all, counted in vectors of `width`
    - per_panel: vectors of a full panel; the last panel may be narrower
    - rows: M of the tallest tile
    """

    depth: int
    vectors: int
    per_panel: int
    width: int
    rows: int
    weights: WeightsDtype

    @property
    def columns(self) -> int:
        """Columns with their padding."""
        return self.vectors * self.width

    @property
    def full(self) -> int:
        """Number of full panels."""
        return self.vectors // self.per_panel

    @property
    def rest(self) -> int:
        """Vectors of the last, narrower panel, or 0."""
        return self.vectors % self.per_panel

    def bias_bytes(self, vectors: int) -> int:
        """Bytes of a panel's first row, the float32 bias, ahead of its weights."""
        return 4 * self.width * vectors

    def panel_bytes(self, vectors: int) -> int:
        """Bytes of a packed panel that is `vectors` wide."""
        return self.bias_bytes(vectors) + self.depth * self.row_bytes(vectors)

    def row_bytes(self, vectors: int) -> int:
        """Bytes of one k of a panel."""
        return WEIGHT_BYTES[self.weights] * self.width * vectors

    def __iter__(self) -> Iterator[int]:
        """The width of each panel in vectors, in order."""
        return iter([self.per_panel] * self.full + [self.rest] * bool(self.rest))


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

    def turn(k: Value | int, count: int) -> None:
        across = [f.at(row, f.mul(k, 4)) for row in rows]
        down = [f.at(panel, f.mul(k, panels.row_bytes(each))) for panel in first]
        for step in range(count):
            columns = [read(panel, step * panels.row_bytes(each) + j * size) for panel in down for j in range(each)]
            for address, row in zip(across, sums, strict=True):
                x = v.broadcast(address, 4 * step)
                for total, column in zip(row, columns, strict=True):
                    total.set(v.fma(x, column, total.get()))

    whole = panels.depth - panels.depth % UNROLL
    if whole:
        with f.loop(whole, UNROLL) as k:
            turn(k, UNROLL)
    if panels.depth > whole:
        turn(whole, panels.depth - whole)
    return [[total.get() for total in row] for row in sums]
