"""Continuous batching: the waiting rows of one model run together, in turns; rows join and leave between turns.

    requests ──► waiting ──► [ turn: some steps of many rows, one engine call ] ──► done
                    ▲                              │
                    └────── not yet at the end ◄───┘

A turn takes about the engine's `turn_seconds`: a long sequence is cut in time (its state is carried in place), so that
it cannot hold up what arrives meanwhile for longer. What is short goes first. There is no waiting for a batch to fill:
whenever the engine is free, it takes what is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.errors import DeadlinePassed

SHORT_STEPS = 8
"""Rows of at most so many steps go before longer ones."""

MIN_SLICE_STEPS = 16
"""Fewest steps of a long row in a turn, however many rows there are: less would be spent on beginnings and ends."""


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
    under_way: bool = False
    begun: float | None = None
    compute: float = 0.0

    @property
    def short(self) -> bool:
        """Whether it goes before others."""
        return self.longest <= SHORT_STEPS

    @property
    def left(self) -> int:
        """Steps that its rows have left, if all are as long as the longest."""
        return (self.longest - self.advanced) * self.rows.lengths.size

    def slice(self, steps: int) -> Rows:
        """The next steps of every row, over the same arrays; rows that have ended have none."""
        if not self.advanced and steps >= self.longest:
            return self.rows
        rows = self.rows
        lengths = np.minimum(rows.lengths - self.advanced, steps)
        np.maximum(lengths, 0, out=lengths)
        starts = rows.starts + self.advanced
        return Rows(rows.inputs, starts, lengths, rows.h, rows.c, rows.outputs, rows.predictions, rows.slots)


@dataclass(eq=False, slots=True)
class Turn:
    """What runs at once: a slice of each job. `beside`: on one thread, while other turns run on others."""

    beside: bool = False
    jobs: list[Job] = field(default_factory=list)
    slices: list[Rows] = field(default_factory=list)
    steps: int = 0

    def add(self, job: Job, steps: int) -> None:
        """Take a job's next steps in."""
        job.under_way = True
        self.jobs.append(job)
        self.slices.append(job.slice(steps))


