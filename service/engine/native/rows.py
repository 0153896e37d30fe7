"""Tables of rows as the scheduler reads them, made from the engine's `Rows`."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.interface import Floats, Integers, Rows
from service.engine.native.schedule import HEADER_WORDS, ROW_WORDS, RowWord

_STEPS = int(RowWord.STEPS)

_first_byte = ctypes.c_char.from_buffer


def address(array: Floats | Integers) -> int:
    """Where an array's data begins. For an array of one piece that may be written into, four times as fast as numpy."""
    try:
        return ctypes.addressof(_first_byte(array))  # type: ignore[arg-type]  # arrays are buffers
    except (TypeError, ValueError):
        return array.ctypes.data


class RowTable:
    """A table of `RowWord`s with its header. It holds addresses only: the arrays must outlive it."""

    def __init__(self, count: int) -> None:
        self._words = np.zeros(HEADER_WORDS + count * ROW_WORDS, np.int64)
        self._words[1] = count
        self.rows = self._words[HEADER_WORDS:].reshape(count, ROW_WORDS)
        self.address = address(self._words)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Steps of all rows together."""
        return int(self.rows[:, _STEPS].sum()) if len(self.rows) != 1 else int(self.rows[0, _STEPS])

    def use_rows(self, count: int) -> None:
        """Let the first `count` rows be drawn, once more."""
        self._words[0] = 0
        self._words[1] = count

    def longest_first(self) -> None:
        """Sort by length: lanes then end together, and threads too."""
        steps = self.rows[:, _STEPS]
        if len(steps) > 1 and steps.min() != steps.max():
            self.rows[:] = self.rows[np.argsort(-steps, kind="stable")]


@dataclass(frozen=True)
class Way:
    """How rows go through a stack: forwards or from their end; with the states of which layer its first layer begins.

    `first_state` counts along L·D.
    """

    first_state: int = 0
    reverse: bool = False


def row_table(batches: Sequence[Rows], way: Way) -> RowTable:
    """All rows of all batches, reading and writing the batches' own arrays."""
    table = RowTable(sum(len(batch.lengths) for batch in batches))
    first = 0
    for batch in batches:
        count = len(batch.lengths)
        if count == 1:
            # Python's integers: for one row they are several times faster than arrays of one element.
            slot = 0 if batch.slots is None else int(batch.slots[0])
            table.rows[first] = _words(batch, int(batch.starts[0]), int(batch.lengths[0]), slot, way)
        elif count:
            _fill(table.rows[first : first + count], batch, way)
        first += count
    return table


def _fill(rows: Integers, batch: Rows, way: Way) -> None:
    rows[:] = _words(batch, 0, 1, 0, way)
    begin = batch.starts + (batch.lengths - 1) if way.reverse else batch.starts
    slots = np.arange(len(rows)) if batch.slots is None else batch.slots
    for address, array in (
        (RowWord.X, batch.inputs),
        (RowWord.OUT, batch.outputs),
        (RowWord.PREDICTION, batch.predictions),
    ):
        if array is not None:
            rows[:, address] += begin * array.strides[0]
    for address, state in ((RowWord.H, batch.h), (RowWord.C, batch.c)):
        if state is not None:
            rows[:, address] += slots * state.strides[1]
    rows[:, _STEPS] = batch.lengths


def _words(batch: Rows, start: int, length: int, slot: int, way: Way) -> tuple[int, ...]:
    """The `RowWord`s of one row."""
    begin = start + length - 1 if way.reverse else start
    return (
        *_steps(batch.inputs, begin, way),
        *_steps(batch.outputs, begin, way),
        *_steps(batch.predictions, begin, way),
        *_states(batch.h, slot, way),
        *_states(batch.c, slot, way),
        length,
    )


def _steps(array: Floats | None, begin: int, way: Way) -> tuple[int, int]:
    if array is None:
        return 0, 0
    step = array.strides[0]
    return address(array) + begin * step, -step if way.reverse else step


def _states(array: Floats | None, slot: int, way: Way) -> tuple[int, int]:
    if array is None:
        return 0, 0
    layer, row = array.strides[:2]
    return address(array) + way.first_state * layer + slot * row, layer
