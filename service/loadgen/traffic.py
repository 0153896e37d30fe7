"""The bytes that every request of a run consists of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import save

from service.loadgen.lookup import Model
from service.loadgen.target import Target

Call = Literal["forward", "step", "stream"]
Format = Literal["json", "safetensors"]
Fields = dict[str, NDArray[np.float32]]

CONTENT_TYPES: dict[Format, str] = {"json": "application/json", "safetensors": "application/vnd.safetensors"}


class CannotCall(Exception):
    """The model does not take this call; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is sent: the call, its format, B rows, T steps of each, the version (None: the highest), what to return.

    A step has T = 1, a line of a stream B = T = 1.
    """

    call: Call
    format: Format
    rows: int
    steps: int
    version: str | None
    returns: Sequence[str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """`opening` goes out once on a new connection, `unit` for every request: all of it, or one line of a stream."""

    streaming: bool
    opening: bytes
    unit: bytes


def build_traffic(target: Target, model: Model, shape: Shape) -> Traffic:
    """The requests of a run: standard normal inputs, states within (−1, 1), all of them the same. Raises CannotCall."""
    if shape.call != "forward" and model.bidirectional:
        raise CannotCall(f'model "{model.name}" is bidirectional and cannot be stepped; use --call forward')
    random = np.random.default_rng(0)
    if shape.call == "stream":
        query = {"model": model.name} | ({"version": shape.version} if shape.version else {})
        path = "/cell/step?" + urlencode(query | ({"returns": ",".join(shape.returns)} if shape.returns else {}))
        kind = "application/x-ndjson"
        head = target.head("POST", path, f"Content-Type: {kind}", f"Accept: {kind}", "Transfer-Encoding: chunked")
        return Traffic(True, head, chunk(_json(_draw(random, model.input_size)) + b"\n"))
    body = _body(_fields(model, shape, random), model.name, shape)
    kind = CONTENT_TYPES[shape.format]
    path = "/rnn/forward" if shape.call == "forward" else "/cell/step"
    headers = (f"Content-Type: {kind}", f"Accept: {kind}", f"Content-Length: {len(body)}")
    return Traffic(False, b"", target.head("POST", path, *headers) + body)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; the last one is empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _fields(model: Model, shape: Shape, random: np.random.Generator) -> Fields:
    """Inputs (B,T,I) of a forward; inputs (B,I) and the state (L,B,·) of a step, which a client carries along."""
    if shape.call == "forward":
        return {"inputs": _draw(random, shape.rows, shape.steps, model.input_size)}
    state = (model.num_layers, shape.rows)
    fields = {
        "inputs": _draw(random, shape.rows, model.input_size),
        "h": np.tanh(_draw(random, *state, model.state_size)),
    }
    return fields | ({"c": _draw(random, *state, model.hidden_size)} if model.kind == "lstm" else {})


def _body(fields: Fields, model: str, shape: Shape) -> bytes:
    about: dict[str, Any] = {"model": model}
    if shape.version:
        about["version"] = shape.version
    if shape.returns:
        about["returns"] = list(shape.returns)
    if shape.format == "json":
        return _json(about | fields)
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    return save(fields, text)


def _draw(random: np.random.Generator, *sizes: int) -> NDArray[np.float32]:
    return random.standard_normal(sizes, np.float32)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
