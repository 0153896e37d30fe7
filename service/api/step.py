"""POST /cell/step: one time step from a state that the client keeps, or steps of a session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.api.documents import accepted, aside
from service.api.forward import ModelHandler
from service.api.negotiation import JSON
from service.api.request import Reply, Request
from service.api.requests import SessionStepRequest, StepRequest
from service.api.shapes import (
    ROW,
    ROWS,
    Limits,
    Numbers,
    initial_state,
    invalid,
    returned,
    steps,
    whole_rows,
)
from service.api.stepping import STREAM_RETURNS, refuse_another_model, steppable, wants_state, with_session
from service.engine.interface import Floats, Rows
from service.errors import NonFiniteOutput
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Sessions
from service.sessions.stepper import NonFinite, Steps
from service.wire.arrays import Document

MAX_KEPT_BYTES = 4 * 2**20  # inputs and results of one request, which are kept with the session until its next step

DEFAULT_RETURNS = ("outputs", "h", "c", "predictions")


@dataclass(frozen=True, slots=True)
class Step(ModelHandler):
    sessions: Sessions
    session_steps: SessionSteps

    async def __call__(self, request: Request) -> Reply:
        document, came_as = await self.documents.decode(request)
        if "session" in document or b"x-session-id" in request.headers:
            return await self._step_session(request, with_session(request, document), came_as)
        model = steppable(self.inference.registry.resolve_fields(document))
        asked, kind = accepted(StepRequest, request, document, came_as, model)
        call = await aside(asked.inputs.size, StepCall, asked, model, self.limits)
        return await self.run_call(request, model, call, kind)

    async def _step_session(self, request: Request, fields: Document, came_as: str) -> Reply:
        session = await self.sessions.use(fields["session"], request.session_owner)
        model = session.model
        asked, kind = accepted(SessionStepRequest, request, fields, came_as, model)
        refuse_another_model(model, asked.model, asked.version)
        inputs, returns, several = session_inputs(asked.inputs, asked.returns, model, self.limits)
        strict = kind == JSON and asked.non_finite == "error"
        terms = Terms(strict, wants_state(returns), in_stream=False, times=request)
        try:
            ran = await self.session_steps.run(session, inputs, asked.step, terms, request.deadline())
        except NonFinite as error:
            raise NonFiniteOutput(
                f"the result of step {error.index + 1} of this request is not finite, and JSON has no NaN or infinity; "
                'the session is as it was; ask for safetensors, or send "non_finite": "null"'
            ) from None
        request.rows, request.steps = 1, len(inputs)
        reply = session_reply(ran, returns, several=several)
        return Reply(200, kind.encode(), await self.documents.encode(request, reply, kind))


class StepCall:
    """One step of each row as a `Call`: a forward of one step, in shapes without the time axis."""

    def __init__(self, request: StepRequest, model: ModelVersion, limits: Limits) -> None:
        """Check the shapes and make room. Raises InvalidRequest."""
        spec = model.spec
        inputs, self.batched = steps(request.inputs, model)
        batch = len(inputs)
        self.returns = returned(request.returns, DEFAULT_RETURNS, model, by_step=True)
        self.non_finite: str = request.non_finite
        limits.check_inputs(inputs)
        self.values = limits.check_reply(spec, batch, batch, self.returns, by_step=True)
        h, c = initial_state(request.h, request.c, model, batch, ROWS if self.batched else ROW)
        self.rows = Rows(inputs, *whole_rows(batch, 1), h, c)
        if "predictions" in self.returns:
            self.rows.predictions = np.empty((batch, spec.step_predictions), np.float32)
        self.state_shapes = {} if request.h is None else {"h": request.h.shape}
        if request.c is not None:
            self.state_shapes["c"] = request.c.shape

    def results(self) -> dict[str, Floats]:
        """As `Call` says. `outputs` is the top layer of the new state."""
        rows = self.rows
        found = {"outputs": rows.h[-1], "h": rows.h, "c": rows.c, "predictions": rows.predictions}
        return {name: values for name, values in found.items() if name in self.returns and values is not None}

    def reply(self) -> dict[str, Any]:
        """As `Call` says; a state is in the shape that was sent."""
        rows, returns, batched = self.rows, self.returns, self.batched
        fields: dict[str, Any] = {}
        if "outputs" in returns:
            fields["outputs"] = rows.h[-1] if batched else rows.h[-1, 0]
        for name, state in (("h", rows.h), ("c", rows.c)):
            if name in returns and state is not None:
                came = self.state_shapes.get(name)
                fields[name] = state.reshape(came) if came else squeezed(state, batched=batched)
        if rows.predictions is not None:
            fields["predictions"] = rows.predictions if batched else rows.predictions[0]
        return fields


def squeezed(state: Floats, *, batched: bool) -> Floats:
    """A state (L,B,·) without L if that is 1, and without B if not batched."""
    if not batched:
        state = state[:, 0]
    return state[0] if len(state) == 1 else np.ascontiguousarray(state)


def session_inputs(
    inputs: Numbers, returns: Sequence[str] | None, model: ModelVersion, limits: Limits
) -> tuple[Floats, frozenset[str], bool]:
    """Steps (k,I) of a session, what to send back, and whether the axis of k came. Raises InvalidRequest."""
    found, several = steps(inputs, model)
    wanted = returned(returns, STREAM_RETURNS, model, by_step=True)
    limits.check_inputs(found)
    count, spec = len(found), model.spec
    limits.check_reply(spec, 1, count, wanted | {"outputs"}, by_step=True)
    most = MAX_KEPT_BYTES // (4 * (spec.in_features + spec.output_size + spec.step_predictions))
    if count > most:  # its reply would be more than a session keeps for a retry
        message = f"inputs has {count} steps; a session of this model takes {most} in one request: send several"
        raise invalid(message, "inputs")
    return found, wanted, several


def session_reply(ran: Sequence[Steps], returns: frozenset[str], *, several: bool) -> dict[str, Any]:
    last = ran[-1]
    fields: dict[str, Any] = {}
    if "outputs" in returns:
        fields["outputs"] = _joined([steps.outputs for steps in ran], several=several)
    if "predictions" in returns:
        fields["predictions"] = _joined([p for steps in ran if (p := steps.predictions) is not None], several=several)
    for name, state in (("h", last.h), ("c", last.c)):
        if name in returns and state is not None:
            fields[name] = squeezed(state, batched=False)
    fields["step"] = last.first + last.count - 1
    return fields


def _joined(parts: Sequence[Floats], *, several: bool) -> Floats:
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rows if several else rows[0]
