"""POST /rnn/forward: whole sequences in, outputs and final states out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from service.api.documents import Documents
from service.api.negotiation import JSON, SAFETENSORS, reply_format
from service.api.request import Reply, Request
from service.api.requests import ForwardRequest, parse
from service.api.shapes import (
    Limits,
    Sequences,
    Target,
    refuse_cell_state,
    refuse_non_finite,
    refuse_too_much,
    sequences,
    state,
    wrong,
)
from service.engine.interface import Floats, Rows
from service.serving.inference import Inference
from service.serving.registry import ModelVersion

SHORT_BYTES = 4096


class Call(Protocol):
    """A valid request as rows with room for their results."""

    @property
    def rows(self) -> Rows: ...

    @property
    def non_finite(self) -> str: ...

    def reply(self, *, ragged: bool) -> dict[str, Any]:
        """The arrays of the reply; `ragged` says whether its format has lists of unequal length."""

    def refuse_non_finite(self) -> None:
        """Raise NonFiniteOutput if a result that will be sent holds NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The handler, and what it needs."""

    inference: Inference
    documents: Documents
    limits: Limits

    async def __call__(self, request: Request) -> Reply:
        """Translate, call, translate."""
        document, came_as = await self.documents.decode(request)
        model = self.inference.registry.resolve_fields(document)
        request.model, request.version = model.name, model.version
        kind = reply_format(request.headers.get(b"accept", b""), came_as)
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        call = ForwardCall.of(parse(ForwardRequest, document, target), target)
        return await run_call(self.inference, self.documents, request, model, call, kind)


async def run_call(
    inference: Inference, documents: Documents, request: Request, model: ModelVersion, call: Call, kind: str
) -> Reply:
    """Run a call's rows and encode its reply. Raises as `Inference.run` does, or NonFiniteOutput."""
    rows = call.rows
    timings = await inference.run(model, rows, request.deadline(), request.hung_up)
    request.rows, request.steps = rows.lengths.size, rows.steps
    request.book(timings.queue, timings.compute)
    fields = call.reply(ragged=kind == JSON) | {"model": model.name, "version": model.version}
    values = request.steps * model.spec.output_size if "outputs" in fields or "predictions" in fields else 0
    body = await documents.encode(request, fields, kind, values + request.rows * model.spec.state_values)
    # NaN and infinity are printed as null; in short text that is found sooner than in the arrays.
    is_short = isinstance(body, bytes) and len(body) <= SHORT_BYTES
    if kind == JSON and call.non_finite == "error" and (not is_short or b"null" in body):
        call.refuse_non_finite()
    return Reply(200, kind.encode(), body)


