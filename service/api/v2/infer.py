"""POST /v2/models/{model}/infer: the tensors of the Open Inference Protocol as a forward, or as a step."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from service.api.documents import HEAVY_BYTES, VIEW_BYTES, Documents, aside
from service.api.forward import Call, ForwardCall
from service.api.negotiation import JSON, OCTETS
from service.api.paths import infer_names
from service.api.request import Reply, Request
from service.api.requests import ForwardRequest, StepRequest, validate
from service.api.shapes import Limits, invalid
from service.api.step import StepCall, session_inputs, session_reply
from service.api.stepping import refuse_another_model, wants_state
from service.api.v2.models import resolve
from service.api.v2.requests import ONE_EACH, STEP, InferRequest, RequestParameters, Signature, Tensor, signature
from service.errors import MalformedRequest, ServiceError
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import Terms
from service.sessions.lifecycle import Session
from service.sessions.sequences import Sequence, SequenceCall, Sequences
from service.wire.arrays import Floats
from service.wire.open_inference import READ, Array, Cut, arrays, header, numbers
from service.wire.open_inference import cut as cut_body

LENGTH = b"inference-header-content-length"


class Target(NamedTuple):
    """A name of the protocol, a version if one is asked for, and the model that it means now, or why none."""

    name: str
    version: str | None
    model: ModelVersion | ServiceError

    @property
    def by_step(self) -> bool:
        return self.name.endswith(STEP)

    def current(self) -> ModelVersion:
        if isinstance(self.model, ServiceError):
            raise self.model
        return self.model


@dataclass(frozen=True, slots=True)
class Infer:
    inference: Inference
    documents: Documents
    limits: Limits
    sequences: Sequences

    async def __call__(self, request: Request) -> Reply:
        begun, target = perf_counter(), self._target(request)
        cut = _cut(request, target)
        asked = validate(InferRequest, cut.document)
        request.mark("decode", begun)
        fields: dict[str, Any] = {"model_name": target.name, "model_version": ""}
        if asked.id:
            fields["id"] = asked.id
        if _is_of_sequence(asked.parameters, target.name):
            results = await self._step_sequence(request, target, asked, cut)
            fields["parameters"] = {"sequence_id": asked.parameters.sequence_id, "step": results.pop("step")}
        else:
            model = target.current()
            given = await self._decode(request, asked, cut, signature(model.spec, by_step=target.by_step))
            del cut  # it holds the body
            results = await self._run(request, model, asked, given, by_step=target.by_step)
        fields["model_version"] = request.version
        return await self._encode(request, asked, fields, results)

    def _target(self, request: Request) -> Target:
        """What the path names. Raises as `resolve`, but for steps: sequences of a model that is gone may live on."""
        name, version = infer_names(request.path) or ("", None)
        try:
            model = resolve(self.inference.registry, name, version)
        except ServiceError as error:
            if not name.endswith(STEP):
                raise
            return Target(name, version, error)
        request.model, request.offered_as, request.version = model.name, name, model.version
        return Target(name, version, model)

    async def _decode(self, request: Request, asked: InferRequest, cut: Cut, tensors: Signature) -> Mapping[str, Array]:
        """A body's arrays, which are the model's. Raises MalformedBody, InvalidRequest."""
        body, begun = cut.body, perf_counter()
        _check(asked, tensors)
        many = len(body) > VIEW_BYTES or (len(body) > HEAVY_BYTES and cut.lists and (b"N" in body or b"I" in body))
        text, places = await asyncio.to_thread(numbers, asked.inputs, cut) if many else numbers(asked.inputs, cut)
        lists = await self.documents.decode_json(request, text) if cut.lists else {}
        arguments = asked.inputs, cut, lists, places
        found = await asyncio.to_thread(arrays, *arguments) if many else arrays(*arguments)
        if len(body) < HEAVY_BYTES:
            request.mark("decode", begun)
        return {name: one.reshape(-1) if tensors.inputs[name] is ONE_EACH else one for name, one in found.items()}

    async def _run(
        self, request: Request, model: ModelVersion, asked: InferRequest, given: Mapping[str, Array], *, by_step: bool
    ) -> dict[str, Floats]:
        """Run a forward, or a step from a state that the client keeps; gives what is wanted, batch first."""
        returns = [output["name"] for output in asked.outputs] or None
        fields: dict[str, Any] = {name: _swapped(name, values) for name, values in given.items()}
        fields["returns"] = returns
        call: Call
        if by_step:
            call = await aside(given["inputs"].size, StepCall, validate(StepRequest, fields), model, self.limits)
        else:
            read = validate(ForwardRequest, fields)
            call = await aside(given["inputs"].size, ForwardCall, read, model, self.limits, True)
        deadline = request.deadline(asked.parameters.timeout / 1e6 or None)
        request.ran(call.rows, await self.inference.run(model, call.rows, deadline, request.hung_up))

        def results() -> dict[str, Floats]:
            found = call.results() if by_step else call.reply()
            return {name: _swapped(name, found[name]) for name in returns or found}

        return await aside(call.values, results)

    async def _step_sequence(self, request: Request, target: Target, asked: InferRequest, cut: Cut) -> dict[str, Any]:
        """Run steps (k,I) of a sequence; gives what is wanted, and the number of the last as `step`."""
        said, names = asked.parameters, [output["name"] for output in asked.outputs] or None
        sequence = Sequence.of(request.owner, target.name.removesuffix(STEP), said.sequence_id)
        async with self.sequences.turn(sequence):
            # What has begun goes on with the tensors of its own weights, whatever the name means now.
            on = target.current() if said.sequence_start else await self.sequences.find(sequence, target.model)
            model = on.model if isinstance(on, Session) else on
            request.model, request.offered_as, request.version = model.name, target.name, model.version
            given = await self._decode(request, asked, cut, signature(model.spec, by_step=True))
            if states := given.keys() - {"inputs"}:
                raise invalid(f"{min(states)} is given; a sequence has the state after its last step", min(states))
            returns = frozenset(names or ())

            def read(model: ModelVersion) -> Floats:
                nonlocal returns
                refuse_another_model(model, None, target.version)
                inputs, returns, _ = session_inputs(given["inputs"], names, model, self.limits)
                return inputs

            terms = Terms(False, wants_state(returns), in_stream=False, times=request)
            deadline = request.deadline(said.timeout / 1e6 or None)
            call = SequenceCall(sequence, on, said.sequence_end, said.step, read, terms, deadline)
            model, ran = await self.sequences.run(call)
        request.version, request.rows, request.steps = model.version, 1, len(given["inputs"])
        results = session_reply(ran, returns, several=True)
        for state in results.keys() & {"h", "c"}:
            results[state] = results[state].reshape(1, model.spec.states, -1)
        return results

    async def _encode(
        self, request: Request, asked: InferRequest, fields: Mapping[str, Any], results: Mapping[str, Floats]
    ) -> Reply:
        """The reply: JSON, and after it the memory of those arrays that are wanted as bytes."""
        begun, default = perf_counter(), asked.parameters.binary_data_output
        said = {output["name"]: output.get("parameters", {}).get("binary_data") for output in asked.outputs}
        binary = [name for name in results if (default if said.get(name) is None else said[name])]
        text = header(fields, results, binary)
        parts: list[bytes | memoryview]
        if sum(values.nbytes for name, values in results.items() if name not in binary) >= HEAVY_BYTES:
            parts = [*await self.documents.in_pieces(request, "encode", text)]
        else:
            parts = [b"".join(text)]
            request.mark("encode", begun)
        kind, headers = JSON, []
        if binary:
            length = sum(map(len, parts))
            parts.append(b" " * (-length % 8))  # clients' views of the arrays are aligned then
            kind, headers = OCTETS, [(LENGTH, b"%d" % (length + len(parts[-1])))]
            parts += (results[name].data.cast("B") for name in binary)
        is_short = sum(map(len, parts)) < HEAVY_BYTES
        return Reply(200, kind.encode(), b"".join(parts) if is_short else parts, headers)


_BY_ROW = frozenset(("inputs", "lengths", "outputs", "last", "predictions"))
"""Tensors that are batch first everywhere; states have their layers first in the other calls."""


def _cut(request: Request, target: Target) -> Cut:
    """A body without its numbers. Raises MalformedBody, MalformedRequest."""
    body = request.body
    request.body = b""  # it need not be held any longer than it is read
    length = request.headers.get(LENGTH)
    if length is not None and not (length.isdigit() and len(length) < 20):
        raise MalformedRequest("Inference-Header-Content-Length must be a whole number of bytes")
    if length is None or int(length):
        return cut_body(body, None if length is None else int(length))
    tensors = signature(target.current().spec, by_step=target.by_step)
    return Cut(_raw(len(body), tensors.inputs["inputs"]), body, [], 0)


def _is_of_sequence(said: RequestParameters, name: str) -> bool:
    """Whether a request for the model of this name names a sequence. Raises InvalidRequest."""
    wrong = ""
    if isinstance(said.sequence_id, int) and not 0 <= said.sequence_id < 2**64:
        wrong = "expected 64 bits, or a string"
    elif said.sequence_id and not name.endswith(STEP):
        wrong = f"steps of sequences go to {name}{STEP}"
    elif not said.sequence_id and (said.sequence_start or said.sequence_end or said.step is not None):
        wrong = "0 and the empty string are none, and sequence_start, sequence_end and step need one"
    if wrong:
        raise invalid(f"sequence_id is {said.sequence_id!r:.80}; {wrong}", "parameters", "sequence_id")
    return bool(said.sequence_id)


def _swapped(name: str, values: Array) -> Any:
    """A tensor of that name with its first two axes swapped, if it is a state."""
    return values if name in _BY_ROW else np.ascontiguousarray(values.swapaxes(0, 1))


def _raw(size: int, tensor: Tensor) -> dict[str, Any]:
    """The request that a body means which is nothing but the bytes of `inputs`: one row, or rows of one step."""
    step = READ[tensor.datatype].itemsize * max(tensor.shape[-1], 1)
    if not size or size % step:
        raise invalid(f"the body has {size} bytes; expected {tensor.datatype}, {step} bytes a step", "inputs")
    free = max(axis for axis, length in enumerate(tensor.shape) if length == -1)
    shape = [size // step if axis == free else abs(length) for axis, length in enumerate(tensor.shape)]
    one = {"name": "inputs", "shape": shape, "datatype": tensor.datatype, "parameters": {"binary_data_size": size}}
    return {"inputs": [one], "parameters": {"binary_data_output": True}}


def _check(asked: InferRequest, tensors: Signature) -> None:
    """Raise InvalidRequest for what is none of the model's tensors, comes twice, or has another type or shape."""
    for field, given, known in (("inputs", asked.inputs, tensors.inputs), ("outputs", asked.outputs, tensors.outputs)):
        names = [one["name"] for one in given]
        for index, name in enumerate(names):
            if name not in known:
                raise invalid(f"{field}[{index}] is {name!r}; this model has {', '.join(known)}", field, index)
            if names.index(name) < index:
                raise invalid(f"{field}[{index}] is {name!r}, which comes twice", field, index)
        if field not in names and given is asked.inputs:
            raise invalid("the tensor named inputs is missing", "inputs")
    [batch] = [one["shape"][:1] or [-1] for one in asked.inputs if one["name"] == "inputs"]
    for one in asked.inputs:
        name, datatype, takes = one["name"], one["datatype"], tensors.inputs[one["name"]]
        shape = [*one["shape"], 1] if takes is ONE_EACH and len(one["shape"]) == 1 else one["shape"]
        wanted = [*([-1] if name == "inputs" else batch), *takes.shape[1:]]
        fits = datatype[0] == takes.datatype[0] and len(shape) == len(wanted)
        for size, came in zip(wanted, shape, strict=False):
            fits = fits and size in (-1, came)
        if not fits:
            expected = f"{takes.datatype} of shape {wanted}"
            raise invalid(f"{name} is {datatype} of shape {one['shape']}; expected {expected}", name)
