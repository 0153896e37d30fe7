"""Bodies of the Open Inference Protocol: JSON, and behind it the tensors as bytes (its binary extension)."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode(arrays: Mapping[str, NDArray[np.float32]], **parameters: Any) -> tuple[bytes, int]:
    """A request for binary outputs, and the length of its header."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, **parameters}}).encode()
    return b"".join([header, *(array.tobytes() for array in arrays.values())]), len(header)


def decode(reply: bytes) -> dict[str, NDArray[np.float32]]:
    """The arrays of a reply whose outputs are FP32 and binary."""
    header, _ = json.JSONDecoder().raw_decode(reply.decode("latin-1"))
    place = len(reply) - sum(output["parameters"]["binary_data_size"] for output in header["outputs"])
    arrays = {}
    for output in header["outputs"]:
        count = math.prod(output["shape"])
        arrays[output["name"]] = np.frombuffer(reply, np.float32, count, place).reshape(output["shape"])
        place += output["parameters"]["binary_data_size"]
    return arrays
