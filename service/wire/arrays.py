"""What decoding yields: float32 arrays, and nested lists that are not rectangular."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, Loc, spell

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FLOAT32 = np.dtype(np.float32)

# Arrays come as Floats, Integers or Ragged; everything else as the Python value of its format.
Document = Mapping[str, Any]

Sizes = Sequence[list[int] | NDArray[np.int32]]
"""For each depth of a nested list, the lengths of the lists of that depth, in order; the first has one entry."""

MAX_DEPTH = 3  # brackets around a number: no field of the contract has more than three axes
OVERFLOW = 2.0**128 - 2.0**103  # the midpoint above the largest float32: from here on a number rounds to infinity
MAX_FIELDS = 32  # names in one document: no request of the contract has a third as many
ROW_VALUES = 16  # numbers that are printed in the time that it takes to cut out a row


@dataclass(slots=True)
class Ragged:
    """A nested list whose lists of one depth differ in length: its numbers (n,) in order, and its sizes."""

    values: Floats
    sizes: Sizes

    @property
    def ndim(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        return self.values.size


class RaggedRows:  # no dataclass: orjson would print its fields
    """Rows of unequal length of an array (n, ·) or (n), cut out one by one as they are asked for; ends begin with 0."""

    def __init__(self, values: Floats, ends: Integers) -> None:
        self.values = values
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[Floats]:
        values = self.values
        return (values[begin:end] for begin, end in pairwise(self.ends.tolist()))

    def __getitem__(self, rows: int | slice) -> "Floats | RaggedRows":
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(self))
            return RaggedRows(self.values, self.ends[begin : end + 1])
        if rows >= len(self):
            raise IndexError
        return self.values[self.ends[rows] : self.ends[rows + 1]]

    @property
    def size(self) -> int:
        """About as much work as so many numbers."""
        steps = int(self.ends[-1]) - int(self.ends[0])
        return steps * self.values[:1].size + ROW_VALUES * len(self)

    def padded(self) -> Floats:
        lengths = np.diff(self.ends)
        rows: Floats = np.zeros((len(lengths), lengths.max(), self.values.shape[1]), np.float32)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = self.values
        return rows


def assemble(values: Floats, sizes: Sizes) -> Floats | Ragged:
    """A nested list of the numbers (n,): an array if every depth is uniform, else `Ragged`."""
    if len(sizes) == 1:
        return values
    for depth in sizes:
        if len(depth) > 1 and not _alike(depth):
            return Ragged(values, sizes)
    # A depth below an empty list has no lists at all: its axis is empty too.
    return values.reshape([depth[0] if len(depth) else 0 for depth in sizes])


def _alike(depth: list[int] | NDArray[np.int32]) -> bool:
    same = depth.count(depth[0]) if isinstance(depth, list) else np.count_nonzero(depth == depth[0])
    return bool(same == len(depth))


def finite(values: Floats) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.count_nonzero(np.isfinite(values)) == values.size)  # `all` takes three times as long


def bad(loc: Loc, what: str) -> InvalidRequest:
    """The error of one value: what it is, and what was expected."""
    return InvalidRequest.at(f"{spell(loc)} {what}", *loc)


def too_large(loc: Loc, value: float) -> InvalidRequest:
    """The error of a number that no float32 can hold."""
    return bad(loc, f"is {value:.9g}; the largest 32-bit float is {np.finfo(np.float32).max:.9g}")


def narrowed(name: str, values: NDArray[Any]) -> Floats | Integers:
    """Numbers of any type as float32 or int64, the same array where they are. Raises InvalidRequest."""
    if values.dtype == FLOAT32:
        return values
    if values.dtype.kind == "i":
        return values.astype(np.int64, copy=False)
    if values.itemsize < 8:
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    overflowed = np.isinf(floats) & np.isfinite(values)
    if overflowed.any():
        place = tuple(map(int, np.unravel_index(overflowed.argmax(), values.shape)))
        raise too_large((name, *place), values[place])
    return floats
