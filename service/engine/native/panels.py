"""The layout of weights in memory: panel after panel, each its bias and then its columns, k by k.

The inner loop reads a panel from front to back, once. docs/native-engine.md draws it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Floats, Integers
from service.spec import WeightsDtype

CACHE_LINE = 64
WEIGHT_BYTES: dict[WeightsDtype, int] = {"f32": 4, "bf16": 2}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Panels:
    """How the columns of a weight matrix are cut into panels, and rows into tiles."""

    depth: int  # K, the length of the sums
    vectors: int  # columns in all, counted in vectors of `width`
    per_panel: int  # vectors of a full panel; the last panel may be narrower
    width: int
    rows: int  # M of the tallest tile
    weights: WeightsDtype

    @property
    def columns(self) -> int:  # with their padding
        return self.vectors * self.width

    @property
    def full(self) -> int:
        return self.vectors // self.per_panel

    @property
    def rest(self) -> int:  # vectors of the last, narrower panel, or 0
        return self.vectors % self.per_panel

    def bias_bytes(self, vectors: int) -> int:
        return 4 * self.width * vectors

    def row_bytes(self, vectors: int) -> int:
        return WEIGHT_BYTES[self.weights] * self.width * vectors

    def panel_bytes(self, vectors: int) -> int:
        return self.bias_bytes(vectors) + self.depth * self.row_bytes(vectors)

    def __iter__(self) -> Iterator[int]:
        """The width of each panel in vectors."""
        return iter([self.per_panel] * self.full + [self.rest] * bool(self.rest))

    def pack(self, matrix: Floats, bias: Floats, order: Integers) -> Bytes:
        """Lay out W `matrix` (rows, K) and `bias` (rows): column j is row order[j], or zeros for -1.

        `order` has at most `columns` entries; columns beyond it are zeros. The result is aligned to a cache line.
        """
        order = np.concatenate([order, np.full(self.columns - len(order), -1)])
        out = aligned(sum(self.panel_bytes(vectors) for vectors in self))
        place = first = 0
        for vectors in self:
            chosen = order[first : first + vectors * self.width]
            size = self.bias_bytes(vectors)
            out[place : place + size].view(np.float32)[:] = np.where(chosen < 0, np.float32(0), bias[chosen])
            body = out[place + size : place + self.panel_bytes(vectors)]
            columns = np.where(chosen[:, None] < 0, np.float32(0), matrix[chosen]).T
            if self.weights == "bf16":
                body.view(np.uint16).reshape(self.depth, -1)[:] = bf16_bits(columns)
            else:
                body.view(np.float32).reshape(self.depth, -1)[:] = columns
            place += self.panel_bytes(vectors)
            first += len(chosen)
        return out

    def cell_order(self, gates: int, hidden: int) -> Integers:
        """Rows of a (gates·H, ·) weight, or -1, as a recurrent kernel's columns: gate by gate in each panel."""
        order: list[Integers] = []
        first = 0
        for vectors in self:
            units = first + np.arange(vectors // gates * self.width)
            order.extend(np.where(units < hidden, gate * hidden + units, -1) for gate in range(gates))
            first += len(units)
        return np.concatenate(order)


def bf16_bits(values: Floats) -> NDArray[np.uint16]:
    """The bits of float32 values rounded to bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def aligned(size: int) -> Bytes:
    """`size` zero bytes that begin at a cache line."""
    room = np.zeros(size + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    return room[start : start + size]
