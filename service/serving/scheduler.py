"""Continuous batching: the waiting rows of one model run together, in turns; rows join and leave between turns.

    requests ──► jobs ──► [ turn: some steps of many rows, one engine call ] ──► done
                   ▲                             │
                   └───── not yet at the end ◄───┘

A turn takes about the engine's `turn_seconds`: a long sequence is cut in time (its state is carried in place), so that
it holds up what arrives meanwhile no longer than that. Short sequences go first. Rows that generate go step by step
together, as many steps as the turn has time for. There is no waiting for a batch to fill: whenever the engine is free,
it takes what is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from service.engine.interface import Engine, Rows
from service.errors import DeadlinePassed
from service.serving.generation import Generation

SHORT_STEPS = 8  # rows of at most so many go before longer ones
MIN_SLICE_STEPS = 16  # of a long row in a turn, however many rows: less would be spent on beginnings and ends
LEARNING_RATE = 0.2  # weight of the newest turn in what a step costs

Outcome = tuple[float, float, list[Exception | None]]
"""Of a turn: when it began, the seconds that it took, and the failure of each of its parts."""


@dataclass(slots=True)
class Timings:
    """When rows came, began and ended (`monotonic()`), and the seconds of their turns; others have theirs between."""

    submitted: float = 0.0
    begun: float = 0.0
    ended: float = 0.0
    compute: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one request, and how far they have come: `advanced` steps, the same for all rows.

    A job that generates has one step of its rows to run, again and again; it is done at their end, or, if it goes
    `by_turn`, after each turn.
    """

    rows: Rows
    deadline: float | None
    submitted: float
    done: "asyncio.Future[Timings]"
    longest: int
    generation: Generation | None = None
    by_turn: bool = False
    advanced: int = 0
    begun: float | None = None
    compute: float = 0.0

    @property
    def kind(self) -> str:
        """Jobs of each kind have a share of a turn: no kind can hold up another."""
        return "generation" if self.generation else "short" if self.longest <= SHORT_STEPS else "long"

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
        elif self.by_turn or not self.generation.live if self.generation else self.advanced >= self.longest:
            self.done.set_result(Timings(self.submitted, self.begun, begun + seconds, self.compute))


