"""Bodies of the Open Inference Protocol: JSON, in which tensors' numbers stand, or which they follow as raw bytes.

    {"inputs":[{"name":"inputs","shape":[1,2,1],"datatype":"FP32","data":[0.5,NaN]},
               {"name":"lengths","shape":[1],"datatype":"INT64","parameters":{"binary_data_size":8}}]}········

A body is read in two steps, between which the caller checks what it says of its tensors: `cut` takes the numbers out of
it and gives the rest as Python values, `arrays` makes arrays of the numbers.
Source: docs/predict-api-v2 of the protocol, and extension_binary_data.md of the Triton Inference Server.
"""

import json as text_of_python
import re
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.errors import InvalidRequest, MalformedBody
from service.wire import json, json_pieces, json_slow
from service.wire.arrays import MAX_FIELDS, Floats, Integers, Ragged, assemble, bad, narrowed

MAX_HEADER_BYTES = 64 * 1024
"""Of the JSON without the numbers: enough for every field of the contract a hundred times."""

MAX_WHOLE = 2**24
"""In lists, whole numbers below this are sure to be what was written: they are read as 32-bit floats."""

READ = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}
_WRITTEN = {"<f4": "FP32", "<i8": "INT64"}

_DATA = re.compile(rb'"data"\s*+:\s*+\[(?:\s*+(\[)(?:\s*+(\[))?+)?+')
_NOT_FINITE = re.compile(rb"(?<![^\[,\s])(?:NaN|-?Infinity)(?![^\],\s])")
_WORDS = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}

Array = Floats | Integers


class Described(NamedTuple):
    """What a body says of a tensor: its bytes after the JSON, or the place of its numbers in `Cut.lists`."""

    name: str
    shape: Sequence[int]
    datatype: str
    binary_bytes: int | None
    data: Sequence[int] | None


class Cut(NamedTuple):
    """A body without its numbers: `data` is a list with the place of its text (begin, end, depth) in `lists`."""

    document: Any
    body: bytes
    lists: Sequence[tuple[int, int, int]]
    header_bytes: int


def cut(body: bytes, header_bytes: int | None) -> Cut:
    """Take the numbers out of a body whose first `header_bytes` are JSON, or all of which is.

    Raises MalformedBody, DuplicateName.
    """
    end = len(body) if header_bytes is None else header_bytes
    if end > len(body):
        raise MalformedBody(f"Inference-Header-Content-Length is {end}, and the body has {len(body)} bytes")
    parts: list[bytes] = []
    lists: list[tuple[int, int, int]] = []
    begin = 0
    while opening := _DATA.search(body, begin, end):
        first = body.index(b"[", opening.start())
        # Lists of numbers hold neither of both.
        stop = min(end if place < 0 else place for place in (body.find(mark, first, end) for mark in (b'"', b"}")))
        last = body.rfind(b"]", first, stop) + 1 or stop
        if len(lists) == MAX_FIELDS:
            raise MalformedBody(f"more than {MAX_FIELDS} tensors have data; no request has so many")
        parts += [body[begin:first], b"[%d]" % len(lists)]
        lists.append((first, last, 1 + sum(map(bool, opening.groups()))))
        begin = last
    if (size := sum(map(len, parts)) + end - begin) > MAX_HEADER_BYTES:
        raise MalformedBody(f"the JSON without its data has {size} bytes; the limit is {MAX_HEADER_BYTES}")
    return Cut(_read(b"".join((*parts, body[begin:end]))), body, lists, end)


def arrays(tensors: Sequence[Described], cut: Cut) -> Iterator[dict[str, Array]]:
    """The arrays by name, float32 or int64, that have been read after each piece; at the end those of all tensors.

    float16 and float64 become float32, int32 becomes int64; binary ones are views of the body where they can be.
    Raises MalformedBody, InvalidRequest, or as the decoders of JSON do.
    """
    found: dict[str, Array] = {}
    begin, used = cut.header_bytes, 0
    for tensor in tensors:
        size = tensor.binary_bytes
        if (size is None) == (tensor.data is None):
            raise _wrong(tensor, "has both data and binary_data_size" if size is not None else "has no data")
        if tensor.name in found:
            raise _wrong(tensor, "comes twice")
        if size is not None:
            found[tensor.name] = _binary(tensor, cut.body, begin, size)
            begin += size
            continue
        if tensor.data != [used] or used >= len(cut.lists):
            raise _wrong(tensor, 'has data that is no list of numbers under the name "data"')
        values = yield from _numbers(cut.body, *cut.lists[used], tensor.name)
        found[tensor.name] = _shaped(tensor, values)
        used += 1
    if begin != len(cut.body) or used != len(cut.lists):
        over = (
            f"{len(cut.body) - begin} bytes follow the last tensor" if begin < len(cut.body) else "data is no tensor's"
        )
        raise MalformedBody(f"the body has more than its inputs: {over}")
    yield found


def header(fields: Mapping[str, Any], tensors: Mapping[str, Array], binary: Container[str]) -> Iterator[bytes]:
    """The JSON of a reply, in pieces; the memory of the tensors that are binary follows it."""
    yield orjson.dumps(fields)[:-1] + b',"outputs":['
    before = b""
    for name, values in tensors.items():
        entry = {"name": name, "datatype": _WRITTEN[values.dtype.str], "shape": values.shape}
        if name in binary:
            yield before + orjson.dumps(entry | {"parameters": {"binary_data_size": values.nbytes}})
        else:
            yield before + orjson.dumps(entry)[:-1] + b',"data":['
            yield from _text(values.reshape(-1))
            yield b"]}"
        before = b","
    yield b"]}"


