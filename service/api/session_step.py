"""POST /cell/step for a session: one step or several, run and kept exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.api.documents import answer_format, encode_document
from service.api.exchange import Exchange
from service.api.negotiation import JSON, SAFETENSORS
from service.api.reply import send_reply
from service.api.requests import SessionStepRequest, parse
from service.api.shapes import Limits, Target, refuse_too_much, steps, wrong
from service.api.stepping import step_returns
from service.engine.interface import Floats
from service.errors import NonFiniteOutput
from service.sessions.exactly_once import SessionStepper, SessionSteps, Terms
from service.sessions.lifecycle import Session, Sessions
from service.sessions.stepper import NonFinite, Steps
from service.wire.arrays import Document

MAX_KEPT_BYTES = 4 * 2**20
"""Inputs and results of one request, which are kept with the session until its next step."""


@dataclass(frozen=True, slots=True)
class SessionStep:
    """The handler, and what it needs."""

    sessions: Sessions
    steps: SessionSteps
    limits: Limits

    async def __call__(self, exchange: Exchange, document: Document, came_as: str) -> None:
        """Translate, call, translate."""
        fields = with_session(exchange, document)
        session = await self.sessions.use(session_id(fields), exchange.session_owner)
        model = session.model
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        kind = answer_format(exchange, came_as)
        request = parse(SessionStepRequest, fields, target)
        refuse_another_model(session, request.model, request.version)
        inputs, several = steps(request.inputs, target)
        returns = step_returns(request.returns, target, stateful=True)
        refuse_too_much(1, len(inputs), returns | {"outputs"}, target)
        _refuse_long(len(inputs), target)
        strict = kind == JSON and request.non_finite == "error"
        terms = Terms(strict, bool(returns & {"h", "c"}), in_stream=False, book=exchange.book)
        try:
            ran = await self.steps.run(session, inputs, request.step, terms, exchange.deadline())
        except NonFinite as error:
            raise NonFiniteOutput(
                f"the result of step {error.index + 1} of this request is not finite, and JSON has no NaN or infinity; "
                'the session is as it was; ask for safetensors, or send "non_finite": "null"'
            ) from None
        exchange.rows, exchange.steps = 1, len(inputs)
        body = encode_document(exchange, _reply(ran, returns, several=several), kind)
        await send_reply(exchange, 200, kind.encode(), body)


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Gives streams the steppers of the sessions that they name."""

    sessions: Sessions
    steps: SessionSteps

    async def __call__(self, fields: Mapping[str, Any], exchange: Exchange) -> SessionStepper:
        """The stepper of `session` in valid fields. Raises SessionNotFound, SessionGone, InvalidRequest."""
        session = await self.sessions.use(fields["session"], exchange.session_owner)
        refuse_another_model(session, fields.get("model"), fields.get("version"))
        with_state = not {"h", "c"}.isdisjoint(fields.get("returns") or ())
        return SessionStepper(self.steps, session, Terms(True, with_state, in_stream=True, book=exchange.book))


def with_session(exchange: Exchange, fields: Document) -> Document:
    """The fields of a request, with the session that a header may name. Raises InvalidRequest if both do, apart."""
    header = exchange.header(b"x-session-id")
    if not header:
        return fields
    named = fields.get("session", header)
    if not isinstance(named, str) or named != header:  # an array is compared number by number
        raise wrong("session is not the one of X-Session-Id; name one", "session")
    return {**fields, "session": header}


def session_id(fields: Document) -> str:
    """The session that a request names. Raises InvalidRequest."""
    session = fields.get("session")
    if not isinstance(session, str):
        raise wrong("session is no string; expected the id that POST /cell/sessions gave", "session")
    return session


def refuse_another_model(session: Session, model: str | None, version: str | None) -> None:
    """Raise InvalidRequest if a request for a session names a model or version that is not the session's."""
    for name, asked, is_on in (("model", model, session.model.name), ("version", version, session.model.version)):
        if asked is not None and asked != is_on:
            raise wrong(f"{name} is {asked}; this session runs on {is_on}", name)


def state_fields(h: Floats, c: Floats | None) -> dict[str, Floats]:
    """A session's state h (L,1,P), c (L,1,H) as clients see it: (L,·), or (·) if L = 1."""
    found = {"h": h} if c is None else {"h": h, "c": c}
    return {name: part[0, 0] if len(part) == 1 else np.ascontiguousarray(part[:, 0]) for name, part in found.items()}


def _refuse_long(count: int, target: Target) -> None:
    """Raise InvalidRequest if the reply of so many steps is more than a session keeps for a retry."""
    spec = target.spec
    most = MAX_KEPT_BYTES // (4 * (spec.input_size + spec.output_size + (spec.out_features or 0)))
    if count > most:
        raise wrong(
            f"inputs has {count} steps; a session of this model takes {most} in one request: send several", "inputs"
        )


def _reply(ran: Sequence[Steps], returns: frozenset[str], *, several: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "outputs" in returns:
        fields["outputs"] = _rows([steps.outputs for steps in ran], several=several)
    if "predictions" in returns:
        parts = [steps.predictions for steps in ran if steps.predictions is not None]
        fields["predictions"] = _rows(parts, several=several)
    last = ran[-1]
    fields |= {name: part for name, part in state_fields(last.h, last.c).items() if name in returns}
    return fields | {"step": last.first + last.count - 1}


def _rows(parts: Sequence[Floats], *, several: bool) -> Floats:
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rows if several else rows[0]