class Scheduler:
    """The jobs of one engine, and the task that runs them turn by turn. Used from one event loop.

    on_turn hears how many rows a turn had; clock gives seconds, the same that deadlines are given in.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Executor,
        on_turn: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._on_turn = on_turn
        self._clock = clock
        self._jobs: list[Job] = []
        self._lines: set[asyncio.Task[None]] = set()
        self._turns: list[Turn] = []
        # Bidirectional rows cannot be cut: their backward direction begins at the end.
        self._sliceable = not engine.spec.bidirectional
        # Of one row's step, by the bit length of the number of rows beside it: many rows share what a turn costs.
        # And by whether the turn had one thread alone.
        self._step_seconds: dict[tuple[int, bool], float] = {}

    @property
    def engine(self) -> Engine:
        """Whose jobs these are."""
        return self._engine

    @property
    def busy(self) -> bool:
        """Whether a turn is under way or due."""
        return bool(self._lines)

    async def run(self, rows: Rows, deadline: float | None = None) -> Timings:
        """Run rows among the others; results are in their own arrays when this returns.

        Raises DeadlinePassed if the deadline passes before they begin (nothing ran then), or what the engine raises.
        A caller that is cancelled takes its rows out.
        """
        loop = asyncio.get_running_loop()
        job = Job(rows, deadline, self._clock(), loop.create_future(), int(rows.lengths.max(initial=0)))
        self._jobs.append(job)
        self._open_line()
        return await job.done

    def _open_line(self) -> None:
        """Begin to run turns, beside those that run, if they leave threads to others."""
        if len(self._lines) < self._engine.turns_at_once and all(turn.beside for turn in self._turns):
            self._lines.add(asyncio.get_running_loop().create_task(self._run_turns()))

    async def _run_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while turn := self._next_turn():
                run = self._engine.run_beside if turn.beside else self._engine.run
                try:
                    result = await loop.run_in_executor(self._pool, run_turn, run, turn.slices, self._clock)
                finally:
                    self._turns.remove(turn)
                self._account(turn, result)
                self._on_turn(sum(rows.lengths.size for rows in turn.slices))
        except Exception as error:  # not of one job: everybody who waits must hear of it
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs.clear()
        finally:
            self._lines.discard(asyncio.current_task())

    def _next_turn(self) -> Turn | None:
        """What to run now; None where nothing waits, or a turn has all threads."""
        self._drop_what_need_not_run()
        if not all(turn.beside for turn in self._turns):
            return None
        waiting = [job for job in self._jobs if not job.under_way]
        if not waiting:
            return None
        turn = self._plan(waiting)
        self._turns.append(turn)
        if len(turn.jobs) < len(waiting):
            self._open_line()
        return turn

    def _drop_what_need_not_run(self) -> None:
        """Leave out whoever has hung up, or whose deadline has passed before it began."""
        now = self._clock()
        for job in self._jobs:
            late = job.deadline is not None and now > job.deadline
            if late and job.begun is None and not job.under_way and not job.done.done():
                job.done.set_exception(passed())
        self._jobs = [job for job in self._jobs if not job.done.done()]

    def _plan(self, waiting: Sequence[Job]) -> Turn:
        """What to run of those who wait, cut to a turn's time.

        If there is enough for two turns, each is given one thread: nobody waits then for the last thread of a turn.
        """
        engine = self._engine
        chosen = self._choose(waiting)
        rows = sum(job.rows.lengths.size for job in chosen)
        beside = bool(self._turns)
        if engine.turns_at_once > 1 and not beside and len(chosen) < len(waiting):
            mine, all_left = (sum(job.left for job in jobs) for jobs in (chosen, waiting))
            enough = engine.turn_seconds / self._seconds_per_step(rows, beside=True)
            beside = min(mine, all_left - mine) > enough
        step = self._seconds_per_step(rows, beside=beside)
        turn = Turn(beside, steps=max(MIN_SLICE_STEPS, int(engine.turn_seconds / (step * max(rows, 1)))))
        for job in chosen:
            turn.add(job, turn.steps if self._sliceable else job.longest)
        return turn

    def _choose(self, waiting: Sequence[Job]) -> list[Job]:
        """Short jobs and long ones, each in order of arrival, as many rows of either as a turn has.

        The first of either is always in it: neither can starve the other. Long jobs that would only make each other
        wait are left out: once those before them fill the turn, with as many rows as the engine gains by.
        """
        engine = self._engine
        chosen: list[Job] = []
        for short in (True, False):
            taken, steps = 0, 0
            for job in waiting:
                rows = job.rows.lengths.size
                if job.short != short or (taken and taken + rows > engine.turn_rows):
                    continue
                full = not short and taken >= engine.full_rows
                if full and steps * self._seconds_per_step(taken, beside=True) > engine.turn_seconds:
                    break
                chosen.append(job)
                taken += rows
                steps += job.left
        return chosen

    def _seconds_per_step(self, rows: int, *, beside: bool) -> float:
        """What a step of one row costs among about so many; before any was measured, what the engine says."""
        engine = self._engine
        chain = engine.spec.states * engine.step_seconds / max(rows, 1)
        return self._step_seconds.get(
            (rows.bit_length(), beside), chain + engine.spec.flops_per_step / engine.flops_per_second
        )

    def _account(self, turn: Turn, result: "TurnResult") -> None:
        """Move the jobs of a turn on, tell those that have ended, and learn what a step costs."""
        total = sum(rows.steps for rows in turn.slices)
        if total:
            # Measured, and forgetting: the machine, its load and the mix of lengths change.
            rows = sum(job.rows.lengths.size for job in turn.jobs)
            known = self._seconds_per_step(rows, beside=turn.beside)
            self._step_seconds[rows.bit_length(), turn.beside] = known + 0.2 * (result.seconds / total - known)
        for job, failure in zip(turn.jobs, result.failures, strict=True):
            job.under_way = False
            job.begun = result.begun if job.begun is None else job.begun
            job.advanced += turn.steps if self._sliceable else job.longest
            job.compute += result.seconds
            if job.done.done():
                continue
            if failure is not None:
                job.done.set_exception(failure)
            elif job.advanced >= job.longest:
                waited = (job.begun or 0.0) - job.submitted
                job.done.set_result(Timings(queue=waited, compute=job.compute))


@dataclass(frozen=True, slots=True)
class TurnResult:
    """When a turn began, how long it took, and the failure of each slice, or None."""

    begun: float
    seconds: float
    failures: list[Exception | None]


Run = Callable[[Sequence[Rows]], None]


def run_turn(run: Run, slices: Sequence[Rows], clock: Callable[[], float]) -> TurnResult:
    """Run slices together. One that fails does not take the others with it."""
    begun = clock()
    kept = [_states(rows) for rows in slices] if len(slices) > 1 else []
    failures: list[Exception | None] = [None] * len(slices)
    try:
        run(slices)
    except Exception as error:
        failures = [error]
        if kept:  # whose fault it was shows when each runs alone, from the state before
            for rows, states in zip(slices, kept, strict=True):
                _restore(rows, states)
            failures = [_failure(run, rows) for rows in slices]
    return TurnResult(begun, clock() - begun, failures)


def passed() -> DeadlinePassed:
    """The error of a request whose time was up before its turn came."""
    return DeadlinePassed("the deadline in X-Request-Timeout-Ms passed before the request ran; it did not run")


def _failure(run: Run, rows: Rows) -> Exception | None:
    try:
        run([rows])
    except Exception as error:
        return error
    return None


def _states(rows: Rows) -> list[Floats]:
    """Copies of the states of these rows alone."""
    which = slice(None) if rows.slots is None else rows.slots
    return [part[:, which].copy() for part in (rows.h, rows.c) if part is not None]


def _restore(rows: Rows, states: list[Floats]) -> None:
    which = slice(None) if rows.slots is None else rows.slots
    for part, values in zip((rows.h, rows.c), states, strict=False):
        if part is not None:
            part[:, which] = values
