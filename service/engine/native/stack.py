"""Front, layers and head: kernels and packed weights, and rows through them in one call, on as many threads as pay."""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from service.engine.interface import Floats, Integers, Rows
from service.engine.native.cells import CELLS
from service.engine.native.compiler import Processor, compiled
from service.engine.native.maps import Map
from service.engine.native.panels import aligned
from service.engine.native.recurrent import Recurrent
from service.engine.native.rows import LANES, ROW_BYTES, RowTable
from service.engine.native.stack_kernel import BufferWord, LayerWord, MapWord, StackKernel, StackWord
from service.spec import ModelSpec

BLOCK_FLOATS = 65_536  # of x-parts in a block, so that they stay in the second-level cache beside the weights
MOST_ROW_STEPS = 512  # rows times steps of a block of narrow layers; a longer block would bring nothing
# Work below this, some 100 µs, is done by the caller's thread alone: to wake another costs some tens of them.
SHARED_FLOPS = 16_000_000
# Work below this, some microseconds, keeps the GIL: to give it up and wait for it again can cost far more.
HELD_FLOPS = 200_000


class Layer:
    """One direction of one layer, from the arrays of PyTorch's state_dict whose names end in `suffix`.

    `x_parts` is the map that makes its x-parts of its inputs.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats], suffix: str, processor: Processor) -> None:
        name = f"rnn_{spec.nonlinearity}" if spec.kind == "rnn" else spec.kind
        cell, hidden, state = CELLS[name], spec.hidden_size, spec.state_size
        ih, hh = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
        zeros = np.zeros(len(hh), np.float32)
        bias_ih, bias_hh = (weights.get(f"bias_{part}_{suffix}", zeros) for part in ("ih", "hh"))
        self.recurrent = recurrent = Recurrent(name, hidden, state, spec.weights_dtype, processor)
        linear = recurrent.x_parts(ih.shape[1])
        order = recurrent.panels.cell_order(cell.gates, hidden)
        apart = np.repeat([gate in cell.apart for gate in range(cell.gates)], hidden)
        with_x = (bias_ih.astype(np.float64) + np.where(apart, 0, bias_hh)).astype(np.float32)
        columns = linear.panels.columns
        self.x_parts = Map(compiled(linear), linear.panels.pack(ih, with_x, order), columns, columns)
        self._code = compiled(recurrent)
        self._weights = [recurrent.panels.pack(hh, bias_hh, order)]
        if projection := recurrent.projection:
            hr, no_bias = weights[f"weight_hr_{suffix}"], np.zeros(state, np.float32)
            self._weights.append(projection.panels.pack(hr, no_bias, np.arange(state)))
        self._words = {
            LayerWord.RECURRENT: self._code.address,
            LayerWord.PANELS: self._weights[0].ctypes.data,
            LayerWord.PROJECTION: self._weights[1].ctypes.data if projection else 0,
            LayerWord.H_STRIDE: 4 * recurrent.h_columns,
            LayerWord.H_BYTES: 4 * state,
            LayerWord.C_STRIDE: 4 * recurrent.c_columns,
            LayerWord.C_BYTES: 4 * hidden if cell.has_cell_state else 0,
        }

    @property
    def words(self) -> list[int]:
        x_parts = self.x_parts
        address = x_parts.parameters.ctypes.data
        words = self._words | {LayerWord.LINEAR: x_parts.code.address, LayerWord.LINEAR_PANELS: address}
        return [words[word] for word in LayerWord]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.x_parts.parameters, *self._weights))


class Stack:
    """Layers that rows go through in one call, each reading the one before; front and head, if they are part of it."""

    def __init__(self, layers: Sequence[Layer], front: Sequence[Map] = (), head: Sequence[Map] = ()) -> None:
        self.layers, self.front, self.head = layers, front, head
        self._layer_words = np.array([layer.words for layer in layers], np.int64)
        # Results go to two buffers in turn. The last of the front must not be where the first layer's x-parts go.
        self._front_words = _map_words(front, len(front) + 1)
        self._head_words = _map_words(head, 1)
        words = {
            StackWord.LAYERS: len(layers),
            StackWord.LAYER_TABLE: self._layer_words.ctypes.data,
            StackWord.FRONT: len(front),
            StackWord.FRONT_TABLE: self._front_words.ctypes.data,
            StackWord.HEAD: len(head),
            StackWord.HEAD_TABLE: self._head_words.ctypes.data,
            StackWord.OUTPUT_BYTES: 4 * layers[-1].recurrent.state if layers else 0,
            StackWord.PREDICTION_BYTES: 4 * head[-1].size if head else 0,
        }
        self._words = np.array([words[word] for word in StackWord], np.int64)
        self.address = int(self._words.ctypes.data)
        maps = (*front, *head)
        self.x_columns = max([layer.recurrent.x_columns for layer in layers] + [each.columns for each in maps])
        self.mapped_columns = max((each.columns for each in maps), default=0) if front or len(head) > 1 else 0
        self.h_columns = max((layer.recurrent.h_columns for layer in layers), default=0)
        self.c_columns = max((layer.recurrent.c_columns for layer in layers), default=0)
        self.nbytes = sum(layer.nbytes for layer in layers) + sum(each.parameters.nbytes for each in maps)


def _map_words(maps: Sequence[Map], first: int) -> Integers:
    """The `MapWord`s of maps, (n, 4); the first puts its results into the x-parts' buffer if `first` is odd."""
    targets = (BufferWord.MAPPED, BufferWord.X_PARTS)
    rows = [
        {
            MapWord.CODE: each.code.address,
            MapWord.PARAMETERS: each.parameters.ctypes.data,
            MapWord.STRIDE: 4 * each.columns,
            MapWord.TARGET: targets[(first + number) % 2],
        }
        for number, each in enumerate(maps)
    ]
    return np.array([[row[word] for word in MapWord] for row in rows], np.int64)


