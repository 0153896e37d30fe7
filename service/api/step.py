"""POST /cell/step: one time step from a state that the client keeps, or steps of a session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.api.documents import Documents
from service.api.forward import run_call
from service.api.negotiation import JSON, SAFETENSORS, reply_format
from service.api.request import Reply, Request
from service.api.requests import SessionStepRequest, StepRequest, parse
from service.api.shapes import (
    Limits,
    Target,
    refuse_cell_state,
    refuse_non_finite,
    refuse_too_much,
    steps,
    whole_rows,
    wrong,
)
from service.api.stepping import initial, refuse_another_model, session_id, step_returns, steppable, with_session
from service.engine.interface import Floats, Rows
from service.errors import NonFiniteOutput
from service.serving.inference import Inference
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Sessions
from service.sessions.stepper import NonFinite, Steps
from service.wire.arrays import Document

MAX_KEPT_BYTES = 4 * 2**20
"""Inputs and results of one request, which are kept with the session until its next step."""


@dataclass(frozen=True, slots=True)
class Step:
    """The handler, and what it needs."""

    inference: Inference
    documents: Documents
    limits: Limits
    sessions: Sessions
    session_steps: SessionSteps

    async def __call__(self, request: Request) -> Reply:
        """Translate, call, translate."""
        document, came_as = await self.documents.decode(request)
        if "session" in document or b"x-session-id" in request.headers:
            return await self._step_session(request, with_session(request, document), came_as)
        model = steppable(self.inference.registry.resolve_fields(document))
        request.model, request.version = model.name, model.version
        kind = reply_format(request.headers.get(b"accept", b""), came_as)
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        call = StepCall.of(parse(StepRequest, document, target), target)
        return await run_call(self.inference, self.documents, request, model, call, kind)

    async def _step_session(self, request: Request, fields: Document, came_as: str) -> Reply:
        """One step or several, run and kept exactly once."""
        session = await self.sessions.use(session_id(fields), request.session_owner)
        model = session.model
        request.model, request.version = model.name, model.version
        kind = reply_format(request.headers.get(b"accept", b""), came_as)
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        asked = parse(SessionStepRequest, fields, target)
        refuse_another_model(model, asked.model, asked.version)
        inputs, several = steps(asked.inputs, target)
        returns = step_returns(asked.returns, target, stateful=True)
        refuse_too_much(1, len(inputs), returns | {"outputs"}, target)
        _refuse_long(len(inputs), target)
        strict = kind == JSON and asked.non_finite == "error"
        terms = Terms(strict, bool(returns & {"h", "c"}), in_stream=False, book=request.book)
        try:
            ran = await self.session_steps.run(session, inputs, asked.step, terms, request.deadline())
        except NonFinite as error:
            raise NonFiniteOutput(
                f"the result of step {error.index + 1} of this request is not finite, and JSON has no NaN or infinity; "
                'the session is as it was; ask for safetensors, or send "non_finite": "null"'
            ) from None
        request.rows, request.steps = 1, len(inputs)
        reply = _session_reply(ran, returns, several=several)
        return Reply(200, kind.encode(), await self.documents.encode(request, reply, kind))


@dataclass(slots=True)
class StepCall:
    """One step of each row as a `Call`: a forward of one step, in shapes without the time axis."""

    rows: Rows
    returns: frozenset[str]
    non_finite: str
    batched: bool
    h_shape: tuple[int, ...] | None
    c_shape: tuple[int, ...] | None

    @classmethod
    def of(cls, request: StepRequest, target: Target) -> "StepCall":
        """Check the shapes and make room. Raises InvalidRequest."""
        spec = target.spec
        inputs, batched = steps(request.inputs, target)
        batch = len(inputs)
        returns = step_returns(request.returns, target, stateful=False)
        refuse_too_much(batch, batch, returns, target)
        refuse_cell_state(request.c, "c", target)
        h = initial(request.h, "h", (spec.num_layers, batch, spec.state_size), "P", batched)
        rows = Rows(inputs, *whole_rows(batch, 1), h)
        if spec.has_cell_state:
            rows.c = initial(request.c, "c", (spec.num_layers, batch, spec.hidden_size), "H", batched)
        if "predictions" in returns and spec.out_features:
            rows.predictions = np.empty((batch, spec.out_features), np.float32)
        h_shape = None if request.h is None else request.h.shape
        c_shape = None if request.c is None else request.c.shape
        return cls(rows, returns, request.non_finite, batched, h_shape, c_shape)

    def refuse_non_finite(self) -> None:
        """As `Call` says; names the row."""
        rows, batch = self.rows, self.rows.lengths.size
        if "h" in self.returns:  # outputs are its top layer
            refuse_non_finite("h", rows.h.swapaxes(0, 1).reshape(batch, -1))
        elif "outputs" in self.returns:
            refuse_non_finite("outputs", rows.h[-1])
        if "c" in self.returns and rows.c is not None:
            refuse_non_finite("c", rows.c.swapaxes(0, 1).reshape(batch, -1))
        if rows.predictions is not None:
            refuse_non_finite("predictions", rows.predictions)

    def reply(self, *, ragged: bool) -> dict[str, Any]:  # noqa: ARG002  # no axis of time, nothing is ragged
        """As `Call` says. `outputs` is the top layer of the new state."""
        fields: dict[str, Any] = {}
        rows, returns = self.rows, self.returns
        if "outputs" in returns:
            fields["outputs"] = rows.h[-1] if self.batched else rows.h[-1, 0]
        if "h" in returns:
            fields["h"] = self._state(rows.h, self.h_shape)
        if "c" in returns and rows.c is not None:
            fields["c"] = self._state(rows.c, self.c_shape)
        if "predictions" in returns and rows.predictions is not None:
            fields["predictions"] = rows.predictions if self.batched else rows.predictions[0]
        return fields

    def _state(self, values: Floats, came: tuple[int, ...] | None) -> Floats:
        """A state in the shape that was sent; if none was, without the axes that the inputs do not have."""
        if came is not None:
            return values.reshape(came)
        layers, batch, width = values.shape
        return values.reshape((layers,) * (layers > 1) + (batch,) * self.batched + (width,))


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


def _session_reply(ran: Sequence[Steps], returns: frozenset[str], *, several: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "outputs" in returns:
        fields["outputs"] = _rows([steps.outputs for steps in ran], several=several)
    if "predictions" in returns:
        parts = [steps.predictions for steps in ran if steps.predictions is not None]
        fields["predictions"] = _rows(parts, several=several)
    last = ran[-1]
    if returns & {"h", "c"}:
        fields |= {name: part for name, part in state_fields(last.h, last.c).items() if name in returns}
    return fields | {"step": last.first + last.count - 1}


def _rows(parts: Sequence[Floats], *, several: bool) -> Floats:
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rows if several else rows[0]
