"""POST /rnn/forward: whole sequences in, outputs and final states out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from service.api.documents import Documents, accepted, aside
from service.api.negotiation import JSON, SAFETENSORS
from service.api.request import Reply, Request
from service.api.requests import ForwardRequest
from service.api.shapes import (
    SEQUENCE,
    SEQUENCES,
    Limits,
    initial_state,
    refuse_non_finite,
    returned,
    sequences,
)
from service.engine.interface import Floats, Rows
from service.engine.pooling import reads_outputs
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.wire.arrays import RaggedRows

SHORT_BYTES = 1024

DEFAULT_RETURNS = ("outputs", "h_n", "c_n", "predictions")


class Call(Protocol):
    """A valid request as rows with room for their results; values: how many numbers its states and reply hold."""

    rows: Rows
    values: int
    non_finite: str

    def results(self) -> dict[str, Floats]:
        """What was asked for: one vector of each step (N,·) or row (B,·), or a state (L·D,B,·)."""

    def reply(self) -> dict[str, Any]:
        """Results in the form in which the inputs came."""


@dataclass(frozen=True, slots=True)
class ModelHandler:
    """What the handlers have in common that run models."""

    inference: Inference
    documents: Documents
    limits: Limits

    async def run_call(self, request: Request, model: ModelVersion, call: Call, kind: str) -> Reply:
        """Run a call's rows and encode its reply. Raises as `Inference.run` does, or NonFiniteOutput."""
        rows = call.rows
        request.ran(rows, await self.inference.run(model, rows, request.deadline(), request.hung_up))
        fields = await aside(call.values, call.reply)
        fields["model"], fields["version"] = model.name, model.version
        body = await self.documents.encode(request, fields, kind)
        # NaN and infinity are printed as null; in short text that is found sooner than in the arrays.
        is_short = isinstance(body, bytes) and len(body) <= SHORT_BYTES
        if kind == JSON and call.non_finite == "error" and (not is_short or b"null" in body):
            for name, results in call.results().items():
                await aside(call.values, refuse_non_finite, name, results, rows.starts)
        return Reply(200, kind.encode(), body)


class Forward(ModelHandler):
    async def __call__(self, request: Request) -> Reply:
        document, came_as = await self.documents.decode(request)
        model = self.inference.registry.resolve_fields(document)
        asked, kind = accepted(ForwardRequest, request, document, came_as, model)
        call = await aside(asked.inputs.size, ForwardCall, asked, model, self.limits, kind == SAFETENSORS)
        return await self.run_call(request, model, call, kind)


class ForwardCall:
    """Whole sequences as a `Call`."""

    def __init__(self, request: ForwardRequest, model: ModelVersion, limits: Limits, pads: bool) -> None:
        """Check the shapes and make room. Raises InvalidRequest.

        pads: the reply's format has no lists of unequal length; they are padded, and come with their lengths.
        """
        spec = model.spec
        self.pads = pads
        limits.check_inputs(request.inputs)
        self.inputs = inputs = sequences(request.inputs, request.lengths, model, batch_first=request.batch_first)
        self.returns = returns = returned(request.returns, DEFAULT_RETURNS, model)
        self.non_finite: str = request.non_finite
        self.batch_first = request.batch_first
        # The last output of a reverse direction is not in h_n, which has its first.
        self.last_of_outputs = "last" in returns and spec.bidirectional
        predicts = (spec.out_features or 0) * ("predictions" in returns)
        pools = predicts and spec.pooling != "none"
        wants_outputs = "outputs" in returns or self.last_of_outputs or (pools and reads_outputs(spec))
        steps, batch = len(inputs.steps), inputs.lengths.size
        sent = batch * int(inputs.lengths.max()) if pads and inputs.time is None else steps
        made = returns | {"outputs"} if wants_outputs else returns
        self.values = limits.check_reply(spec, batch, sent, made)
        forms = SEQUENCES if inputs.batched else SEQUENCE
        h, c = initial_state(request.h0, request.c0, model, batch, forms, ("h0", "c0"))
        self.rows = rows = Rows(inputs.steps, inputs.starts, inputs.lengths, h, c)
        room = np.zeros if inputs.padded else np.empty
        if wants_outputs:
            rows.outputs = room((steps, spec.output_size), np.float32)
        if pools:
            rows.pooled = np.empty((batch, predicts), np.float32)
        elif predicts:
            rows.predictions = room((steps, predicts), np.float32)

    def results(self) -> dict[str, Floats]:
        """As `Call` says."""
        rows, last = self.rows, None
        if "last" in self.returns:
            last = rows.h[-1]
            if self.last_of_outputs and rows.outputs is not None:
                last = rows.outputs[rows.starts + rows.lengths - 1]
        predictions = rows.predictions if rows.pooled is None else rows.pooled
        found = {"outputs": rows.outputs, "last": last, "h_n": rows.h, "c_n": rows.c, "predictions": predictions}
        return {name: values for name, values in found.items() if name in self.returns and values is not None}

    def reply(self) -> dict[str, Any]:
        """As `Call` says."""
        inputs = self.inputs
        fields: dict[str, Any] = {}
        for name, values in self.results().items():
            if name == "outputs" or values is self.rows.predictions:
                fields[name] = self._by_sequence(values)
            elif inputs.batched:
                fields[name] = values
            else:  # of one row
                fields[name] = values[0] if values.ndim == 2 else np.ascontiguousarray(values[:, 0])
        if inputs.time is None and self.pads:
            fields["lengths"] = inputs.lengths
        return fields

    def _by_sequence(self, flat: Floats) -> Floats | RaggedRows:
        inputs = self.inputs
        if inputs.time is None:
            ends = np.empty(inputs.starts.size + 1, np.int64)  # sooner than np.append
            ends[:-1], ends[-1] = inputs.starts, len(flat)
            rows = RaggedRows(flat, ends)
            return rows.padded() if self.pads else rows
        if not inputs.batched:
            return flat
        shaped: Floats = flat.reshape(-1, inputs.time, flat.shape[-1])
        return shaped if self.batch_first else np.ascontiguousarray(shaped.swapaxes(0, 1))