@dataclass(eq=False)
class Scheduler:
    """The jobs of one engine, and the task that runs them turn by turn. Used from one event loop.

    on_turn hears how many rows a turn had; clock gives seconds, as deadlines do.
    """

    engine: Engine
    pool: Executor
    on_turn: Callable[[int], None] = lambda _: None
    clock: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        self._jobs: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        # What a step of one row costs: what the engine says, until turns were measured.
        engine, spec = self.engine, self.engine.spec
        self._step_seconds = spec.states * engine.step_seconds + spec.flops_per_step / engine.flops_per_second

    async def run(self, rows: Rows, deadline: float | None = None) -> Timings:
        """Run rows among the others; results are in their own arrays when this returns.

        Raises DeadlinePassed if the deadline passes before they begin (nothing ran then), or what the engine raises.
        A caller that is cancelled takes its rows out.
        """
        return await self._done(rows, deadline, int(rows.lengths.max(initial=0)))

    async def generate(self, generation: Generation, deadline: float | None = None, *, by_turn: bool) -> Timings:
        """Let rows generate to their end, or for a turn, among the others. Raises as `run` does."""
        return await self._done(generation.rows, deadline, generation.steps, generation, by_turn)

    async def _done(self, rows: Rows, deadline: float | None, longest: int, *generates: Any) -> Timings:
        loop = asyncio.get_running_loop()
        job = Job(rows, deadline, self.clock(), loop.create_future(), longest, *generates)
        self._jobs.append(job)
        if self._task is None:
            self._task = loop.create_task(self._run_turns())
        return await job.done

    async def _run_turns(self) -> None:
        try:
            while chosen := self._next_jobs():
                jobs = [job for job in chosen if not job.generation]
                generating = [job for job in chosen if job.generation]
                seconds = self.engine.turn_seconds / (2 if jobs and generating else 1)
                if jobs:
                    await self._run_slices(jobs, seconds)
                if generating:
                    generations = [job.generation for job in generating if job.generation]
                    await self._turn(generating, 0, partial(generate, self.engine, generations, seconds, self.clock))
                self.on_turn(sum(len(job.rows.lengths) for job in chosen))
        except Exception as error:  # not of one job: everybody who waits must hear of it
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs.clear()
        finally:
            self._task = None

    async def _run_slices(self, jobs: list[Job], seconds: float) -> None:
        rows = sum(len(job.rows.lengths) for job in jobs)
        steps = max(MIN_SLICE_STEPS, int(seconds / (self._step_seconds * max(rows, 1))))
        if self.engine.spec.bidirectional:  # cannot be cut: the backward direction begins at the end
            steps = max(job.longest for job in jobs)
        slices = [job.slice(steps) for job in jobs]
        seconds = await self._turn(jobs, steps, partial(run_turn, self.engine, slices, self.clock))
        if total := sum(slice_.steps for slice_ in slices):
            self._step_seconds += LEARNING_RATE * (seconds / total - self._step_seconds)

    async def _turn(self, jobs: list[Job], steps: int, turn: Callable[[], Outcome]) -> float:
        begun, seconds, failures = await asyncio.get_running_loop().run_in_executor(self.pool, turn)
        for job, failure in zip(jobs, failures, strict=True):
            job.advance(steps, begun, seconds, failure)
        return seconds

    def _next_jobs(self) -> list[Job]:
        """Jobs of each kind in order of arrival, as many rows of a kind as a turn has; the first is always in it."""
        now = self.clock()
        for job in self._jobs:
            if job.deadline is not None and now > job.deadline and job.begun is None and not job.done.done():
                job.done.set_exception(passed())
        self._jobs = [job for job in self._jobs if not job.done.done()]  # also without those whose client is gone
        chosen: list[Job] = []
        for kind in ("short", "long", "generation"):
            taken = 0
            for job in self._jobs:
                rows = len(job.rows.lengths)
                if job.kind == kind and (not taken or taken + rows <= self.engine.turn_rows):
                    chosen.append(job)
                    taken += rows
        return chosen


def run_turn(engine: Engine, slices: Sequence[Rows], clock: Callable[[], float]) -> Outcome:
    """Run slices together; one that fails does not take the others with it."""
    begun = clock()
    failures = _run_apart(engine, slices)
    return begun, clock() - begun, failures


def generate(engine: Engine, generations: Sequence[Generation], seconds: float, clock: Callable[[], float]) -> Outcome:
    """Run generations step by step together, for one step at least, and so long."""
    begun = clock()
    failures: dict[Generation, Exception | None] = dict.fromkeys(generations)
    live = list(generations)
    while live:
        failed = _run_apart(engine, [generation.rows for generation in live])
        for generation, failure in zip(live, failed, strict=True):
            try:
                if failure is not None:
                    raise failure
                generation.take()
            except Exception as error:
                failures[generation] = error
        if clock() - begun >= seconds:
            break
        live = [generation for generation in live if generation.live and failures[generation] is None]
    return begun, clock() - begun, list(failures.values())


def _run_apart(engine: Engine, slices: Sequence[Rows]) -> list[Exception | None]:
    """Run slices together; gives the failure of each."""

    def failure(slices: Sequence[Rows]) -> Exception | None:
        try:
            engine.run(slices)
        except Exception as error:
            return error
        return None

    if len(slices) == 1:
        return [failure(slices)]
    kept = [(rows.h.copy(), None if rows.c is None else rows.c.copy()) for rows in slices]
    failures = [failure(slices)] * len(slices)
    if failures[0]:  # whose fault it was shows when each runs alone, from the state before
        for rows, (h, c) in zip(slices, kept, strict=True):
            rows.h[...] = h
            if rows.c is not None:
                rows.c[...] = c
        failures = [failure([rows]) for rows in slices]
    return failures


def passed() -> DeadlinePassed:
    return DeadlinePassed("the request's own deadline passed before it ran; it did not run")
