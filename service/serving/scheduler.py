"""Continuous batching: the waiting rows of one model run together, in turns; rows join and leave between turns.

    requests ──► waiting ──► [ turn: some steps of many rows, one engine call ] ──► done
                    ▲                              │
                    └────── not yet at the end ◄───┘

A turn takes about `TURN_SECONDS`: a long sequence is cut in time (its state is carried in place), so that it cannot
hold up what arrives meanwhile for longer. What is short goes first. There is no waiting for a batch to fill: whenever
the engine is free, it takes what is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.errors import DeadlinePassed

TURN_SECONDS = 2e-3
"""What a turn is cut to: the longest that a short job waits for one that is under way, beside a turn of short ones."""

SHORT_STEPS = 8
"""Rows of at most so many steps go before longer ones."""

MIN_SLICE_STEPS = 16
"""Fewest steps of a long row in a turn, however many rows there are: less would be spent on beginnings and ends."""

MAX_TURN_ROWS = 512
"""Rows in a turn: engines gain nothing from more, and everybody in it waits for its end."""


@dataclass(slots=True)
class Timings:
    """Where the time of a request went, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one request, and how far they have come. `advanced` counts steps, the same for all rows."""

    rows: Rows
    deadline: float | None
    submitted: float
    done: "asyncio.Future[Timings]"
    longest: int
    advanced: int = 0
    begun: float | None = None
    compute: float = 0.0

    @property
    def short(self) -> bool:
        """Whether it goes before others."""
        return self.longest <= SHORT_STEPS

    def slice(self, steps: int) -> Rows:
        """The next steps of every row, over the same arrays; rows that have ended have none."""
        if not self.advanced and steps >= self.longest:
            return self.rows
        rows = self.rows
        lengths = np.clip(rows.lengths - self.advanced, 0, steps)
        starts = rows.starts + self.advanced
        return replace(rows, starts=starts, lengths=lengths)


@dataclass(slots=True)
class Turn:
    """What runs at once: a slice of each job."""

    jobs: list[Job] = field(default_factory=list)
    slices: list[Rows] = field(default_factory=list)
    steps: int = 0

    def add(self, job: Job, steps: int) -> None:
        """Take a job's next steps in."""
        self.jobs.append(job)
        self.slices.append(job.slice(steps))


class Scheduler:
    """The jobs of one engine, and the task that runs them turn by turn. Used from one event loop.

    clock gives seconds, the same that deadlines are given in.
    """

    def __init__(self, engine: Engine, pool: Executor, clock: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        self._pool = pool
        self._clock = clock
        self._jobs: list[Job] = []
        self._turns: asyncio.Task[None] | None = None
        # Bidirectional rows cannot be cut: their backward direction begins at the end.
        self._sliceable = not engine.spec.bidirectional
        self._seconds_per_step = engine.spec.flops_per_step / engine.flops_per_second
        self.last_turn_rows = 0

    @property
    def busy(self) -> bool:
        """Whether a turn is under way or due."""
        return self._turns is not None

    async def run(self, rows: Rows, deadline: float | None = None) -> Timings:
        """Run rows among the others; results are in their own arrays when this returns.

        Raises DeadlinePassed if the deadline passes before they begin (nothing ran then), or what the engine raises.
        A caller that is cancelled takes its rows out.
        """
        loop = asyncio.get_running_loop()
        job = Job(rows, deadline, self._clock(), loop.create_future(), int(rows.lengths.max(initial=0)))
        self._jobs.append(job)
        if self._turns is None:
            self._turns = loop.create_task(self._run_turns())
        return await job.done

    async def _run_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._drop_what_need_not_run():
                turn = self._plan()
                begun = self._clock()
                for job in turn.jobs:
                    job.begun = begun if job.begun is None else job.begun
                failures = await loop.run_in_executor(self._pool, run_turn, self._engine, turn.slices)
                self._account(turn, self._clock() - begun, failures)
        finally:
            self._turns = None

    def _drop_what_need_not_run(self) -> bool:
        """Leave out whoever has hung up, or whose deadline has passed before it began; says whether any are left."""
        now = self._clock()
        for job in self._jobs:
            if job.begun is None and job.deadline is not None and now > job.deadline and not job.done.done():
                job.done.set_exception(passed())
        self._jobs = [job for job in self._jobs if not job.done.done()]
        return bool(self._jobs)

    def _plan(self) -> Turn:
        """Short jobs, then long ones in order of arrival, as many rows as a turn has, cut to its time."""
        chosen: list[Job] = []
        rows = 0
        for job in sorted(self._jobs, key=lambda job: not job.short):  # stable: arrival decides among equals
            if chosen and rows + job.rows.lengths.size > MAX_TURN_ROWS:
                break
            chosen.append(job)
            rows += job.rows.lengths.size
        steps = max(MIN_SLICE_STEPS, int(TURN_SECONDS / (self._seconds_per_step * max(rows, 1))))
        turn = Turn(steps=steps)
        for job in chosen:
            turn.add(job, steps if self._sliceable else job.longest)
        self.last_turn_rows = rows
        return turn

    def _account(self, turn: Turn, seconds: float, failures: Sequence[Exception | None]) -> None:
        """Move the jobs of a turn on, tell those that have ended, and learn what a step costs."""
        total = sum(rows.steps for rows in turn.slices)
        if total:
            # Measured, and forgetting: the machine, its load and the mix of lengths change.
            self._seconds_per_step += 0.2 * (seconds / total - self._seconds_per_step)
        for job, failure in zip(turn.jobs, failures, strict=True):
            job.advanced += turn.steps if self._sliceable else job.longest
            job.compute += seconds
            if job.done.done():
                continue
            if failure is not None:
                job.done.set_exception(failure)
            elif job.advanced >= job.longest:
                waited = (job.begun or 0.0) - job.submitted
                job.done.set_result(Timings(queue=waited, compute=job.compute))


def run_turn(engine: Engine, slices: Sequence[Rows]) -> list[Exception | None]:
    """Run slices together; the failure of each, or None. One that fails does not take the others with it."""
    if len(slices) == 1:
        return [_failure(engine, slices[0])]
    kept = [(rows.h.copy(), None if rows.c is None else rows.c.copy()) for rows in slices]
    try:
        engine.run(slices)
    except Exception:  # whose fault it was shows when each runs alone, from the state before
        for rows, (h, c) in zip(slices, kept, strict=True):
            _restore(rows, h, c)
        return [_failure(engine, rows) for rows in slices]
    return [None] * len(slices)


def passed() -> DeadlinePassed:
    """The error of a request whose time was up before its turn came."""
    return DeadlinePassed("the deadline in X-Request-Timeout-Ms passed before the request ran; it did not run")


def _failure(engine: Engine, rows: Rows) -> Exception | None:
    try:
        engine.run([rows])
    except Exception as error:  # it is the caller's to see, in the event loop
        return error
    return None


def _restore(rows: Rows, h: Floats, c: Floats | None) -> None:
    rows.h[...] = h
    if rows.c is not None and c is not None:
        rows.c[...] = c
