"""A pass: rows through a stack of layers in one call, on as many threads as it is worth."""

import ctypes
from functools import partial

from service.engine.native.compiler import Code
from service.engine.native.layers import Stack
from service.engine.native.rows import RowTable
from service.engine.native.split import Split
from service.engine.native.threads import Crew
from service.engine.native.work import Work

SHARED_FLOPS = 16_000_000
"""Work below this, some 100 µs, is done by the caller's thread alone: to wake another costs some tens of them."""

HELD_FLOPS = 200_000
"""Work below this, some microseconds, keeps the GIL: to give it up and wait for it again can cost far more."""


NEAR_BYTES = 768 * 1024
"""Weights up to this stay in a core's second-level cache, and a few rows are as good as many to read them for."""

FEW_ROWS = 4
"""Rows of near weights that a thread takes at least: a step of a row costs 5 % more among two, 20 % more alone."""

DRAWS = 4
"""How often a thread comes for rows if their weights are near: one whose core was taken away leaves more to others."""


class Pass:
    """A stack of layers with its scratch memory."""

    def __init__(self, stack: Stack, code: Code, crew: Crew, flops_per_step: int, split: Split | None = None) -> None:
        self.stack = stack
        self._code = code
        self._crew = crew
        self._split = split
        self._schedule = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address)
        self._schedule_held = ctypes.PYFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address)
        # Scratch memory that no call uses now; list.append and list.pop are atomic.
        self._idle: list[Work] = []
        self._flops_per_step = flops_per_step

    def run(self, table: RowTable, *, alone: bool = False) -> None:
        """Run all rows of the table; if `alone`, on the caller's thread."""
        flops = table.steps * self._flops_per_step
        if not flops:
            return
        if len(table) == 1 and not alone and self._split and self._split.pays(self.stack.step_bytes, flops):
            self._run_split(self._split, table)
            return
        threads = min(self._crew.size, len(table)) if flops >= SHARED_FLOPS and not alone else 1
        if threads == 1:
            self.run_alone(table, len(table), table.steps)
            return
        works = [self._take() for _ in range(threads)]
        lanes = -(-len(table) // threads)
        if self.stack.nbytes <= NEAR_BYTES and lanes > FEW_ROWS:
            lanes = max(FEW_ROWS, -(-lanes // DRAWS))
        for work in works:
            work.use_lanes(lanes)
        table.longest_first()
        self._crew.run([partial(self._schedule, self.stack.address, work.address, table.address) for work in works])
        self._idle.extend(works)

    def run_alone(self, table: RowTable, rows: int, steps: int) -> None:
        """Run the rows of a table, so many and of so many steps in all, on the caller's thread."""
        work = self._take()
        work.use_lanes(rows)
        self._call(table, work, steps * self._flops_per_step)
        self._idle.append(work)

    def run_steps(self, table: RowTable, work: Work, rows: int) -> None:
        """Run `rows` rows of one step, already in `table`, on the caller's thread."""
        self._call(table, work, rows * self._flops_per_step)

    def _run_split(self, split: Split, table: RowTable) -> None:
        work = self._take()

        def lead(team: int) -> None:
            work.use_team(team)
            self._schedule(self.stack.address, work.address, table.address)

        split.run(lead)
        work.use_team(0)
        self._idle.append(work)

    def _call(self, table: RowTable, work: Work, flops: int) -> None:
        call = self._schedule_held if flops < HELD_FLOPS else self._schedule
        call(self.stack.address, work.address, table.address)

    def _take(self) -> Work:
        try:
            return self._idle.pop()
        except IndexError:
            return Work(self.stack)
