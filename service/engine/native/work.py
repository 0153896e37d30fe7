"""Scratch memory of a thread in a call, and the table by which the scheduler finds it."""

import numpy as np

from service.engine.native.layers import Stack
from service.engine.native.packing import Bytes, aligned
from service.engine.native.schedule import ROW_BYTES, WorkWord

LANES = 48
"""Rows that a thread has under way at once: a panel is read from the further caches once a step for all of them."""

BLOCK_FLOATS = 65_536
"""Floats of x-parts in a block, so that they stay in the second-level cache beside the weights."""

MOST_ROW_STEPS = 512
"""Rows times steps of a block of narrow layers; a longer block would bring nothing."""


class Work:
    """Scratch memory for a stack. One call at a time may use it."""

    def __init__(self, stack: Stack) -> None:
        row_steps = max(LANES, min(MOST_ROW_STEPS, BLOCK_FLOATS // stack.x_columns))
        states = 4 * (row_steps + LANES) * stack.h_columns
        cells = 4 * LANES * stack.c_columns
        sizes = {
            WorkWord.INPUTS: 8 * row_steps,
            WorkWord.X_PARTS: 4 * row_steps * stack.x_columns,
            WorkWord.H: states,
            WorkWord.H_NEXT: states if len(stack.layers) > 1 else 0,
            WorkWord.C: cells,
            WorkWord.UNITS: cells,
            WorkWord.LANES: LANES * ROW_BYTES,
        }
        self._parts: list[Bytes] = []
        self._words = np.zeros(len(WorkWord), np.int64)
        for word, size in sizes.items():
            part = aligned(size)
            self._parts.append(part)
            self._words[word] = part.ctypes.data
        self._words[WorkWord.LANE_COUNT] = LANES
        self._words[WorkWord.ROW_STEPS] = row_steps
        self.address = int(self._words.ctypes.data)

    def use_team(self, address: int) -> None:
        """Share each matrix with the team whose words are there; 0 for none."""
        self._words[WorkWord.TEAM] = address

    def use_lanes(self, count: int) -> None:
        """Have at most `count` rows under way at once."""
        self._words[WorkWord.LANE_COUNT] = min(LANES, count)
