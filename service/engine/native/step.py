"""One step of a few rows, by way of fixed memory: the addresses in its table are found once, not at every call.

To ask numpy for an array's address costs a microsecond, and a row has up to five of them; to copy a small array costs
a fifth of that. So a handful of single steps is copied in and out, and everything longer runs where it lies.
"""

from collections.abc import Sequence

import numpy as np

from service.engine.interface import Integers, Rows
from service.engine.native.layers import Stack
from service.engine.native.rows import RowTable, Way, row_table
from service.engine.native.work import LANES, Work
from service.spec import ModelSpec


class Stage:
    """Inputs, states and predictions of up to `LANES` rows of one step, and scratch memory. One call at a time."""

    def __init__(self, stack: Stack, spec: ModelSpec) -> None:
        self.work = Work(stack)
        self._x = np.zeros((LANES, spec.input_size), np.float32)
        self._h = np.zeros((spec.num_layers, LANES, spec.state_size), np.float32)
        self._c = np.zeros((spec.num_layers, LANES, spec.hidden_size), np.float32) if spec.has_cell_state else None
        self._top = self._h[-1]
        self._predictions = np.zeros((LANES, spec.out_features or 0), np.float32)
        # One row of one step is what comes most: it needs no index.
        self._only = self._x[:1], self._h[:, :1], None if self._c is None else self._c[:, :1]
        first, one = np.arange(LANES), np.ones(LANES, np.int64)
        with_head = None if spec.out_features is None else self._predictions
        self.table: RowTable = row_table([Rows(self._x, first, one, self._h, self._c, predictions=with_head)], Way())

    def load(self, batches: Sequence[Rows]) -> None:
        """Copy the inputs and states of rows of one step in."""
        x, h, c = self._x, self._h, self._c
        if _is_alone(batches):
            only_x, only_h, only_c = self._only
            only_x[...] = batches[0].inputs
            only_h[...] = batches[0].h
            if only_c is not None:
                only_c[...] = batches[0].c
            self.table.use_rows(1)
            return
        first = 0
        for batch in batches:
            count = len(batch.starts)
            if count == 1:
                slot = 0 if batch.slots is None else batch.slots[0]
                x[first] = batch.inputs[batch.starts[0]]
                h[:, first] = batch.h[:, slot]
                if c is not None and batch.c is not None:
                    c[:, first] = batch.c[:, slot]
            else:
                rows = slice(first, first + count)
                slots = slice(None) if batch.slots is None else batch.slots
                x[rows] = batch.inputs[batch.starts]
                h[:, rows] = batch.h[:, slots]
                if c is not None and batch.c is not None:
                    c[:, rows] = batch.c[:, slots]
            first += count
        self.table.use_rows(first)

    def store(self, batches: Sequence[Rows]) -> None:
        """Copy states, and what else was asked for, out."""
        if _is_alone(batches):
            batch = batches[0]
            _, only_h, only_c = self._only
            batch.h[...] = only_h
            if only_c is not None:
                batch.c[...] = only_c  # type: ignore[index]  # it came in
            if batch.outputs is not None:
                batch.outputs[0] = self._top[0]
            if batch.predictions is not None:
                batch.predictions[0] = self._predictions[0]
            return
        first = 0
        for batch in batches:
            count = len(batch.starts)
            if count == 1:
                self._store_row(batch, first)
            else:
                self._store_rows(batch, slice(first, first + count))
            first += count

    def _store_row(self, batch: Rows, row: int) -> None:
        slot = 0 if batch.slots is None else batch.slots[0]
        batch.h[:, slot] = self._h[:, row]
        if self._c is not None and batch.c is not None:
            batch.c[:, slot] = self._c[:, row]
        if batch.outputs is not None:
            batch.outputs[batch.starts[0]] = self._top[row]
        if batch.predictions is not None:
            batch.predictions[batch.starts[0]] = self._predictions[row]

    def _store_rows(self, batch: Rows, rows: slice) -> None:
        slots = slice(None) if batch.slots is None else batch.slots
        batch.h[:, slots] = self._h[:, rows]
        if self._c is not None and batch.c is not None:
            batch.c[:, slots] = self._c[:, rows]
        if batch.outputs is not None:
            batch.outputs[batch.starts] = self._top[rows]
        if batch.predictions is not None:
            batch.predictions[batch.starts] = self._predictions[rows]


def _is_alone(batches: Sequence[Rows]) -> bool:
    """Whether one row is all that the arrays hold."""
    return len(batches) == 1 and batches[0].inputs.shape[0] == 1 and batches[0].h.shape[1] == 1


def single_steps(batches: Sequence[Rows]) -> int:
    """The number of rows if each has one step and they are few enough for a `Stage`; else 0."""
    rows = 0
    for batch in batches:
        lengths: Integers = batch.lengths
        count = len(lengths)
        rows += count
        if rows > LANES or not (lengths[0] == 1 if count == 1 else (lengths == 1).all()):
            return 0
    return rows
