"""Sequences of the Open Inference Protocol: sessions under names that their clients choose.

The session's id is a digest of the name, so every process finds it without a lookup. A start computes the first step,
then keeps a new session in place of whatever had this id. The revisions of the new session begin at a random number:
a step that another process has computed from the old session cannot be committed to it.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from secrets import randbits
from typing import NamedTuple, Self

from service.engine.interface import Floats
from service.errors import InvalidRequest, SessionGone, SessionNotFound
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Session, Sessions
from service.sessions.queue import Call
from service.sessions.stepper import Steps
from service.stores.interface import Position, SessionRecord


class Sequence(NamedTuple):
    """A sequence as its client names it, and the id of its session."""

    model: str
    sequence_id: int | str
    owner: bytes
    session_id: str

    @classmethod
    def of(cls, owner: bytes, model: str, sequence_id: int | str) -> Self:
        """5 and "5" are two."""
        name = sha256(repr((owner, model, sequence_id)).encode()).digest()[:16]
        return cls(model, sequence_id, owner, urlsafe_b64encode(name)[:22].decode())

    def lacks(self, what: str) -> str:
        name = self.sequence_id if isinstance(self.sequence_id, int) else f'"{self.sequence_id:.80}"'
        return f'sequence {name} of model "{self.model}" {what}; send its first step with sequence_start'


class SequenceCall(NamedTuple):
    """What a request wants of a sequence.

    - on: the model on which the sequence begins, or the session that goes on
    - end: whether the sequence ends after this
    - step: the number of its first step; None is the next in order
    - read: gives the inputs (k,I), k > 0, for a model; raises if they do not fit it
    """

    sequence: Sequence
    on: ModelVersion | Session
    end: bool
    step: int | None
    read: Callable[[ModelVersion], Floats]
    terms: Terms
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Sequences:
    sessions: Sessions
    steps: SessionSteps

    def turn(self, sequence: Sequence) -> Call:
        """What to enter with `async with` for `find` and `run`. Raises SessionBusy."""
        return self.sessions.queue.turn(sequence.session_id)

    async def find(self, sequence: Sequence, like: object) -> Session:
        """A sequence that has begun; if it is on another model than `like`, as it stands in the store.

        Raises as `Sessions.use` does, and InvalidRequest if there is no such sequence.
        """
        try:
            session = await self.sessions.use(sequence.session_id, sequence.owner)
            if session.model is not like:  # perhaps another process has begun it anew, on that model
                session = await self.sessions.use(sequence.session_id, sequence.owner, fresh=True)
        except SessionNotFound:
            raise _refusal("sequence_id", sequence.lacks("has not begun, or ended long ago")) from None
        except SessionGone as gone:
            reason = "" if gone.reason == "deleted" else f" ({gone.reason})"
            message = sequence.lacks(f"has ended{reason} after step {gone.step}")
            if gone.reason in ("deleted", "expired"):
                raise _refusal("sequence_id", message) from None
            raise SessionGone(message, gone.reason, gone.step) from None
        return session

    async def run(self, call: SequenceCall) -> tuple[ModelVersion, list[Steps]]:
        """Run a request's steps after those that came before it; gives the sequence's model, too.

        A call that fails leaves the sequence as it was. Raises as `SessionSteps.run`, `Sessions.open` and `find` do.
        """
        if isinstance(call.on, Session):
            session, ran = await self._go_on(call, call.on)
        else:
            session, ran = await self._start(call, call.on)
        if call.end:
            await self.sessions.finish(session.record)
        return session.model, ran

    async def _start(self, call: SequenceCall, model: ModelVersion) -> tuple[Session, list[Steps]]:
        if call.step not in (None, 1):
            raise _refusal("step", f"step is {call.step}; the first step of a sequence is 1")
        inputs = call.read(model)
        session = await self.sessions.draft(call.sequence.session_id, model, call.sequence.owner)
        session.record.position = session.record.position._replace(revision=randbits(62))

        async def begin(record: SessionRecord, _: Position, position: Position) -> bool:
            record.position = position
            await self.sessions.keep(record)
            return True

        return session, await self.steps.run_in_turn(session, inputs, None, call.terms, call.deadline, begin)

    async def _go_on(self, call: SequenceCall, session: Session) -> tuple[Session, list[Steps]]:
        while True:
            try:
                inputs = call.read(session.model)
                return session, await self.steps.run_in_turn(session, inputs, call.step, call.terms, call.deadline)
            except (SessionGone, SessionNotFound):  # it has ended, or another process has begun it anew
                session = await self.find(call.sequence, session.model)


def _refusal(parameter: str, message: str) -> InvalidRequest:
    return InvalidRequest.at(message, "parameters", parameter)
