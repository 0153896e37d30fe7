"""Continuous batching: the waiting rows of one model run together, in turns; rows join and leave between turns.

    requests ──► jobs ──► [ turn: some steps of many rows, one engine call ] ──► done
                   ▲                             │
                   └───── not yet at the end ◄───┘

A turn takes about the engine's `turn_seconds`: a long sequence is cut in time (its state is carried in place), so that
it holds up what arrives meanwhile no longer than that. Short sequences go first. There is no waiting for a batch to
fill: whenever the engine is free, it takes what is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic

import numpy as np

from service.engine.interface import Engine, Rows
from service.errors import DeadlinePassed

SHORT_STEPS = 8  # rows of at most so many go before longer ones
MIN_SLICE_STEPS = 16  # of a long row in a turn, however many rows: less would be spent on beginnings and ends
LEARNING_RATE = 0.2  # weight of the newest turn in what a step costs


@dataclass(slots=True)
class Timings:
    """Where the time of a request went, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one request, and how far they have come: `advanced` steps, the same for all rows."""

    rows: Rows
    deadline: float | None
    submitted: float
    done: "asyncio.Future[Timings]"
    longest: int
    advanced: int = 0
    begun: float | None = None
    compute: float = 0.0

    def slice(self, steps: int) -> Rows:
        """The next steps of every row, over the same arrays; rows that have ended have none."""
        rows = self.rows
        if not self.advanced and steps >= self.longest:
            return rows
        lengths = np.clip(rows.lengths - self.advanced, 0, steps)
        return Rows(rows.inputs, rows.starts + self.advanced, lengths, rows.h, rows.c, rows.outputs, rows.predictions)

    def advance(self, steps: int, begun: float, seconds: float, failure: Exception | None) -> None:
        self.begun = begun if self.begun is None else self.begun
        self.advanced += steps
        self.compute += seconds
        if self.done.done():
            return
        if failure is not None:
            self.done.set_exception(failure)
        elif self.advanced >= self.longest:
            self.done.set_result(Timings(queue=self.begun - self.submitted, compute=self.compute))


class Scheduler:
    """The jobs of one engine, and the task that runs them turn by turn. Used from one event loop.

    on_turn hears how many rows a turn had; clock gives seconds, as deadlines do.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Executor,
        on_turn: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.engine = engine
        self._pool = pool
        self._on_turn = on_turn
        self._clock = clock
        self._jobs: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        # What a step of one row costs: what the engine says, until turns were measured.
        spec = engine.spec
        self._step_seconds = spec.states * engine.step_seconds + spec.flops_per_step / engine.flops_per_second

    @property
    def busy(self) -> bool:
        return self._task is not None

    async def run(self, rows: Rows, deadline: float | None = None) -> Timings:
        """Run rows among the others; results are in their own arrays when this returns.

        Raises DeadlinePassed if the deadline passes before they begin (nothing ran then), or what the engine raises.
        A caller that is cancelled takes its rows out.
        """
        loop = asyncio.get_running_loop()
        job = Job(rows, deadline, self._clock(), loop.create_future(), int(rows.lengths.max(initial=0)))
        self._jobs.append(job)
        if self._task is None:
            self._task = loop.create_task(self._run_turns())
        return await job.done

    async def _run_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while jobs := self._next_jobs():
                rows = sum(len(job.rows.lengths) for job in jobs)
                steps = max(MIN_SLICE_STEPS, int(self.engine.turn_seconds / (self._step_seconds * max(rows, 1))))
                if self.engine.spec.bidirectional:  # cannot be cut: the backward direction begins at the end
                    steps = max(job.longest for job in jobs)
                slices = [job.slice(steps) for job in jobs]
                turn = loop.run_in_executor(self._pool, run_turn, self.engine, slices, self._clock)
                begun, seconds, failures = await turn
                if total := sum(slice_.steps for slice_ in slices):
                    self._step_seconds += LEARNING_RATE * (seconds / total - self._step_seconds)
                for job, failure in zip(jobs, failures, strict=True):
                    job.advance(steps, begun, seconds, failure)
                self._on_turn(rows)
        except Exception as error:  # not of one job: everybody who waits must hear of it
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs.clear()
        finally:
            self._task = None

    def _next_jobs(self) -> list[Job]:
        """Short jobs and long ones, each in order of arrival, as many rows of either as a turn has.

        The first of either is always in it: neither can starve the other.
        """
        now = self._clock()
        for job in self._jobs:
            if job.deadline is not None and now > job.deadline and job.begun is None and not job.done.done():
                job.done.set_exception(passed())
        self._jobs = [job for job in self._jobs if not job.done.done()]  # also without those whose client is gone
        chosen: list[Job] = []
        for short in (True, False):
            taken = 0
            for job in self._jobs:
                rows = len(job.rows.lengths)
                if (job.longest <= SHORT_STEPS) == short and (not taken or taken + rows <= self.engine.turn_rows):
                    chosen.append(job)
                    taken += rows
        return chosen


def run_turn(
    engine: Engine, slices: Sequence[Rows], clock: Callable[[], float]
) -> tuple[float, float, list[Exception | None]]:
    """Run slices together; one that fails does not take the others with it.

    Returns when it began, the seconds that it took, and the failure of each slice.
    """

    def failure(slices: Sequence[Rows]) -> Exception | None:
        try:
            engine.run(slices)
        except Exception as error:
            return error
        return None

    begun = clock()
    kept = [(rows.h.copy(), None if rows.c is None else rows.c.copy()) for rows in slices]
    failures = [failure(slices)] * len(slices)
    if failures[0] and len(slices) > 1:  # whose fault it was shows when each runs alone, from the state before
        for rows, (h, c) in zip(slices, kept, strict=True):
            rows.h[...] = h
            if rows.c is not None:
                rows.c[...] = c
        failures = [failure([rows]) for rows in slices]
    return begun, clock() - begun, failures


def passed() -> DeadlinePassed:
    return DeadlinePassed("the deadline in X-Request-Timeout-Ms passed before the request ran; it did not run")
