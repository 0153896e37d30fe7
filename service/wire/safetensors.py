"""safetensors files: arrays by name, and the other fields in the header's metadata.

The library checks the file and gives the arrays; from bytes it drops the metadata, so the header is read for that.
Source: the format section of the safetensors README (8 bytes little-endian header size, JSON header, data).
"""

from typing import Any

import numpy as np
import orjson
import safetensors
from safetensors.numpy import save

from service.errors import MalformedBody
from service.wire.arrays import Document, Floats, Integers, narrowed

MAX_HEADER_BYTES = 64 * 1024
"""Enough for every field of the contract a hundred times."""

_READ = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


def decode(body: bytes) -> Document:
    """Arrays by name, float32 or int64, and metadata fields as the strings they are.

    float16 and float64 arrays become float32, int32 ones int64. Raises MalformedBody.
    """
    size = int.from_bytes(body[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise MalformedBody(f"the safetensors header has {size} bytes; the limit is {MAX_HEADER_BYTES}")
    try:
        tensors = safetensors.deserialize(body)
    except safetensors.SafetensorError as error:
        raise MalformedBody(f"not a safetensors file: {error}") from None
    fields: dict[str, Any] = {name: _array(name, tensor) for name, tensor in tensors}
    for name, text in _metadata(body[8 : 8 + size]).items():
        if name in fields:
            raise MalformedBody(f"the name {name!r:.80} stands among the arrays and in the metadata")
        fields[name] = text
    return fields


def encode(fields: Document) -> bytes:
    """A safetensors file of the arrays, with the other fields in the metadata."""
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    return save(arrays, {name: _text(value) for name, value in fields.items() if name not in arrays})


def _array(name: str, tensor: Any) -> Floats | Integers:
    dtype = _READ.get(tensor["dtype"])
    if dtype is None:
        raise MalformedBody(f"array {name!r:.80} is {tensor['dtype']}; expected one of {', '.join(_READ)}")
    try:
        values = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    except ValueError:  # empty, with axes that no memory has; or with more axes than numpy takes
        raise MalformedBody(f"array {name!r:.80} has a shape that cannot be: {tensor['shape']!r:.80}") from None
    if values.dtype.kind == "i":
        return values.astype(np.int64, copy=False)
    return narrowed(values) if dtype == "<f8" else values.astype(np.float32, copy=False)


def _metadata(header: bytes) -> dict[str, str]:
    """The header's `__metadata__`; the library has checked the header, and that its values are strings."""
    metadata: dict[str, str] = orjson.loads(header).get("__metadata__") or {}
    return metadata


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
