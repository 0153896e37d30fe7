"""Rows that are run again and again: the table that points into their arrays is made once."""

from weakref import ref

from service.engine.interface import Rows
from service.engine.native.passes import Pass
from service.engine.native.rows import Way, row_table


class PreparedRows:
    """Rows of a stack that one thread is to run, whatever their arrays hold at the time."""

    def __init__(self, stack_pass: Pass, rows: Rows) -> None:
        self._pass = ref(stack_pass)
        self._rows = rows  # whose arrays the table points into
        self._count = len(rows.lengths)
        self._steps = rows.steps
        self._table = row_table([rows], Way())

    def __call__(self) -> None:
        """Run them, while there is the engine."""
        if stack_pass := self._pass():
            self._table.use_rows(self._count)
            stack_pass.run_alone(self._table, self._count, self._steps)