@dataclass(slots=True)
class ForwardCall:
    """Whole sequences as a `Call`."""

    rows: Rows
    inputs: Sequences
    returns: frozenset[str]
    non_finite: str
    batch_first: bool
    bidirectional: bool

    @classmethod
    def of(cls, request: ForwardRequest, target: Target) -> "ForwardCall":
        """Check the shapes and make room. Raises InvalidRequest."""
        spec = target.spec
        inputs = sequences(request.inputs, request.lengths, target, batch_first=request.batch_first)
        returns = _returns(request, target)
        # The last output of a reverse direction is not in h_n, which has its first.
        wants_outputs = "outputs" in returns or ("last" in returns and spec.bidirectional)
        steps = len(inputs.steps)
        refuse_too_much(inputs.batch, steps, returns | {"outputs"} if wants_outputs else returns, target)
        refuse_cell_state(request.c0, "c0", target)
        rows = Rows(
            inputs.steps, inputs.starts, inputs.lengths, _initial(request.h0, "h0", spec.state_size, inputs, target)
        )
        if spec.has_cell_state:
            rows.c = _initial(request.c0, "c0", spec.hidden_size, inputs, target)
        room = np.zeros if inputs.padded else np.empty
        if wants_outputs:
            rows.outputs = room((steps, spec.output_size), np.float32)
        if "predictions" in returns and spec.out_features:
            rows.predictions = room((steps, spec.out_features), np.float32)
        return cls(rows, inputs, returns, request.non_finite, request.batch_first, spec.bidirectional)

    def refuse_non_finite(self) -> None:
        """As `Call` says; names the row and the step."""
        starts, rows = self.inputs.starts, self.rows
        if "outputs" in self.returns and rows.outputs is not None:
            refuse_non_finite("outputs", rows.outputs, starts)
        if rows.predictions is not None:
            refuse_non_finite("predictions", rows.predictions, starts)
        if "last" in self.returns:
            refuse_non_finite("last", self._last())
        for name, states in (("h_n", rows.h), ("c_n", rows.c)):
            if name in self.returns and states is not None:
                refuse_non_finite(name, states.swapaxes(0, 1).reshape(self.inputs.batch, -1))

    def reply(self, *, ragged: bool) -> dict[str, Any]:
        """As `Call` says."""
        fields: dict[str, Any] = {}
        if "outputs" in self.returns:
            fields["outputs"] = self._shaped(self.rows.outputs, ragged=ragged)
        if "last" in self.returns:
            fields["last"] = self._unbatched(self._last(), axis=0)
        if "h_n" in self.returns:
            fields["h_n"] = self._unbatched(self.rows.h, axis=1)
        if "c_n" in self.returns:
            fields["c_n"] = self._unbatched(self.rows.c, axis=1)
        if "predictions" in self.returns:
            fields["predictions"] = self._shaped(self.rows.predictions, ragged=ragged)
        if self.inputs.time is None and not ragged:
            fields["lengths"] = self.inputs.lengths
        return fields

    def _last(self) -> Floats:
        if self.bidirectional and self.rows.outputs is not None:
            last: Floats = self.rows.outputs[self.inputs.starts + self.inputs.lengths - 1]
            return last
        return np.ascontiguousarray(self.rows.h[-1])

    def _unbatched(self, values: Floats | None, axis: int) -> Floats | None:
        return values if values is None or self.inputs.batched else np.ascontiguousarray(values.take(0, axis))

    def _shaped(self, flat: Floats | None, *, ragged: bool) -> Any:
        """Flat results in the form in which the inputs came."""
        if flat is None:
            return None
        inputs = self.inputs
        if inputs.time is None:
            parts = [flat[start : start + length] for start, length in zip(inputs.starts, inputs.lengths, strict=True)]
            return parts if ragged else _padded(parts)
        shaped = flat.reshape(inputs.batch, inputs.time, flat.shape[-1])
        if not inputs.batched:
            return shaped[0]
        return shaped if self.batch_first else np.ascontiguousarray(shaped.swapaxes(0, 1))


def _returns(request: ForwardRequest, target: Target) -> frozenset[str]:
    """What to send back. Raises InvalidRequest for what the model does not have."""
    spec = target.spec
    possible = {"outputs", "last", "h_n"}
    possible |= {"c_n"} if spec.has_cell_state else set()
    possible |= {"predictions"} if spec.out_features else set()
    if request.returns is None:
        return frozenset(possible - {"last"})
    for index, name in enumerate(request.returns):
        if name not in possible:
            why = "has no head" if name == "predictions" else f"is of kind {spec.kind}"
            raise wrong(f'returns[{index}] is {name}, and model "{target.name}" {why}', "returns", index)
    return frozenset(request.returns)


def _initial(value: Any, loc: str, width: int, inputs: Sequences, target: Target) -> Floats:
    """A state (L·D, B, ·) that the engine may write into; zeros if none came."""
    shape = (target.spec.states, inputs.batch, width)
    if value is None:
        return np.zeros(shape, np.float32)
    letter = "P" if loc == "h0" else "H"
    if inputs.batched:
        return state(value, loc, shape, f"(L·D,B,{letter})").copy()
    return state(value, loc, (shape[0], width), f"(L·D,{letter})").reshape(shape).copy()


def _padded(parts: list[Floats]) -> Floats:
    padded = np.zeros((len(parts), max(map(len, parts)), parts[0].shape[-1]), np.float32)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    return padded
