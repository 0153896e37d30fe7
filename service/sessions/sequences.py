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
from typing import NamedTuple

from service.engine.interface import Floats
from service.errors import InvalidRequest, SessionGone, SessionNotFound
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Session, Sessions
from service.sessions.stepper import Steps
from service.stores.interface import Position, SessionRecord


class SequenceCall(NamedTuple):
    """What a request wants of a sequence.

    - model: the version that the request means
    - step: the number of its first step; None is the next in order
    - read: gives the inputs (k,I), k > 0, for a model; raises if they do not fit it
    """

    owner: bytes
    model: ModelVersion
    sequence_id: int | str
    start: bool
    end: bool
    step: int | None
    read: Callable[[ModelVersion], Floats]
    terms: Terms
    deadline: float | None = None

    def lacks(self, what: str) -> str:
        name = self.sequence_id if isinstance(self.sequence_id, int) else f'"{self.sequence_id:.80}"'
        return f'sequence {name} of model "{self.model.name}" {what}; send its first step with sequence_start'


@dataclass(frozen=True, slots=True)
class Sequences:
    sessions: Sessions
    steps: SessionSteps

    async def run(self, call: SequenceCall) -> tuple[ModelVersion, list[Steps]]:
        """Run a request's steps after those that came before it; gives the sequence's model, too.

        A call that fails leaves the sequence as it was. Raises as `SessionSteps.run` and `Sessions.open` do, and
        InvalidRequest if there is no such sequence.
        """
        # Sequences 5 and "5" are two.
        name = sha256(repr((call.owner, call.model.name, call.sequence_id)).encode()).digest()[:16]
        session_id = urlsafe_b64encode(name)[:22].decode()
        async with self.sessions.queue.turn(session_id):
            session, ran = await (self._start if call.start else self._go_on)(call, session_id)
            if call.end:
                await self.sessions.finish(session.record)
            return session.model, ran

    async def _start(self, call: SequenceCall, session_id: str) -> tuple[Session, list[Steps]]:
        if call.step not in (None, 1):
            raise _refusal("step", f"step is {call.step}; the first step of a sequence is 1")
        inputs = call.read(call.model)
        session = await self.sessions.draft(session_id, call.model, call.owner)
        session.record.position = session.record.position._replace(revision=randbits(62))

        async def begin(record: SessionRecord, _: Position, position: Position) -> bool:
            record.position = position
            await self.sessions.keep(record)
            return True

        return session, await self.steps.run_in_turn(session, inputs, None, call.terms, call.deadline, begin)

    async def _go_on(self, call: SequenceCall, session_id: str) -> tuple[Session, list[Steps]]:
        while True:
            try:
                session = await self.sessions.use(session_id, call.owner)
                if session.model is not call.model:  # or another process has begun it anew, on this model
                    session = await self.sessions.use(session_id, call.owner, fresh=True)
                inputs = call.read(session.model)
                return session, await self.steps.run_in_turn(session, inputs, call.step, call.terms, call.deadline)
            except SessionNotFound:
                raise _refusal("sequence_id", call.lacks("has not begun, or ended long ago")) from None
            except SessionGone as gone:
                if gone.reason == "restarted":  # by another process; this one knew the old session
                    continue
                reason = "" if gone.reason == "deleted" else f" ({gone.reason})"
                message = call.lacks(f"has ended{reason} after step {gone.step}")
                if gone.reason in ("deleted", "expired"):
                    raise _refusal("sequence_id", message) from None
                raise SessionGone(message, gone.reason, gone.step) from None


def _refusal(parameter: str, message: str) -> InvalidRequest:
    return InvalidRequest.at(message, "parameters", parameter)
