"""What decoding yields: float32 arrays, and nested lists that are not rectangular."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Arrays come as Floats, Integers or Ragged; everything else as the Python value of its format.
Document = Mapping[str, Any]

MAX_DEPTH = 3
"""Brackets around a number: no field of the contract has more than three axes."""

OVERFLOW = 2.0**128 - 2.0**103
"""The midpoint above the largest float32: from here on a number rounds to infinity."""

SHORT = 4096
"""Numbers up to which one dot product is the quickest look at all of them: BLAS does it in one thread."""

MAX_FIELDS = 32
"""Names in one document: no request of the contract has a third as many."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """A nested list whose lists of one depth differ in length.

    - values (n,): the numbers, in order
    - sizes: for each depth, the lengths of the lists of that depth, in order; `sizes[0]` has one entry
    """

    values: Floats
    sizes: tuple[Integers, ...]

    @property
    def ndim(self) -> int:
        """Depth of the nesting."""
        return len(self.sizes)

    @property
    def size(self) -> int:
        return self.values.size


def assemble(values: Floats, sizes: list[list[int]]) -> Floats | Ragged:
    """An array if every depth is uniform, else `Ragged`.

    values (n,) are the numbers in order; sizes as in `Ragged`.
    """
    if len(sizes) == 1:
        return values
    for depth in sizes:
        if len(depth) > 1 and depth.count(depth[0]) != len(depth):
            return Ragged(values, tuple(np.array(depth, np.int64) for depth in sizes))
    # A depth below an empty list has no lists at all: its axis is empty too.
    return values.reshape([depth[0] if depth else 0 for depth in sizes])


def finite(values: Floats) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.count_nonzero(np.isfinite(values)) == values.size)  # `all` takes three times as long


def narrowed(doubles: NDArray[np.float64]) -> Floats:
    """float64 values as float32; what is too large becomes an infinity."""
    with np.errstate(over="ignore"):
        return doubles.astype(np.float32)
