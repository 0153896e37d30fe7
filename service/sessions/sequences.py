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
from service.errors import FieldError, InvalidRequest, SessionGone, SessionNotFound
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Session, Sessions
from service.sessions.stepper import Steps

Read = Callable[[ModelVersion], Floats]


class SequenceCall(NamedTuple):
    """What a request wants of a sequence; model is the version that the request means, step numbers its first step."""

    owner: bytes
    model: ModelVersion
    sequence_id: int | str
    start: bool
    end: bool
    step: int | None = None

    @property
    def session(self) -> str:
        """The session's id. Sequences 5 and "5" are two."""
        name = repr((self.owner, self.model.name, self.sequence_id)).encode()
        return urlsafe_b64encode(sha256(name).digest()[:16])[:22].decode()


@dataclass(frozen=True, slots=True)
class Sequences:
    sessions: Sessions
    steps: SessionSteps

    async def run(
        self, call: SequenceCall, read: Read, terms: Terms, deadline: float | None = None
    ) -> tuple[ModelVersion, list[Steps]]:
        """Run a request's steps after those that came before it; gives the sequence's model, too.

        read gives the inputs (k,I), k > 0, for a model, and raises if they do not fit it. A call that fails leaves the
        sequence as it was. Raises as `SessionSteps.run` does, and InvalidRequest if there is no such sequence.
        """
        name = call.session
        async with self.sessions.queue.turn(name):
            run = self._start if call.start else self._go_on
            session, ran = await run(name, call, read, terms, deadline)
            if call.end:
                await self.sessions.finish(session.record)
            return session.model, ran

    async def _start(
        self, name: str, call: SequenceCall, read: Read, terms: Terms, deadline: float | None
    ) -> tuple[Session, list[Steps]]:
        if call.step not in (None, 1):
            raise _invalid("step", f"step is {call.step}; the first step of a sequence is 1")
        inputs = read(call.model)
        session = await self.sessions.draft(name, call.model, call.owner)
        session.record.position = session.record.position._replace(revision=randbits(62))
        return session, await self.steps.begin(session, inputs, terms, self.sessions.replace, deadline)

    async def _go_on(
        self, name: str, call: SequenceCall, read: Read, terms: Terms, deadline: float | None
    ) -> tuple[Session, list[Steps]]:
        while True:
            try:
                session = await self.sessions.use(name, call.owner)
                if session.model is not call.model:  # or another process has begun it anew, on this model
                    session = await self.sessions.use(name, call.owner, fresh=True)
                inputs = read(session.model)
                return session, await self.steps.run_in_turn(session, inputs, call.step, terms, deadline)
            except SessionNotFound:
                raise _invalid("sequence_id", f"{_named(call)} has not begun, or ended long ago; {ADVICE}") from None
            except SessionGone as gone:
                if gone.reason == "restarted":  # by another process; this one knew the old session
                    continue
                reason = "" if gone.reason == "deleted" else f" ({gone.reason})"
                message = f"{_named(call)} has ended{reason} after step {gone.step}; {ADVICE}"
                if gone.reason in ("deleted", "expired"):
                    raise _invalid("sequence_id", message) from None
                raise SessionGone(message, gone.reason, gone.step) from None


ADVICE = "send its first step with sequence_start"


def _named(call: SequenceCall) -> str:
    name = f"{call.sequence_id}" if isinstance(call.sequence_id, int) else f'"{call.sequence_id:.80}"'
    return f'sequence {name} of model "{call.model.name}"'


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest([FieldError(("parameters", field), message)])
