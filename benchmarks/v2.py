"""Bodies of the Open Inference Protocol: JSON, and behind it the tensors as bytes (its binary extension)."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


def encode(arrays: Mapping[str, NDArray[np.float32]], *, binary: bool = True, **parameters: Any) -> tuple[bytes, int]:
    """A request, and the length of its JSON if tensors follow it."""
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": array.shape, "datatype": "FP32"} for name, array in arrays.items()
    ]
    for tensor, array in zip(inputs, arrays.values(), strict=True):
        tensor |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel()}  # noqa: PLW2901
    document = {"inputs": inputs, "parameters": {"binary_data_output": binary, **parameters}}
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return header, 0
    return b"".join([header, *(array.tobytes() for array in arrays.values())]), len(header)


def decode(reply: bytes) -> dict[str, NDArray[np.float32]]:
    """The arrays of a reply, which are all FP32."""
    header, _ = json.JSONDecoder().raw_decode(reply.decode("latin-1"))
    place = len(reply) - sum(tensor.get("parameters", {}).get("binary_data_size", 0) for tensor in header["outputs"])
    arrays = {}
    for tensor in header["outputs"]:
        if "data" in tensor:
            flat = np.array(tensor["data"], np.float32)
        else:
            flat = np.frombuffer(reply, np.float32, math.prod(tensor["shape"]), place)
            place += flat.nbytes
        arrays[tensor["name"]] = flat.reshape(tensor["shape"])
    return arrays