def _read(text: bytes) -> Any:
    """A short JSON text. Raises MalformedBody, DuplicateName."""
    try:
        return text_of_python.loads(text.decode(), object_pairs_hook=json_slow.unique)
    except text_of_python.JSONDecodeError as error:
        near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
        raise MalformedBody(f"not JSON: {error.msg}, near {near!r} (without the data of tensors)") from None
    except RecursionError:
        raise MalformedBody("not a request: lists are nested hundreds deep") from None
    except ValueError as error:  # no UTF-8, or an integer of thousands of digits
        raise MalformedBody(f"not JSON: {error}") from None


def _binary(tensor: Described, body: bytes, begin: int, size: int) -> Array:
    dtype, count = np.dtype(READ[tensor.datatype]), prod(tensor.shape)
    if size != count * dtype.itemsize:
        takes = f"{tensor.datatype} of shape {list(tensor.shape)} has {count * dtype.itemsize} bytes"
        raise _wrong(tensor, f"has binary_data_size {size}; {takes}")
    if (left := len(body) - begin) < size:
        raise _wrong(tensor, f"has binary_data_size {size}, and {left} bytes are left of the body")
    values = np.frombuffer(body, dtype, count, begin).reshape(tensor.shape)
    return narrowed(tensor.name, values if values.flags.aligned else values.copy())


def _numbers(body: bytes, begin: int, end: int, depth: int, name: str) -> Generator[Any, None, Floats | Ragged]:
    """The numbers of a list; yields after each piece of it. Raises as `json_slow.decode` does."""
    places: list[tuple[int, float]] = []
    if body.find(b"N", begin, end) >= 0 or body.find(b"I", begin, end) >= 0:
        body = yield from _without_non_finite(body, begin, end, places)
        begin, end = 0, len(body)
    values: Floats | Ragged
    try:
        if end - begin < json_pieces.PIECE_BYTES:
            values = assemble(*json.decode_list(body[begin:end]))
        else:
            values = yield from json_pieces.numbers(body, begin + 1, end, name, depth)
    except json.Suspicious as error:
        read_slowly = error.args[0] if error.args else partial(_read_slowly, name, body[begin:end])
        values = read_slowly()
    if places and isinstance(values, np.ndarray):
        indices, others = zip(*places, strict=True)
        values = values.copy()
        values.reshape(-1)[list(indices)] = others
    return values


def _without_non_finite(
    body: bytes, begin: int, end: int, places: list[tuple[int, float]]
) -> Generator[None, None, bytes]:
    """A list with zeros for NaN and infinities, which no parser of JSON takes; adds their places and what they are."""
    pieces, before = [], 0
    while begin < end:
        stop = body.find(b",", begin + json_pieces.PIECE_BYTES, begin + 2 * json_pieces.PIECE_BYTES) + 1
        piece = body[begin : min(stop or begin + 2 * json_pieces.PIECE_BYTES, end)]
        commas = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord(","))
        found = _NOT_FINITE.finditer(piece)
        places += ((before + int(commas.searchsorted(match.start())), float(match[0])) for match in found)
        pieces.append(_NOT_FINITE.sub(b"0", piece))
        before += commas.size
        begin += len(piece)
        yield
    return b"".join(pieces)


def _read_slowly(name: str, text: bytes) -> Floats | Ragged:
    values: Floats | Ragged = json_slow.decode(b"{%b:%b}" % (orjson.dumps(name), text))[name]
    return values


def _shaped(tensor: Described, values: Floats | Ragged) -> Array:
    """Numbers of JSON in a tensor's shape and type. Raises InvalidRequest."""
    count = prod(tensor.shape)
    if isinstance(values, Ragged) or values.shape not in ((count,), tuple(tensor.shape)):
        came = "of unequal length" if isinstance(values, Ragged) else f"of shape {list(values.shape)}"
        takes = f"{count} numbers, in one list or nested as its shape, {list(tensor.shape)}"
        raise _wrong(tensor, f"has data {came}; expected {takes}")
    values = values.reshape(tensor.shape)
    if not tensor.datatype.startswith("INT"):
        return values
    wrong = ~((np.abs(values) < MAX_WHOLE) & (values == np.floor(values)))
    if wrong.any():
        place = tuple(map(int, np.unravel_index(wrong.argmax(), values.shape)))
        takes = f"whole numbers below {MAX_WHOLE}; larger ones come as binary data"
        raise bad((tensor.name, *place), f"is {values[place]:.9g}; {tensor.datatype} in JSON takes {takes}")
    return values.astype(np.int64)


def _text(values: Array) -> Iterator[bytes]:
    """Numbers (n,) with commas between them; NaN and infinities as Python and Triton's client write them."""
    for begin in range(0, len(values), json.SLICE_VALUES):
        part = values[begin : begin + json.SLICE_VALUES]
        text = orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        if b"null" in text:
            words = [_WORDS[str(value)] for value in part[~np.isfinite(part)].tolist()]
            text = b"".join(chain.from_iterable(zip(text.split(b"null"), (*words, b""), strict=True)))
        yield text if begin == 0 else b"," + text


def _wrong(tensor: Described, what: str) -> InvalidRequest:
    return bad((tensor.name,), what)
