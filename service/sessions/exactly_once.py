"""The steps of sessions: each runs exactly once, whatever is lost, repeated or sent by two at a time.

A step is judged by its number, run, and committed together with what answers a retry, before anybody hears of it. The
commit names the revision that the step was computed from: if another process was first, the step is judged anew.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.engine.interface import Floats, Rows
from service.errors import StepConflict, StepOutOfOrder
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.sessions.cache import Shelf
from service.sessions.queue import Lanes
from service.sessions.replay import Block, NotKept, OtherInputs, kept_blocks, kept_single, replay
from service.sessions.state import decoded, encoded
from service.sessions.stepper import NonFinite, Steps
from service.stores.interface import Position, SessionRecord

_FIRST = np.zeros(1, np.int64)
_FIRST.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Terms:
    """How the caller of steps wants them.

    - refuse_non_finite: a result that is NaN or infinite is an error, and the state stays as it was
    - with_state: h and c are results
    - in_stream: of a stream, which may repeat any of its last steps, beside new ones; else a request is repeated whole
    - book: hears the seconds that each run waited and computed
    """

    refuse_non_finite: bool
    with_state: bool
    in_stream: bool
    book: Callable[[float, float], None]


class SessionSteps:
    """Runs steps of sessions; replay_bytes is how much of a stream's replies is kept for each."""

    def __init__(self, shelf: Shelf, lanes: Lanes, inference: Inference, replay_bytes: int) -> None:
        self._shelf = shelf
        self._lanes = lanes
        self._inference = inference
        self._replay_bytes = replay_bytes

    def replay_steps(self, model: ModelVersion) -> int:
        """How many of a stream's latest steps can be repeated at least, however they were cut into blocks."""
        spec = model.spec
        state = spec.num_layers * (spec.state_size + spec.has_cell_state * spec.hidden_size)
        per_step = 4 * (spec.input_size + spec.output_size + (spec.out_features or 0) + state) + 16
        return max(1, self._replay_bytes // per_step)

    async def run(
        self,
        record: SessionRecord,
        model: ModelVersion,
        inputs: Floats,
        step: int | None,
        terms: Terms,
        deadline: float | None = None,
    ) -> list[Steps]:
        """Run inputs (k,I) on a session that `Shelf.find` gave; step numbers the first, None is the next in order.

        Raises SessionBusy, SessionGone, StepConflict, StepOutOfOrder, NonFinite, or as `Inference.run` and the store
        do; the session then is as it was.
        """
        work = _Work(record.id, record.owner, model, inputs, step, terms, deadline)
        # Other inputs, or fewer, wait for their turn and are judged then: a stream may be cut anew after a broken line.
        while step is not None and (first := self._lanes.in_flight(record.id, step)) and first.is_of(inputs):
            if (done := await first.landing()) is not None:
                self._shelf.counts.replays += 1
                return _checked(done, terms)
        async with self._lanes.turn(record.id, step, inputs) as mine:
            done = await self._run(work)
            mine.land(done)
            return done

    async def _run(self, work: "_Work") -> list[Steps]:
        """Judge, compute and commit, until no other process was first."""
        counts, fresh = self._shelf.counts, False
        while True:
            record = await self._shelf.find(work.session, work.owner, fresh=fresh)
            try:
                replayed = _checked(_replayed(record, work), work.terms)
            except (StepConflict, StepOutOfOrder):
                if self._shelf.may_be_stale and not fresh:
                    fresh = True
                    continue
                counts.conflicts += 1
                raise
            ahead = sum(steps.count for steps in replayed)
            if ahead == len(work.inputs):
                counts.replays += 1
                return replayed
            try:
                steps, position = await self._compute(record, work, work.inputs[ahead:])
            except NonFinite as error:
                raise NonFinite(ahead + error.index) from None
            if await self._shelf.commit(record, position):
                counts.commits += 1
                counts.steps += steps.count
                return [*replayed, steps]
            fresh = True

    async def _compute(self, record: SessionRecord, work: "_Work", inputs: Floats) -> tuple[Steps, Position]:
        """Run inputs (k,I) from where the session stands; gives the results, and where it will stand."""
        spec, before, count = work.model.spec, record.position, len(inputs)
        h, c = decoded(spec, before.state)
        outputs = np.empty((count, spec.output_size), np.float32)
        rows = Rows(inputs, _FIRST, np.array((count,), np.int64), h, c, outputs)
        if spec.out_features:
            rows.predictions = np.empty((count, spec.out_features), np.float32)
        model = work.model
        if model.engine is None:  # dropped meanwhile; what would be loaded in its place may be other weights
            model = await self._inference.registry.pinned(*record.weights) or model
        timings = await self._inference.run(model, rows, work.deadline, engine=model.engine)
        work.terms.book(timings.queue, timings.compute)
        steps = Steps(before.step + 1, outputs, rows.predictions, h, c)
        if work.terms.refuse_non_finite:
            steps.refuse_non_finite(state=work.terms.with_state)
        state = encoded(h, c)
        if count == 1 and not work.terms.in_stream:
            kept = kept_single(inputs, rows.predictions)
        else:
            block = Block(steps.first, inputs, outputs, rows.predictions, state)
            kept = kept_blocks(before.replies if work.terms.in_stream else b"", block, self._replay_bytes, spec)
        now = self._shelf.clock()
        return steps, Position(before.revision + 1, before.step + count, state, kept, now)


@dataclass(slots=True)
class _Work:
    """What is to be done: the arguments of `SessionSteps.run`."""

    session: str
    owner: bytes
    model: ModelVersion
    inputs: Floats
    step: int | None
    terms: Terms
    deadline: float | None


@dataclass(slots=True)
class SessionStepper:
    """A session as the `Stepper` of a stream; `done` is the last step that the stream has heard of.

    strict and lenient are the stream's terms where a result must be finite, and where it need not.
    """

    model: ModelVersion
    steps: SessionSteps
    record: SessionRecord
    strict: Terms
    lenient: Terms
    done: int

    async def run(
        self, inputs: Floats, step: int | None, deadline: float | None, *, refuse_non_finite: bool
    ) -> list[Steps]:
        """As `Stepper.run`."""
        terms = self.strict if refuse_non_finite else self.lenient
        ran = await self.steps.run(self.record, self.model, inputs, step, terms, deadline)
        self.done = ran[-1].first + ran[-1].count - 1
        return ran


def _checked(done: list[Steps], terms: Terms) -> list[Steps]:
    """What was done for others, who may have allowed more. Raises NonFinite."""
    ahead = 0
    for steps in done if terms.refuse_non_finite else ():
        try:
            steps.refuse_non_finite(state=terms.with_state)
        except NonFinite as error:
            raise NonFinite(ahead + error.index) from None
        ahead += steps.count
    return done


def _replayed(record: SessionRecord, work: _Work) -> list[Steps]:
    """What can be answered from what is kept: the steps up to the last that was done. Raises by the step's number."""
    step, count, done = work.step, len(work.inputs), record.position.step
    if step is None or step == done + 1:
        return []
    repeated = done - step + 1
    if repeated < 1 or step < 1 or (repeated != count and not work.terms.in_stream):
        raise StepOutOfOrder(f"step is {step}; this session expects {done + 1}", done + 1)
    position = record.position
    try:
        kept = replay(position.replies, work.model.spec, done, position.state, step, work.inputs[:repeated])
    except NotKept:
        message = f"step is {step}; this session expects {done + 1}, and the reply of step {step} is not kept any more"
        raise StepOutOfOrder(message, done + 1) from None
    except OtherInputs as error:
        raise StepConflict(f"step {error.step} was done with other inputs; this session expects {done + 1}") from None
    if work.terms.with_state and not all(steps.h.size for steps in kept):
        message = f"step is {step}; this session expects {done + 1}, and the state after step {step} is not kept"
        raise StepOutOfOrder(message, done + 1)
    return kept
