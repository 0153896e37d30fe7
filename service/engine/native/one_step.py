"""One step of one row over fixed memory: nothing is allocated, and no address is looked up."""

import numpy as np

from service.engine.interface import OneStep, Rows
from service.engine.native.passes import Pass
from service.engine.native.rows import Way, row_table
from service.engine.native.work import Work
from service.spec import ModelSpec


class NativeStep(OneStep):
    """The memory, the table that points into it, and scratch memory of its own."""

    def __init__(self, stack_pass: Pass, spec: ModelSpec) -> None:
        layers, width = spec.num_layers, spec.state_size
        cell, head = spec.has_cell_state * spec.hidden_size, spec.out_features or 0
        ends = np.cumsum([spec.input_size, layers * width, layers * cell, head])
        self.memory = np.zeros(ends[-1], np.float32)
        x, h, c, predictions, _ = np.split(self.memory, ends)
        self.h = h.reshape(layers, 1, width)
        self.c = c.reshape(layers, 1, cell) if cell else None
        self.predictions = predictions if head else None
        self._pass = stack_pass
        self._work = Work(stack_pass.stack)
        first, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        rows = Rows(x[None], first, one, self.h, self.c, predictions=predictions[None] if head else None)
        self._table = row_table([rows], Way())

    def run(self) -> None:
        """Run the step."""
        self._table.use_rows(1)
        self._pass.run_steps(self._table, self._work, 1)
