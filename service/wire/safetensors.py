"""safetensors files: arrays by name, and the other fields in the header's metadata.

The library checks the file. From bytes it copies every array and drops the metadata, so the header that it has checked
is read for both: float32 arrays are views of the body. It copies them when it writes, too, and so we write ourselves.
Source: the format section of the safetensors README (8 bytes little-endian header size, JSON header, data).
"""

import json
from typing import Any

import numpy as np
import orjson
import safetensors

from service.errors import MalformedBody
from service.wire.arrays import MAX_FIELDS, Document, Floats, Integers, narrowed
from service.wire.json_slow import unique

MAX_HEADER_BYTES = 64 * 1024  # enough for every field of the contract a hundred times

_WRITTEN = {"<f4": "F32", "<i8": "I64"}
_READ = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


def decode(body: bytes) -> Document:
    """Arrays by name, float32 or int64, and metadata fields as the strings they are.

    float16 and float64 arrays become float32, int32 ones int64. Raises MalformedBody, DuplicateName, or
    InvalidRequest for a float64 that no float32 can hold.
    """
    size = int.from_bytes(body[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise MalformedBody(f"the safetensors header has {size} bytes; the limit is {MAX_HEADER_BYTES}")
    try:
        safetensors.deserialize(body)
    except safetensors.SafetensorError as error:
        raise MalformedBody(f"not a safetensors file: {error}") from None
    header: dict[str, Any] = json.loads(body[8 : 8 + size], object_pairs_hook=unique)
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    if (count := len(header) + len(metadata)) > MAX_FIELDS:
        raise MalformedBody(f"the body has {count} fields; no request has more than {MAX_FIELDS}")
    fields: dict[str, Any] = {name: _array(body, 8 + size, name, entry) for name, entry in header.items()}
    for name, text in metadata.items():
        if name in fields:
            raise MalformedBody(f"the name {name!r:.80} stands among the arrays and in the metadata")
        fields[name] = text
    return fields


def encode(fields: Document) -> bytes:
    """A safetensors file of the arrays, with the other fields in the metadata."""
    return b"".join(pieces(fields))


def pieces(fields: Document) -> list[bytes | memoryview]:
    """The file that `encode` gives, as its header and the memory of the arrays themselves: nothing is copied.

    As the library writes it: wider numbers first, then by name; the header padded with blanks to whole 8 bytes.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    others = ((name, value) for name, value in fields.items() if name not in arrays)
    metadata = {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in others}
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in ordered:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": _WRITTEN[array.dtype.str], "shape": array.shape, "data_offsets": (begin, end)}
    header = orjson.dumps(entries)
    header += b" " * (-len(header) % 8)
    data = (arrays[name].reshape(-1).view(np.uint8).data for name in ordered)
    return [len(header).to_bytes(8, "little") + header, *data]


def _array(body: bytes, data: int, name: str, entry: Any) -> Floats | Integers:
    """An array of the file, a view of the body if it is float32; data is where the data begin."""
    dtype = _READ.get(entry["dtype"])
    if dtype is None:
        raise MalformedBody(f"array {name!r:.80} is {entry['dtype']}; expected one of {', '.join(_READ)}")
    begin, end = entry["data_offsets"]
    try:
        values = np.frombuffer(body, np.uint8, end - begin, data + begin).view(dtype).reshape(entry["shape"])
    except ValueError:  # empty, with axes that no memory has; or with more axes than numpy takes
        raise MalformedBody(f"array {name!r:.80} has a shape that cannot be: {entry['shape']!r:.80}") from None
    return narrowed(name, values)