class Buffers:
    """A table of rows, and a thread's scratch memory for a stack. One call at a time may use them."""

    def __init__(self, stack: Stack, table: RowTable) -> None:
        self.table = table
        row_steps = max(LANES, min(MOST_ROW_STEPS, BLOCK_FLOATS // stack.x_columns))
        states = 4 * (row_steps + LANES) * stack.h_columns
        cells = 4 * LANES * stack.c_columns
        sizes = {
            BufferWord.INPUTS: 8 * row_steps,
            BufferWord.X_PARTS: 4 * row_steps * stack.x_columns,
            BufferWord.MAPPED: 4 * row_steps * stack.mapped_columns,
            BufferWord.H: states,
            BufferWord.H_NEXT: states if len(stack.layers) > 1 else 0,
            BufferWord.C: cells,
            BufferWord.UNITS: cells,
            BufferWord.UNIT_TABLE: 8 * LANES,
            BufferWord.LANES: LANES * ROW_BYTES,
        }
        self._parts = {word: aligned(size) for word, size in sizes.items()}
        words = {word: part.ctypes.data for word, part in self._parts.items()} | {BufferWord.ROW_STEPS: row_steps}
        self._words = np.array([words[word] for word in BufferWord], np.int64)
        self.address = int(self._words.ctypes.data)


@dataclass(eq=False)
class Pass:
    """Runs rows through a stack, on the caller's thread and those of the pool, `threads` in all.

    first_state: where along L·D the state of the first layer is; backwards: rows run from their end.
    """

    stack: Stack
    processor: Processor
    flops_per_step: int
    pool: ThreadPoolExecutor
    threads: int
    first_state: int = 0
    backwards: bool = False

    def __post_init__(self) -> None:
        self.nbytes = self.stack.nbytes
        self._code = compiled(StackKernel(self.processor))
        self._kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self._code.address)
        self._kernel_held = ctypes.PYFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self._code.address)
        # Those that no call uses now; list.append and list.pop are atomic.
        self._idle: list[Buffers] = []

    def run(self, batches: Sequence[Rows]) -> None:
        buffers = self._take()
        table = buffers.table
        flops = table.fill(batches) * self.flops_per_step
        if flops < HELD_FLOPS:
            self._kernel_held(self.stack.address, buffers.address, table.address)
        elif flops < SHARED_FLOPS or len(table) == 1 or self.threads == 1:
            self._kernel(self.stack.address, buffers.address, table.address)
        else:
            self._run_shared(buffers)
        self._idle.append(buffers)

    def _run_shared(self, own: Buffers) -> None:
        """Run the rows on several threads, which draw them from the table."""
        table = own.table
        others = [self._take() for _ in range(min(self.threads, len(table)) - 1)]
        table.share(len(others) + 1)
        stack = self.stack.address
        futures = [self.pool.submit(self._kernel, stack, buffers.address, table.address) for buffers in others]
        self._kernel(stack, own.address, table.address)
        for future in futures:
            if not future.cancel():  # one that has not begun has nothing left to do
                future.result()
        self._idle.extend(others)

    def _take(self) -> Buffers:
        try:
            return self._idle.pop()
        except IndexError:
            return Buffers(self.stack, RowTable(self.processor, self.first_state, backwards=self.backwards))
