"""POST /v2/models/{model}/infer: the tensors of the Open Inference Protocol as a forward, or as a step."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from service.api.documents import HEAVY_BYTES, VIEW_BYTES, Documents
from service.api.forward import Call, forward_call, run_rows
from service.api.negotiation import JSON, OCTETS
from service.api.paths import infer_names
from service.api.request import Reply, Request
from service.api.requests import ForwardRequest, StepRequest, validate
from service.api.shapes import Limits, invalid
from service.api.step import StepCall
from service.api.stepping import steppable
from service.api.v2.requests import STEP, InferInput, InferOutput, InferRequest, Signature, TensorSpec, signature
from service.errors import MalformedRequest
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.wire import open_inference
from service.wire.arrays import Floats
from service.wire.open_inference import READ, Array, Cut

LENGTH = b"inference-header-content-length"

_STATES_IN, _STATES_OUT = ("h0", "c0", "h", "c"), ("h_n", "c_n", "h", "c")


@dataclass(frozen=True, slots=True)
class Infer:
    inference: Inference
    documents: Documents
    limits: Limits

    async def __call__(self, request: Request) -> Reply:
        name, version = infer_names(request.path) or ("", None)
        by_step = name.endswith(STEP)
        model = self.inference.registry.resolve(name.removesuffix(STEP), version)
        request.model, request.version = model.name, model.version
        tensors = signature(steppable(model).spec if by_step else model.spec, by_step=by_step)
        asked, arrays = await self._decode(request, tensors)
        if asked.parameters.sequence_id:  # a sequence's step runs in its session, from here on
            raise invalid(f"sequence_id is given; {name} has no sequences", "parameters", "sequence_id")
        results = await self._run(request, model, asked, arrays, by_step=by_step)
        fields = {"model_name": name, "model_version": model.version} | ({"id": asked.id} if asked.id else {})
        return await self._encode(request, asked, fields, results)

    async def _decode(self, request: Request, tensors: Signature) -> tuple[InferRequest, Mapping[str, Array]]:
        """A body's request and arrays, which are the model's. Raises MalformedBody, InvalidRequest."""
        body, begun = request.body, perf_counter()
        request.body = b""  # it need not be held any longer than it is read
        length = request.headers.get(LENGTH)
        if length is not None and not (length.isdigit() and len(length) < 20):
            raise MalformedRequest("Inference-Header-Content-Length must be a whole number of bytes")
        if length is not None and not int(length):
            asked, cut = _raw(body, tensors.inputs["inputs"]), Cut({}, body, [], 0)
        else:
            cut = open_inference.cut(body, None if length is None else int(length))
            asked = validate(InferRequest, cut.document)
        _check(asked, tensors)
        reading = open_inference.arrays(asked.inputs, cut)
        if len(body) >= HEAVY_BYTES and cut.lists:
            return asked, (await self.documents.in_pieces(request, "decode", reading))[-1]
        *_, arrays = await asyncio.to_thread(list, reading) if len(body) > VIEW_BYTES else reading
        request.mark("decode", begun)
        return asked, arrays

    async def _run(
        self, request: Request, model: ModelVersion, asked: InferRequest, arrays: Mapping[str, Array], *, by_step: bool
    ) -> dict[str, Floats]:
        """Run a forward, or a step from a state that the client keeps; gives what is asked for, batch first."""
        returns = [output.name for output in asked.outputs] or None
        fields: dict[str, Any] = {**arrays, "returns": returns}
        for name in arrays.keys() & _STATES_IN:
            fields[name] = np.ascontiguousarray(arrays[name].swapaxes(0, 1))
        call: Call
        if by_step:
            call = StepCall(validate(StepRequest, fields), model, self.limits)
        else:
            call = await forward_call(validate(ForwardRequest, fields), model, self.limits, pads=True)
        deadline = request.deadline(asked.parameters.timeout / 1e6 or None)
        found, _ = await run_rows(self.inference, request, model, call, deadline, ragged=False)
        results = call.results()
        for name in found.keys() & _STATES_OUT:
            found[name] = np.ascontiguousarray(results[name].swapaxes(0, 1))
        return {name: found[name] for name in returns or found}

    async def _encode(
        self, request: Request, asked: InferRequest, fields: Mapping[str, Any], results: Mapping[str, Floats]
    ) -> Reply:
        """The reply: JSON, and after it the memory of those arrays that are asked for as binary data."""
        said = {output.name: output.parameters.binary_data for output in asked.outputs}
        default = asked.parameters.binary_data_output
        binary = [name for name in results if (default if said.get(name) is None else said[name])]
        begun = perf_counter()
        text = open_inference.header(fields, results, binary)
        printed = sum(values.nbytes for name, values in results.items() if name not in binary)
        if printed >= HEAVY_BYTES:
            parts = await self.documents.in_pieces(request, "encode", text)
        else:
            parts = [b"".join(text)]
            request.mark("encode", begun)
        if not binary:
            return Reply(200, JSON.encode(), parts[0] if len(parts) == 1 else parts)
        length = sum(map(len, parts))
        parts.append(b" " * (-length % 8))  # clients' views of the arrays are aligned then
        head = [(LENGTH, str(length + len(parts[-1])).encode())]
        return Reply(
            200, OCTETS.encode(), [*parts, *(results[name].reshape(-1).view(np.uint8).data for name in binary)], head
        )


def _raw(body: bytes, tensor: TensorSpec) -> InferRequest:
    """The request that a body means which is nothing but the bytes of `inputs`: one row, or rows of one step."""
    *_, last = tensor.shape
    size = np.dtype(READ[tensor.datatype]).itemsize * max(last, 1)
    if not body or len(body) % size:
        raise invalid(f"the body has {len(body)} bytes; expected {tensor.datatype}, {size} bytes a step", "inputs")
    free = [axis for axis, length in enumerate(tensor.shape) if length == -1]
    shape = [len(body) // size if axis == free[-1] else abs(length) for axis, length in enumerate(tensor.shape)]
    one: dict[str, Any] = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype}
    one["parameters"] = {"binary_data_size": len(body)}
    return validate(InferRequest, {"inputs": [one], "parameters": {"binary_data_output": True}})


def _check(asked: InferRequest, tensors: Signature) -> None:
    """Raise InvalidRequest for what is none of the model's tensors, or is asked for in a way that is not offered."""
    for index, one in enumerate(asked.inputs):
        _check_name("inputs", index, one, tensors.inputs)
        takes = tensors.inputs[one.name]
        fits = len(one.shape) == len(takes.shape) and all(
            size in (-1, came) for size, came in zip(takes.shape, one.shape, strict=True)
        )
        if one.datatype[0] != takes.datatype[0] or not fits:
            came = f"{one.datatype} of shape {one.shape}"
            raise invalid(f"{one.name} is {came}; expected {takes.datatype} of shape {list(takes.shape)}", one.name)
    for index, output in enumerate(asked.outputs):
        _check_name("outputs", index, output, tensors.outputs)
    given = [one.name for one in asked.inputs]
    if "inputs" not in given:
        raise invalid(f"the input named inputs is missing; there is {', '.join(given)}", "inputs")
    if len(asked.outputs) != len({output.name for output in asked.outputs}):
        raise invalid("outputs names one twice", "outputs")


def _check_name(field: str, index: int, one: InferInput | InferOutput, known: Mapping[str, TensorSpec]) -> None:
    if one.name not in known:
        raise invalid(f"{field}[{index}] is {one.name!r}; this model has {', '.join(known)}", field, index)
    for name in ("classification", "shared_memory_region"):
        if (one.parameters.model_extra or {}).get(name):
            raise invalid(f"{field}[{index}] asks for {name}, which is not offered", field, index)
