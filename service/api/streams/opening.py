"""What opens a stream: query parameters, the session header and the first message, as one request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service.api.request import Request
from service.api.requests import StreamRequest, validate
from service.api.shapes import ROW, initial_state, invalid, returned
from service.api.stepping import STREAM_RETURNS, refuse_another_model, steppable, wants_state, with_session
from service.api.streams.step_stream import StepStream, decode_line, located
from service.errors import ServiceError
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import SessionStepper, SessionSteps
from service.sessions.lifecycle import Session, Sessions
from service.sessions.stepper import StatelessStepper, Stepper
from service.wire.arrays import MAX_FIELDS


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens streams: from a state that lives as long as they, or of a session."""

    inference: Inference
    sessions: Sessions
    session_steps: SessionSteps

    async def open(self, request: Request, message: Mapping[str, Any]) -> StepStream:
        """The stream that query, header and first message ask for together.

        Raises InvalidRequest, NotSteppable, what `Registry.resolve` and the sessions raise.
        """
        fields = with_session(request, {**_from_query(request.query), **message})
        asked = validate(StreamRequest, fields)
        session = await self._session(request, asked) if asked.session else None
        model = session.model if session else steppable(self.inference.registry.resolve(asked.model, asked.version))
        returns = returned(asked.returns, STREAM_RETURNS, model, by_step=True)
        stepper: Stepper
        if session:
            stepper = SessionStepper(self.session_steps, session, with_state=wants_state(returns), times=request)
        else:
            stepper = await self._stateless(request, asked, model, returns)
        request.model, request.version = model.name, model.version
        binary = ["outputs"] if asked.returns is None else list(set(asked.returns))
        return StepStream(
            stepper,
            request,
            returns=returns,
            binary=binary[0] if len(binary) == 1 else None,
            refuse_non_finite=asked.non_finite == "error",
            timeout=request.timeout(),
            number=asked.step,
        )

    async def open_by_line(self, request: Request, line: bytes, place: int) -> tuple[StepStream, bool]:
        """The stream that a first line opens, and whether that is all that the line does. Raises a ServiceError."""
        fields = None
        if not line.startswith(b"["):
            try:
                fields = await decode_line(line)
            except ServiceError as error:
                raise located(error, "line", place) from None
        if isinstance(fields, Mapping) and "inputs" not in fields:
            return await self.open(request, fields), True
        return await self.open(request, {}), False

    async def _stateless(
        self, request: Request, asked: StreamRequest, model: ModelVersion, returns: frozenset[str]
    ) -> Stepper:
        h, c = initial_state(asked.h, asked.c, model, 1, ROW)
        return StatelessStepper(
            model,
            self.inference,
            await self.inference.registry.engine(model),
            h,
            c,
            predictions="predictions" in returns,
            with_state=wants_state(returns),
            book=request.book,
            done=0 if asked.step is None else asked.step - 1,
        )

    async def _session(self, request: Request, asked: StreamRequest) -> Session:
        for name, value in (("h", asked.h), ("c", asked.c)):
            if value is not None:
                raise invalid(f"{name} is what the session keeps; open another one from a state of yours", name)
        session = await self.sessions.use(asked.session or "", request.session_owner)
        refuse_another_model(session.model, asked.model, asked.version)
        return session


def _from_query(query: bytes) -> dict[str, Any]:
    """Query parameters as fields; `returns` is comma-separated there. Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise invalid(f"the query has more than {MAX_FIELDS} parameters", "query") from None
    for name, value in pairs:
        if name in fields:
            raise invalid(f"{name:.80} stands twice in the query", name[:80])
        fields[name] = value
    if "returns" in fields:
        fields["returns"] = [part for part in fields["returns"].split(",") if part]
    step = fields.get("step", "")
    if step.isascii() and step.isdigit() and len(step) < 19:
        fields["step"] = int(step)
    return fields
