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
from dataclasses import dataclass, field, replace
from threading import Lock
from time import monotonic

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.errors import DeadlinePassed

SHORT_STEPS = 8
"""Rows of at most so many steps go before longer ones."""

MIN_SLICE_STEPS = 16
"""Fewest steps of a long row in a turn, however many rows there are: less would be spent on beginnings and ends."""

QUANTUM_SECONDS = 8e-3
"""Turns of so much together, and a job that has not ended goes behind the others."""

TURNS_TOGETHER = 4
"""Turns that a compute thread runs before another scheduler may have it. Between them it plans the next one itself: the
event loop may be busy."""


@dataclass(slots=True)
class Timings:
    """Where the time of a request went, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one request, and how far they have come. `advanced` counts steps, the same for all rows.

    `compute` is the seconds of its turns, `since_front` of those since it last went behind the others.
    """

    rows: Rows
    deadline: float | None
    submitted: float
    done: "asyncio.Future[Timings]"
    longest: int
    advanced: int = 0
    begun: float | None = None
    compute: float = 0.0
    since_front: float = 0.0
    ended: bool = False

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

    on_turn hears how many rows a turn had; clock gives seconds, the same that deadlines are given in.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Executor,
        on_turn: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
        turns_together: int = TURNS_TOGETHER,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._on_turn = on_turn
        self._clock = clock
        self._turns_together = turns_together
        # In the order in which they are to run. The event loop adds to it, and a compute thread takes out.
        self._jobs: list[Job] = []
        self._lock = Lock()
        self._turns: asyncio.Task[None] | None = None
        # Bidirectional rows cannot be cut: their backward direction begins at the end.
        self._sliceable = not engine.spec.bidirectional
        # Of one row's step, by the bit length of the number of rows beside it: many rows share what a turn costs.
        self._step_seconds: dict[int, float] = {}

    @property
    def engine(self) -> Engine:
        """Whose jobs these are."""
        return self._engine

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
        with self._lock:
            self._jobs.append(job)
        if self._turns is None:
            self._turns = loop.create_task(self._run_turns())
        return await job.done

    async def _run_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                for rows in await loop.run_in_executor(self._pool, self._some_turns):
                    self._on_turn(rows)
        except Exception as error:  # not of one job: everybody who waits must hear of it
            for job in self._jobs:
                _resolve(job.done, error)
            self._jobs.clear()
        finally:
            self._turns = None

    def _some_turns(self) -> list[int]:
        """A few turns, one after the other, on a compute thread; how many rows each of them had."""
        counts: list[int] = []
        while len(counts) < self._turns_together and self._drop_what_need_not_run():
            turn = self._plan()
            self._account(turn, run_turn(self._engine, turn.slices, self._clock))
            counts.append(sum(rows.lengths.size for rows in turn.slices))
        return counts

    def _drop_what_need_not_run(self) -> bool:
        """Leave out whoever has hung up, or whose deadline has passed before it began; says whether any are left."""
        now = self._clock()
        with self._lock:
            for job in self._jobs:
                if job.begun is None and job.deadline is not None and now > job.deadline:
                    _end(job, passed())
            self._jobs = [job for job in self._jobs if not job.ended and not job.done.done()]
            return bool(self._jobs)

    def _plan(self) -> Turn:
        """Short jobs and long ones, each in their order, as many rows of either as are worth it, cut to a turn's time.

        The first of either is always in it: neither can starve the other. Long ones wait rather than share a turn with
        more than the engine has a use for: then the first of them ends sooner, and the last no later.
        """
        engine, chosen = self._engine, list[Job]()
        with self._lock:
            for short, most in ((True, engine.turn_rows), (False, min(engine.rows_at_once, engine.turn_rows))):
                taken = 0
                for job in self._jobs:
                    if job.short == short and (not taken or taken + job.rows.lengths.size <= most):
                        chosen.append(job)
                        taken += job.rows.lengths.size
        rows = sum(job.rows.lengths.size for job in chosen)
        steps = max(MIN_SLICE_STEPS, int(engine.turn_seconds / (self._seconds_per_step(rows) * max(rows, 1))))
        turn = Turn(steps=steps)
        for job in chosen:
            turn.add(job, steps if self._sliceable else job.longest)
        return turn

    def _seconds_per_step(self, rows: int) -> float:
        """What a step of one row costs among about so many; before any was measured, what the engine says."""
        engine = self._engine
        chain = engine.spec.states * engine.step_seconds / max(rows, 1)
        return self._step_seconds.get(rows.bit_length(), chain + engine.spec.flops_per_step / engine.flops_per_second)

    def _account(self, turn: Turn, result: "TurnResult") -> None:
        """Move the jobs of a turn on, tell those that have ended, and learn what a step costs."""
        total = sum(rows.steps for rows in turn.slices)
        if total:
            # Measured, and forgetting: the machine, its load and the mix of lengths change.
            rows = sum(job.rows.lengths.size for job in turn.jobs)
            known = self._seconds_per_step(rows)
            self._step_seconds[rows.bit_length()] = known + 0.2 * (result.seconds / total - known)
        behind = []
        for job, failure in zip(turn.jobs, result.failures, strict=True):
            job.begun = result.begun if job.begun is None else job.begun
            job.advanced += turn.steps if self._sliceable else job.longest
            job.compute += result.seconds
            job.since_front += result.seconds
            if failure is not None:
                _end(job, failure)
            elif job.advanced >= job.longest:
                _end(job, Timings(queue=job.begun - job.submitted, compute=job.compute))
            elif job.since_front >= QUANTUM_SECONDS:
                job.since_front = 0.0
                behind.append(job)
        if behind:
            with self._lock:
                self._jobs = [job for job in self._jobs if job not in behind] + behind


@dataclass(frozen=True, slots=True)
class TurnResult:
    """When a turn began, how long it took, and the failure of each slice, or None."""

    begun: float
    seconds: float
    failures: list[Exception | None]


def run_turn(engine: Engine, slices: Sequence[Rows], clock: Callable[[], float]) -> TurnResult:
    """Run slices together. One that fails does not take the others with it."""
    begun = clock()
    kept = [_states(rows) for rows in slices] if len(slices) > 1 else []
    failures: list[Exception | None] = [None] * len(slices)
    try:
        engine.run(slices)
    except Exception as error:
        failures = [error]
        if kept:  # whose fault it was shows when each runs alone, from the state before
            for rows, states in zip(slices, kept, strict=True):
                _restore(rows, states)
            failures = [_failure(engine, rows) for rows in slices]
    return TurnResult(begun, clock() - begun, failures)


def passed() -> DeadlinePassed:
    """The error of a request whose time was up before its turn came."""
    return DeadlinePassed("the deadline in X-Request-Timeout-Ms passed before the request ran; it did not run")


def _end(job: Job, outcome: Timings | Exception) -> None:
    """Tell whoever waits for a job, from whatever thread."""
    job.ended = True
    job.done.get_loop().call_soon_threadsafe(_resolve, job.done, outcome)


def _resolve(done: "asyncio.Future[Timings]", outcome: Timings | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _failure(engine: Engine, rows: Rows) -> Exception | None:
    try:
        engine.run([rows])
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
