"""POST /rnn/forward: whole sequences in, outputs and final states out."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.api.body import BodyLimits
from service.api.documents import answer_format, encode_document, encode_large, read_document, refuse_non_finite
from service.api.exchange import Exchange
from service.api.negotiation import JSON, SAFETENSORS
from service.api.reply import Body, send_reply
from service.api.requests import ForwardRequest, parse
from service.api.shapes import Limits, Sequences, Target, refuse_too_much, sequences, state, wrong
from service.engine.interface import Floats, Rows
from service.serving.admission import HEAVY_BYTES, Admission
from service.serving.inference import Inference
from service.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Forward:
    """The handler, and what it needs."""

    inference: Inference
    limits: Limits
    body_limits: BodyLimits
    admission: Admission

    async def __call__(self, exchange: Exchange) -> None:
        """Answer; while the reply is being sent, nothing but its body is held any more."""
        with self.admission.enter(exchange.client, exchange.declared_bytes):
            body, kind = await self._answer(exchange)
            await send_reply(exchange, 200, kind.encode(), body)

    async def _answer(self, exchange: Exchange) -> tuple[Body, str]:
        """Translate, call, translate: the reply's body and its format."""
        document, came_as = await read_document(exchange, self.body_limits, self.admission)
        model = self.inference.registry.resolve_fields(document)
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self.limits, text=came_as == SAFETENSORS)
        kind = answer_format(exchange, came_as)
        work = ForwardWork.of(parse(ForwardRequest, document, target), target)
        timings = await self.inference.run(model, work.rows, exchange.deadline(), exchange.hung_up)
        exchange.rows, exchange.steps = work.rows.lengths.size, work.rows.steps
        exchange.book(timings.queue, timings.compute)
        if kind == JSON and work.request.non_finite == "error":
            work.refuse_non_finite()
        reply = work.reply(ragged=kind == JSON) | {"model": model.name, "version": model.version}
        del document, work  # the inputs need not wait for the reply to be encoded
        values = exchange.steps * model.spec.output_size
        if 4 * values < HEAVY_BYTES:
            return encode_document(exchange, reply, kind), kind
        return await encode_large(exchange, reply, kind, values, self.admission), kind


@dataclass(frozen=True, slots=True)
class ForwardWork:
    """A valid request as rows with room for their results."""

    request: ForwardRequest
    spec: ModelSpec
    inputs: Sequences
    returns: frozenset[str]
    rows: Rows

    @classmethod
    def of(cls, request: ForwardRequest, target: Target) -> "ForwardWork":
        """Check the shapes and make room. Raises InvalidRequest."""
        spec = target.spec
        inputs = sequences(request.inputs, request.lengths, target, batch_first=request.batch_first)
        returns = _returns(request, target)
        # The last output of a reverse direction is not in h_n, which has its first.
        wants_outputs = "outputs" in returns or ("last" in returns and spec.bidirectional)
        wants = returns | {"outputs"} if wants_outputs else returns
        refuse_too_much(inputs.batch, len(inputs.steps), wants, target)
        rows = Rows(
            inputs.steps, inputs.starts, inputs.lengths, h=_initial(request.h0, "h0", spec.state_size, inputs, spec)
        )
        if spec.has_cell_state:
            rows.c = _initial(request.c0, "c0", spec.hidden_size, inputs, spec)
        elif request.c0 is not None:
            raise wrong(f'c0 is for LSTMs; model "{target.name}" is of kind {spec.kind}', "c0")
        room = np.zeros if inputs.padded else np.empty
        if wants_outputs:
            rows.outputs = room((inputs.steps.shape[0], spec.output_size), np.float32)
        if "predictions" in returns and spec.out_features:
            rows.predictions = room((inputs.steps.shape[0], spec.out_features), np.float32)
        return cls(request, spec, inputs, returns, rows)

    def refuse_non_finite(self) -> None:
        """Raise NonFiniteOutput if a result that will be sent holds NaN or infinity."""
        starts = self.inputs.starts
        if "outputs" in self.returns and self.rows.outputs is not None:
            refuse_non_finite("outputs", self.rows.outputs, starts)
        if self.rows.predictions is not None:
            refuse_non_finite("predictions", self.rows.predictions, starts)
        if "last" in self.returns:
            refuse_non_finite("last", self._last())
        for name, states in (("h_n", self.rows.h), ("c_n", self.rows.c)):
            if name in self.returns and states is not None:
                refuse_non_finite(name, states.swapaxes(0, 1).reshape(self.inputs.batch, -1))

    def reply(self, *, ragged: bool) -> dict[str, Any]:
        """The fields of the reply; `ragged` says whether the format has lists of unequal length."""
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
        if self.spec.bidirectional:
            assert self.rows.outputs is not None  # noqa: S101  # `of` made room for them
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
        return shaped if self.request.batch_first else np.ascontiguousarray(shaped.swapaxes(0, 1))


def _returns(request: ForwardRequest, target: Target) -> frozenset[str]:
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


def _initial(value: Any, loc: str, width: int, inputs: Sequences, spec: ModelSpec) -> Floats:
    """A state (L·D, B, ·) that the engine may write into; zeros if none came."""
    shape = (spec.states, inputs.batch, width)
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
