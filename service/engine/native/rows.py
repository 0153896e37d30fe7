"""Tables of rows as the scheduler reads them, made from the engine's `Rows`."""

from collections.abc import Sequence

import numpy as np

from service.engine.interface import Floats, Integers, Rows
from service.engine.native.schedule import HEADER_WORDS, ROW_WORDS, RowWord


class RowTable:
    """A table of `RowWord`s with its header. It holds addresses only: the arrays must outlive it."""

    def __init__(self, count: int) -> None:
        self._words = np.zeros(HEADER_WORDS + count * ROW_WORDS, np.int64)
        self._words[1] = count
        self.rows = self._words[HEADER_WORDS:].reshape(count, ROW_WORDS)
        self.address = int(self._words.ctypes.data)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Steps of all rows together."""
        return int(self.rows[:, RowWord.STEPS].sum())

    def use_rows(self, count: int) -> None:
        """Let the first `count` rows be drawn, once more."""
        self._words[0] = 0
        self._words[1] = count

    def longest_first(self) -> None:
        """Sort by length: lanes then end together, and threads too."""
        steps = self.rows[:, RowWord.STEPS]
        if len(steps) > 1 and steps.min() != steps.max():
            self.rows[:] = self.rows[np.argsort(-steps, kind="stable")]


def row_table(batches: Sequence[Rows], *, first_state: int = 0, reverse: bool = False) -> RowTable:
    """All rows of all batches, reading and writing the batches' own arrays.

    `first_state` is the place along L·D of the first layer's state; `reverse` lets every row run from its end.
    """
    table = RowTable(sum(len(batch.lengths) for batch in batches))
    first = 0
    for batch in batches:
        rows = table.rows[first : first + len(batch.lengths)]
        first += len(rows)
        _place_steps(rows, batch, reverse=reverse)
        _place_state(rows, batch.h, batch.slots, RowWord.H, first_state)
        if batch.c is not None:
            _place_state(rows, batch.c, batch.slots, RowWord.C, first_state)
    return table


def _place_steps(rows: Integers, batch: Rows, *, reverse: bool) -> None:
    begin = batch.starts + np.maximum(batch.lengths - 1, 0) if reverse else batch.starts
    rows[:, RowWord.STEPS] = batch.lengths
    arrays = (
        (RowWord.X, RowWord.X_STEP, batch.inputs),
        (RowWord.OUT, RowWord.OUT_STEP, batch.outputs),
        (RowWord.PREDICTION, RowWord.PREDICTION_STEP, batch.predictions),
    )
    for address, stride, array in arrays:
        if array is not None:
            step = array.strides[0]
            rows[:, address] = array.ctypes.data + begin * step
            rows[:, stride] = -step if reverse else step


def _place_state(rows: Integers, state: Floats, slots: Integers | None, address: RowWord, first_state: int) -> None:
    layer, row = state.strides[:2]
    places = np.arange(len(rows)) if slots is None else slots
    rows[:, address] = state.ctypes.data + first_state * layer + places * row
    rows[:, address + 1] = layer
