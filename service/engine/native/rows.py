"""The table of rows that the stack kernel reads, and the native code that fills it from the arrays of `Rows`.

To ask numpy for one array's address costs a third of a microsecond, as much as a whole step of a small model. So this
code takes the arrays themselves and reads the C structs of Python and numpy: the items of a tuple, and the fields of
`PyArrayObject`, which numpy documents and keeps. `check_layout` tries that out before a model is loaded.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from service.engine.interface import Integers, Rows
from service.engine.native.compiler import Processor, compiled
from service.engine.native.ir import Function, Module, Value

# Words ahead of the rows: the next row to draw, the number of rows, their steps in all, the most rows that a thread has
# under way, where along L·D the state of the first layer is, and 1 for rows that run from their end.
NEXT, COUNT, STEPS, LANE_COUNT, FIRST_STATE, BACKWARDS, HEADER_WORDS = range(7)
# Rows that a thread has under way at once: a panel is read from the further caches once a step for all of them.
LANES = 48


class RowWord(IntEnum):
    """Words of a row: addresses of its first step's input, output and prediction (0: not asked for), and of its state.

    Behind each address, `_STEP`: bytes to the next step, negative for a row that runs backwards; or `_LAYER`: bytes to
    the next layer's state.
    """

    X, X_STEP, OUT, OUT_STEP, PREDICTION, PREDICTION_STEP, H, H_LAYER, C, C_LAYER, STEPS = range(11)


HEADER_BYTES = 8 * HEADER_WORDS
ROW_BYTES = 8 * len(RowWord)

# In words of 8 bytes: a tuple's first item; an array's data, dimensions and strides. Source: numpy's C-API, "Python
# types and C-structures"; an object's own fields come after those that all objects have.
_ITEMS = tuple.__basicsize__ // 8
_DATA, _DIMENSIONS, _STRIDES = (object.__basicsize__ // 8 + word for word in (0, 2, 3))


@dataclass(frozen=True)
class AddRows:
    """Adds the rows of one batch to a table. Compiled signature: add_rows(ptr table, ptr arrays).

    `arrays` is a tuple of the batch's inputs, starts, lengths, outputs, predictions, h and c.
    """

    processor: Processor
    name = "add_rows"

    def text(self) -> str:
        module = Module()
        f = module.function(self.name, {"table": "ptr", "arrays": "ptr"})
        inputs, starts, lengths, outputs, predictions, h, c = (f.pointer("%arrays", _ITEMS + i) for i in range(7))
        count = f.word(f.pointer(lengths, _DIMENSIONS))
        before, total = f.word("%table", COUNT), f.variable("i64", f.word("%table", STEPS))
        first_state, backwards = (f.word("%table", word) for word in (FIRST_STATE, BACKWARDS))
        direction = f.sub(1, f.mul(backwards, 2))
        with f.loop(count) as i:
            row = f.at("%table", f.add(f.mul(f.add(before, i), ROW_BYTES), HEADER_BYTES))
            start, steps = (
                f.load("i64", f.at(f.pointer(array, _DATA), f.mul(i, _stride(f, array)))) for array in (starts, lengths)
            )
            begin = f.add(start, f.mul(backwards, f.sub(steps, 1)))
            for word, array in ((RowWord.X, inputs), (RowWord.OUT, outputs), (RowWord.PREDICTION, predictions)):
                with _given(f, row, word, array):
                    stride = _stride(f, array)
                    _put(f, row, word, f.add(f.word(array, _DATA), f.mul(begin, stride)), f.mul(stride, direction))
            for word, array in ((RowWord.H, h), (RowWord.C, c)):
                with _given(f, row, word, array):
                    layer = _stride(f, array)
                    place = f.add(f.word(array, _DATA), f.mul(i, _stride(f, array, 1)))
                    _put(f, row, word, f.add(place, f.mul(first_state, layer)), layer)
            f.set_word(row, RowWord.STEPS, steps)
            total.set(f.add(total.get(), steps))
        f.set_word("%table", COUNT, f.add(before, count))
        f.set_word("%table", STEPS, total.get())
        return module.text()


@contextmanager
def _given(f: Function, row: Value, word: RowWord, array: Value) -> Iterator[None]:
    """Run the block only if the array is not None; else the address is 0."""
    _put(f, row, word, 0, 0)
    with f.when(f.value(f"icmp ne ptr {array}, inttoptr (i64 {id(None)} to ptr)")):
        yield


def _put(f: Function, row: Value, word: RowWord, first: Value | int, second: Value | int) -> None:
    f.set_word(row, word, first)
    f.set_word(row, word + 1, second)


def _stride(f: Function, array: Value, axis: int = 0) -> Value:
    return f.word(f.pointer(array, _STRIDES), axis)


class RowTable:
    """A table that grows as it must, for rows of one direction. It holds addresses: the arrays must outlive a run."""

    def __init__(self, processor: Processor, first_state: int = 0, *, backwards: bool = False) -> None:
        self._code = compiled(AddRows(processor))
        self._add = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.py_object)(self._code.address)
        self._direction = first_state, backwards
        self._allocate(64)

    def _allocate(self, capacity: int) -> None:
        self._capacity = capacity
        self._array = np.zeros((HEADER_BYTES + capacity * ROW_BYTES) // 8, np.int64)
        self._words = memoryview(self._array)  # type: ignore[arg-type]  # its elements are read sooner than an array's
        self._words[FIRST_STATE], self._words[BACKWARDS] = self._direction
        self.address = int(self._array.ctypes.data)

    def __len__(self) -> int:
        return self._words[COUNT]

    @property
    def rows(self) -> Integers:
        """The `RowWord`s of each row, (B, 11)."""
        return self._array[HEADER_WORDS:].reshape(-1, len(RowWord))[: len(self)]

    def fill(self, batches: Sequence[Rows]) -> int:
        """Replace the rows by all rows of all batches; return their steps in all."""
        count = 0
        for rows in batches:  # a loop is quicker than sum()
            count += len(rows.lengths)
        if count > self._capacity:
            self._allocate(count)
        words = self._words
        words[NEXT] = words[COUNT] = words[STEPS] = 0
        words[LANE_COUNT] = LANES
        for rows in batches:
            arrays = rows.inputs, rows.starts, rows.lengths, rows.outputs, rows.predictions, rows.h, rows.c
            self._add(self.address, arrays)
        return words[STEPS]

    def share(self, threads: int) -> None:
        """Let each thread take an equal part, longest rows first: those that run side by side then end together."""
        self._words[LANE_COUNT] = min(LANES, -(-len(self) // threads))
        steps = self.rows[:, RowWord.STEPS]
        if steps.min() != steps.max():
            self.rows[:] = self.rows[np.argsort(-steps, kind="stable")]


def check_layout(processor: Processor) -> None:
    """Raise RuntimeError if arrays are not laid out as this module has it."""
    array = np.zeros((2, 3, 4), np.float32)[:, :, 1:]
    table = RowTable(processor, first_state=1, backwards=True)
    table.fill([Rows(array[0], np.array([0, 1]), np.array([1, 2]), array)])
    begin, layer, row = array.ctypes.data, *array.strides[:2]
    own = [begin + 2 * row, -row, 0, 0, 0, 0, begin + layer + row, layer, 0, 0, 2]
    if table.rows[1:].tolist() != [own]:
        raise RuntimeError(f"numpy {np.__version__} lays arrays out in another way than this engine reads them")
