"""POST /cell/step: one time step, from a state that the client keeps to a state that the client keeps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.api.body import BodyLimits
from service.api.documents import answer_format, encode_document, read_document, refuse_non_finite
from service.api.exchange import Exchange
from service.api.negotiation import JSON, NDJSON, SAFETENSORS, media_type
from service.api.reply import send_reply
from service.api.requests import StepRequest, parse
from service.api.session_step import SessionStep
from service.api.shapes import Limits, Target, refuse_too_much, steps, whole_rows, wrong
from service.api.stepping import initial, step_returns, steppable
from service.api.stream import Stream
from service.engine.interface import Floats, Rows
from service.serving.admission import Admission
from service.serving.inference import Inference


@dataclass(frozen=True, slots=True)
class Step:
    """The handler, and what it needs; NDJSON bodies are streams and go to their own."""

    inference: Inference
    limits: Limits
    body_limits: BodyLimits
    stream: Stream
    admission: Admission
    of_session: SessionStep

    async def __call__(self, exchange: Exchange) -> None:
        """Translate, call, translate; what names a session goes its own way."""
        if media_type(exchange.header(b"content-type")) == NDJSON:
            await self.stream(exchange)
            return
        document, came_as = await read_document(exchange, self.body_limits, self.admission)
        if "session" in document or b"x-session-id" in exchange.headers:
            await self.of_session(exchange, document, came_as)
            return
        model = steppable(self.inference.registry.resolve_fields(document))
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        kind = answer_format(exchange, came_as)
        work = StepWork.of(parse(StepRequest, document, target), target)
        timings = await self.inference.run(model, work.rows, exchange.deadline(), exchange.hung_up)
        exchange.rows = exchange.steps = work.rows.lengths.size
        exchange.book(timings.queue, timings.compute)
        body = encode_document(exchange, work.reply(model.name, model.version), kind)
        if kind == JSON and b"null" in body and work.request.non_finite == "error":
            work.refuse_non_finite()  # that is how NaN and infinity are printed; it may be in a name, too
        await send_reply(exchange, 200, kind.encode(), body)


@dataclass(frozen=True, slots=True)
class StepWork:
    """A valid step as rows of length 1, and the forms in which inputs and state came."""

    request: StepRequest
    returns: frozenset[str]
    rows: Rows
    batched: bool

    @classmethod
    def of(cls, request: StepRequest, target: Target) -> "StepWork":
        """Check the shapes and make room. Raises InvalidRequest."""
        spec = target.spec
        inputs, batched = steps(request.inputs, target)
        batch = len(inputs)
        returns = step_returns(request.returns, target, stateful=False)
        refuse_too_much(batch, batch, returns, target)
        rows = Rows(
            inputs,
            *whole_rows(batch, 1),
            h=initial(request.h, "h", (spec.num_layers, batch, spec.state_size), "P", batched),
        )
        if spec.has_cell_state:
            rows.c = initial(request.c, "c", (spec.num_layers, batch, spec.hidden_size), "H", batched)
        elif request.c is not None:
            raise wrong(f'c is for LSTMs; model "{target.name}" is of kind {spec.kind}', "c")
        if "predictions" in returns and spec.out_features:
            rows.predictions = np.empty((batch, spec.out_features), np.float32)
        return cls(request, returns, rows, batched)

    def refuse_non_finite(self) -> None:
        """Raise NonFiniteOutput if a result that will be sent holds NaN or infinity."""
        batch = self.rows.lengths.size
        if "h" in self.returns:  # outputs are its top layer
            refuse_non_finite("h", self.rows.h.swapaxes(0, 1).reshape(batch, -1))
        elif "outputs" in self.returns:
            refuse_non_finite("outputs", self.rows.h[-1])
        if "c" in self.returns and self.rows.c is not None:
            refuse_non_finite("c", self.rows.c.swapaxes(0, 1).reshape(batch, -1))
        if self.rows.predictions is not None:
            refuse_non_finite("predictions", self.rows.predictions)

    def reply(self, model: str, version: str) -> dict[str, Any]:
        """The fields of the reply. `outputs` is the top layer of the new state."""
        fields: dict[str, Any] = {}
        if "outputs" in self.returns:
            fields["outputs"] = self._row(self.rows.h[-1])
        if "h" in self.returns:
            fields["h"] = self._state(self.rows.h, self.request.h)
        if "c" in self.returns and self.rows.c is not None:
            fields["c"] = self._state(self.rows.c, self.request.c)
        if "predictions" in self.returns and self.rows.predictions is not None:
            fields["predictions"] = self._row(self.rows.predictions)
        fields["model"] = model
        fields["version"] = version
        return fields

    def _row(self, values: Floats) -> Floats:
        return values if self.batched else values[0]

    def _state(self, values: Floats, came: Any) -> Floats:
        """A state in the shape that was sent; if none was, without the axes that the inputs do not have."""
        if came is not None:
            return values.reshape(came.shape)
        layers, batch, width = values.shape
        kept = (layers,) * (layers > 1) + (batch,) * self.batched + (width,)
        return values.reshape(kept)
