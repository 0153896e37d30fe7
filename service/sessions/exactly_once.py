"""The steps of sessions: each runs exactly once, whatever is lost, repeated or sent by two at a time.

    use ─► copies under way? ─► turn ─► done already? ─► compute ─► commit ─► reply
                                 ▲                                    │
                                 └── another process was first ◄──────┘

A step is judged by its number, run, and committed together with what answers a retry, before the reply is sent. The
commit names the revision that the step was computed from: if another process was first, the step is judged again.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import NamedTuple, Protocol, TypeVar

from service.engine.interface import Floats
from service.errors import NonFiniteOutput, SessionGone, StepConflict, StepOutOfOrder
from service.serving.generation import Generation
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.serving.scheduler import Timings
from service.sessions.cache import SessionCache
from service.sessions.lifecycle import Session
from service.sessions.queue import SessionQueue
from service.sessions.replay import (
    decode_state,
    encode_state,
    keep_generation,
    keep_one,
    keep_steps,
    out_of_order,
    replay,
    replay_generation,
    step_bytes,
)
from service.sessions.stepper import NonFinite, Steps, check_finite, prepare
from service.stores.interface import Position, SessionRecord

Result = TypeVar("Result")
Commit = Callable[[SessionRecord, Position, Position], Awaitable[bool]]


class Progress(NamedTuple):
    """How many steps a session has advanced, its new state, and what answers a retry."""

    steps: int
    state: bytes
    kept: bytes


class StageTimes(Protocol):
    """What hears how long the stages of a request take."""

    def mark(self, stage: str, since: float) -> float: ...

    def book(self, timings: Timings) -> None: ...


class Terms(NamedTuple):
    """How the caller of steps wants them."""

    refuse_non_finite: bool  # a result that is NaN or infinite is an error, and the state stays as it was
    with_state: bool  # h and c are results
    in_stream: bool  # any of the last steps may be repeated, beside new ones; else a request is repeated whole
    times: StageTimes

    def checked(self, done: list[Steps]) -> list[Steps]:
        """Raises NonFinite, if that is refused."""
        if self.refuse_non_finite:
            check_finite(done, state=self.with_state)
        return done

    def met_by(self, done: list[Steps]) -> bool:
        """Whether the states that the caller wants are known."""
        return not self.with_state or all(steps.h.size for steps in done)


class SessionSteps:
    """Runs steps of sessions; replay_bytes is how much of a stream's replies is kept for each."""

    def __init__(self, cache: SessionCache, queue: SessionQueue, inference: Inference, replay_bytes: int) -> None:
        self._cache = cache
        self._queue = queue
        self._inference = inference
        self._replay_bytes = replay_bytes

    def replay_steps(self, model: ModelVersion) -> int:
        """How many of a stream's latest steps can be repeated at least, however they were cut into blocks."""
        return max(1, self._replay_bytes // step_bytes(model.spec))

    async def again(self, session: Session, *, fresh: bool = False) -> Session:
        """Raises SessionNotFound, SessionGone; with reason "restarted" if a sequence has begun in its place."""
        was = session.record
        record = await self._cache.find(was.id, was.owner, fresh=fresh)
        if record.created_at != was.created_at:
            message = "this session has ended: another one has begun in its place"
            raise SessionGone(message, "restarted", was.position.step)
        return session._replace(record=record)

    async def run(
        self, session: Session, inputs: Floats, step: int | None, terms: Terms, deadline: float | None = None
    ) -> list[Steps]:
        """Run inputs (k,I) on a session just found; step numbers the first, None is the next in order.

        Raises SessionBusy, SessionGone, StepConflict, StepOutOfOrder, NonFinite, or as `Inference.run` and the store
        do; the session then is as it was.
        """
        name = session.record.id
        # Other inputs, or fewer, wait for their turn and are judged then: a stream may be cut anew after a broken line.
        while step is not None and (same := self._queue.same(name, step, inputs)):
            done = await same.outcome()
            if done is not None and terms.met_by(done):
                self._cache.counts.replays += 1
                return terms.checked(done)
            session = await self.again(session)
        async with self._queue.turn(name, step, inputs) as call:
            if call.waited:
                session = await self.again(session)
            call.result = await self.run_in_turn(session, inputs, step, terms, deadline)
            return call.result

    async def generate(
        self,
        session: Session,
        generation: Generation,
        step: int | None,
        digest: bytes,
        check: Callable[[], None],
        times: StageTimes,
        deadline: float | None = None,
    ) -> int:
        """Run a generation of one row on a session just found, or fill it again; gives the number of its first step.

        step is as for `run`; digest is of what a retry must have in common with the first try; check raises what
        keeps results from being committed. Raises as `run` does.
        """

        async def attempt(session: Session) -> tuple[int, Progress | None]:
            before = session.record.position
            h, c = decode_state(session.model.spec, before.state)
            generation.begin(h, c)
            if step not in (None, before.step + 1):
                replay_generation(before, generation, step or 0, digest)
                check()
                return before.step + 1 - generation.step, None
            if generation.sampling:
                generation.sampling.firsts[:] = before.step + 1
            turns = self._inference.generate(session.model, generation, deadline, engine=session.engine)
            async with aclosing(turns):
                async for timings in turns:
                    times.book(timings)
            check()
            return before.step + 1, Progress(generation.step, encode_state(h, c), keep_generation(generation, digest))

        async with self._queue.turn(session.record.id) as call:
            if call.waited:
                session = await self.again(session)
            return await self._once(session, step, times, attempt)

    async def run_in_turn(
        self,
        session: Session,
        inputs: Floats,
        step: int | None,
        terms: Terms,
        deadline: float | None,
        begin: Commit | None = None,
    ) -> list[Steps]:
        """As `run`, for a caller who has the turn; begin keeps a session that is not stored yet with these steps."""

        async def attempt(session: Session) -> tuple[list[Steps], Progress | None]:
            before, spec = session.record.position, session.model.spec
            done = _done_already(session, inputs, step, terms)
            new = inputs[sum(steps.count for steps in done) :] if done else inputs
            if not len(new):
                return terms.checked(done), None
            h, c = decode_state(spec, before.state)
            steps, rows = prepare(spec, before.step + 1, new, h, c)
            timings = await self._inference.run(session.model, rows, deadline, engine=session.engine)
            terms.times.book(timings)
            ran = terms.checked([*done, steps])
            if terms.in_stream or len(new) > 1:
                earlier = before.replies if terms.in_stream else b""
                kept = keep_steps(earlier, new, steps, self._replay_bytes, spec)
            else:
                kept = keep_one(new, steps)
            return ran, Progress(len(new), encode_state(steps.h, steps.c), kept)

        return await self._once(session, step, terms.times, attempt, begin)

    async def _once(
        self,
        session: Session,
        step: int | None,
        times: StageTimes,
        attempt: Callable[[Session], Awaitable[tuple[Result, Progress | None]]],
        begin: Commit | None = None,
    ) -> Result:
        """Attempt from where the session stands, and commit the progress; None says that all was done before."""
        counts = self._cache.counts
        # Else another process may have advanced, reset or ended the session.
        as_stored = begin is not None or not self._cache.store.shared
        if not as_stored and step is not None and step <= session.record.position.step:  # no commit checks a repeat
            as_stored, session = True, await self.again(session, fresh=True)
        while True:
            before = session.record.position
            try:
                result, progress = await attempt(session)
                if progress is None:
                    counts.replays += 1
                    return result
                last, now = before.step + progress.steps, self._cache.clock()
                position = Position(before.revision + 1, last, progress.state, progress.kept, now)
                begun = perf_counter()
                try:
                    committed = await (begin or self._cache.commit)(session.record, before, position)
                finally:
                    times.mark("commit", begun)
                if committed:
                    counts.commits += 1
                    counts.steps += progress.steps
                    return result
            except (StepConflict, StepOutOfOrder, NonFinite, NonFiniteOutput) as error:
                if as_stored:
                    counts.conflicts += isinstance(error, StepConflict | StepOutOfOrder)
                    raise
            as_stored, session = True, await self.again(session, fresh=True)


class SessionStepper:
    """A session as the `Stepper` of a stream; with_state and times are as in `Terms`."""

    def __init__(self, steps: SessionSteps, session: Session, *, with_state: bool, times: StageTimes) -> None:
        self.model = session.model
        self.done = session.record.position.step  # the last that the stream has heard of
        self._steps = steps
        self._session = session
        self._with_state = with_state
        self._times = times

    async def run(
        self, inputs: Floats, step: int | None, deadline: float | None, *, refuse_non_finite: bool
    ) -> list[Steps]:
        session = await self._steps.again(self._session)
        terms = Terms(refuse_non_finite, self._with_state, in_stream=True, times=self._times)
        ran = await self._steps.run(session, inputs, step, terms, deadline)
        self.done = ran[-1].first + ran[-1].count - 1
        return ran


def _done_already(session: Session, inputs: Floats, step: int | None, terms: Terms) -> list[Steps]:
    """The steps among the asked ones that have been done. Raises StepConflict, StepOutOfOrder."""
    position = session.record.position
    if step is None or step == position.step + 1:
        return []
    repeated = position.step + 1 - step
    if repeated < 1 or step < 1 or (repeated != len(inputs) and not terms.in_stream):
        raise out_of_order(step, position)
    done = replay(position, session.model.spec, step, inputs[:repeated])
    if not terms.met_by(done):
        raise out_of_order(step, position, f", and the state after step {step} is not kept")
    return done
