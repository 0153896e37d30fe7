"""Named arrays and fields as bytes: safetensors.

Arrays go as safetensors and not as JSON because a float32 takes 4 bytes and not about 12, nothing is printed or parsed,
and NaN and infinity pass.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Floats = NDArray[np.float32]

MEDIA_TYPE = "application/vnd.safetensors"


def floats(values: ArrayLike) -> Floats:
    """Any numbers as a little-endian float32 array."""
    return np.asarray(values, "<f4", order="C")


def encode(fields: Mapping[str, Any]) -> bytes:
    """A safetensors file of the arrays, the other fields in its metadata; what is None is left out."""
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
        if value is not None and name not in arrays
    }
    return save(arrays, texts)


def decode(body: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays by name, and the metadata. Raises ValueError for what is no safetensors file."""
    try:
        arrays = load(body)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from None
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return arrays, header.get("__metadata__") or {}
