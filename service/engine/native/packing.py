"""Lays weights out as the tiles read them: panel after panel, each its bias and then its columns, k by k.

    panel 0                          panel 1
    ┌─────────────────────────────┐  ┌──────────
    │ bias   of columns 0 … 63    │  │ bias of columns 64 …
    │ k = 0: columns 0 … 63       │  │ k = 0
    │ k = 1: columns 0 … 63       │  │ k = 1
    │ …                           │  │ …

so that the inner loop reads memory from front to back, once.
"""

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Floats, Integers
from service.engine.native.tile import Panels

CACHE_LINE = 64

Bytes = NDArray[np.uint8]


def packed(panels: Panels, matrix: Floats, bias: Floats, order: Integers) -> Bytes:
    """The panels of W `matrix` (rows, K) and `bias` (rows): column j of the panels is row order[j], or zeros for -1.

    `order` has at most `panels.columns` entries; columns beyond it are zeros. The result is aligned to a cache line.
    """
    order = np.concatenate([order, np.full(panels.columns - len(order), -1)])
    out = aligned(sum(panels.panel_bytes(vectors) for vectors in panels))
    place = first = 0
    for vectors in panels:
        chosen = order[first : first + vectors * panels.width]
        size = panels.bias_bytes(vectors)
        out[place : place + size].view(np.float32)[:] = np.where(chosen < 0, np.float32(0), bias[chosen])
        body = out[place + size : place + panels.panel_bytes(vectors)]
        columns = np.where(chosen[:, None] < 0, np.float32(0), matrix[chosen]).T
        if panels.weights == "bf16":
            body.view(np.uint16).reshape(panels.depth, -1)[:] = bf16_bits(columns)
        else:
            body.view(np.float32).reshape(panels.depth, -1)[:] = columns
        place += panels.panel_bytes(vectors)
        first += len(chosen)
    return out


def cell_order(panels: Panels, gates: int, hidden: int) -> Integers:
    """Rows of a (gates·H, ·) weight in the order of a recurrent kernel's columns; -1 for padding.

    In each panel stand its units' vectors for the first gate, then for the second …
    """
    order: list[Integers] = []
    first = 0
    for vectors in panels:
        units = first + np.arange(vectors // gates * panels.width)
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
