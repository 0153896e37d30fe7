"""A pass: rows through a stack of layers in one call, on as many threads as it is worth."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from service.engine.interface import Rows
from service.engine.native.compiler import Processor, compiled
from service.engine.native.layers import Stack
from service.engine.native.panels import aligned
from service.engine.native.rows import LANES, ROW_BYTES, RowTable
from service.engine.native.stack_kernel import BufferWord, StackKernel

# Floats of x-parts in a block, so that they stay in the second-level cache beside the weights.
BLOCK_FLOATS = 65_536
# Rows times steps of a block of narrow layers; a longer block would bring nothing.
MOST_ROW_STEPS = 512
# Work below this, some 100 µs, is done by the caller's thread alone: to wake another costs some tens of them.
SHARED_FLOPS = 16_000_000
# Work below this, some microseconds, keeps the GIL: to give it up and wait for it again can cost far more.
HELD_FLOPS = 200_000


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
            BufferWord.H: states,
            BufferWord.H_NEXT: states if len(stack.layers) > 1 else 0,
            BufferWord.C: cells,
            BufferWord.UNITS: cells,
            BufferWord.UNIT_TABLE: 8 * LANES,
            BufferWord.LANES: LANES * ROW_BYTES,
        }
        self._parts = {word: aligned(size) for word, size in sizes.items()}
        self._words = np.zeros(len(BufferWord), np.int64)
        for word, part in self._parts.items():
            self._words[word] = part.ctypes.data
        self._words[BufferWord.ROW_STEPS] = row_steps
        self.address = int(self._words.ctypes.data)


class Pass:
    """A stack of layers, and the buffers that calls through it use.

    pool: the threads beside the caller's, `threads` in all; first_state: where along L·D the state of the first layer
    is; backwards: rows run from their end.
    """

    def __init__(
        self,
        stack: Stack,
        processor: Processor,
        flops_per_step: int,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        first_state: int = 0,
        backwards: bool = False,
    ) -> None:
        self.nbytes = stack.nbytes
        self._stack = stack
        self._pool, self._threads = pool, threads
        self._new_table = partial(RowTable, processor, first_state, backwards=backwards)
        self._flops_per_step = flops_per_step
        self._code = compiled(StackKernel(processor))
        self._kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self._code.address)
        self._kernel_held = ctypes.PYFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self._code.address)
        # Those that no call uses now; list.append and list.pop are atomic.
        self._idle: list[Buffers] = []

    def run(self, batches: Sequence[Rows]) -> None:
        """Run every row of every batch."""
        buffers = self._take()
        table = buffers.table
        flops = table.fill(batches) * self._flops_per_step
        if flops < HELD_FLOPS:
            self._kernel_held(self._stack.address, buffers.address, table.address)
        elif flops < SHARED_FLOPS or len(table) == 1 or self._threads == 1:
            self._kernel(self._stack.address, buffers.address, table.address)
        else:
            self._run_shared(buffers)
        self._idle.append(buffers)

    def _run_shared(self, own: Buffers) -> None:
        """Run the rows on several threads, which draw them from the table."""
        table = own.table
        others = [self._take() for _ in range(min(self._threads, len(table)) - 1)]
        table.sort()
        table.set_lanes(-(-len(table) // (len(others) + 1)))
        futures = [
            self._pool.submit(self._kernel, self._stack.address, buffers.address, table.address) for buffers in others
        ]
        self._kernel(self._stack.address, own.address, table.address)
        for future in futures:
            if not future.cancel():  # one that has not begun has nothing left to do
                future.result()
        table.set_lanes(LANES)
        self._idle.extend(others)

    def _take(self) -> Buffers:
        try:
            return self._idle.pop()
        except IndexError:
            return Buffers(self._stack, self._new_table())
