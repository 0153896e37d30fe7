"""Calls of the Open Inference Protocol by hand: JSON, and bytes after it."""

import json
from typing import Any

import httpx
import numpy as np

from .running import Service

LENGTH = "Inference-Header-Content-Length"
_TYPES = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "int64": "INT64", "int32": "INT32"}
_READ = {"FP32": "<f4", "INT64": "<i8"}


def body_of(arrays: dict[str, np.ndarray], binary: bool | tuple[str, ...] = False, **fields: Any) -> tuple[bytes, dict]:
    """A request's body and headers; arrays that are binary follow the JSON."""
    inputs, data = [], b""
    for name, array in arrays.items():
        entry = {"name": name, "shape": list(array.shape), "datatype": _TYPES[array.dtype.name]}
        if binary is True or (binary and name in binary):
            entry["parameters"] = {"binary_data_size": array.nbytes}
            data += array.tobytes()
        else:
            entry["data"] = array.reshape(-1).tolist()
        inputs.append(entry)
    text = json.dumps({"inputs": inputs, **fields}).encode()
    return text + data, {LENGTH: str(len(text))} if data else {}


def read(reply: httpx.Response) -> tuple[dict, dict[str, np.ndarray]]:
    """A reply's JSON and arrays; checks that its bytes are all tensors'."""
    assert reply.status_code == 200, reply.text
    size = int(reply.headers.get(LENGTH, len(reply.content)))
    assert reply.headers["content-type"] == "application/" + ("octet-stream" if LENGTH in reply.headers else "json")
    document, rest = json.loads(reply.content[:size]), reply.content[size:]
    arrays = {}
    for output in document["outputs"]:
        values = output.get("data")
        if values is None:
            count = output["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:count], _READ[output["datatype"]]), rest[count:]
        arrays[output["name"]] = np.array(values, _READ[output["datatype"]]).reshape(output["shape"])
    assert not rest
    return document, arrays


def infer(
    service: Service, model: str, arrays: dict[str, np.ndarray], binary: bool | tuple[str, ...] = False, **fields: Any
) -> dict[str, np.ndarray]:
    """The arrays of a reply."""
    body, headers = body_of(arrays, binary, **fields)
    return read(service.post(f"/v2/models/{model}/infer", content=body, headers=headers))[1]


def assert_error(reply: httpx.Response, status: int, *words: str) -> None:
    """The protocol's form of an error, which has these words."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    document = reply.json()
    assert document.keys() == {"error"}
    for word in words:
        assert word in document["error"], document
