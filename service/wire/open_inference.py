"""Bodies of the Open Inference Protocol: JSON, in which tensors' numbers stand, or which they follow as raw bytes.

    {"inputs":[{"name":"inputs","shape":[1,2,1],"datatype":"FP32","data":[0.5,NaN]},
               {"name":"lengths","shape":[1],"datatype":"INT64","parameters":{"binary_data_size":8}}]}········

A body is read in steps: `cut` takes the numbers out of the JSON and gives the rest as Python values, whose inputs the
caller checks; `numbers` is the JSON of the numbers by name, for the decoder of JSON; `arrays` are those, and the bytes.
Source: docs/predict-api-v2 of the protocol, and extension_binary_data.md of the Triton Inference Server.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson
from pydantic_core import from_json

from service.errors import MalformedBody
from service.wire.arrays import MAX_FIELDS, Document, Floats, Integers, Ragged, bad, narrowed
from service.wire.json import SLICE_VALUES, items
from service.wire.json_slow import unique

MAX_HEADER_BYTES = 64 * 1024
"""Of the JSON without the numbers: enough for every field of the contract a hundred times."""

MAX_WHOLE = 2**24
"""In lists, whole numbers below this are sure to be what was written: they are read as 32-bit floats."""

READ = {
    name: np.dtype(kind)
    for name, kind in {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}.items()
}
_WRITTEN = {"f": "FP32", "i": "INT64"}

_DATA = re.compile(rb'(?<!\\)"data"\s*+:\s*+\[')
_ESCAPED = re.compile(rb"\\u00(?:6[14]|74)")  # a letter of "data", which is not found then
_NO_DATA = b'"data":[]'
_NOT_FINITE = re.compile(rb"(?<![^\[,\s])(?:NaN|-?Infinity)(?![^\],\s])")
PIECE_BYTES = 16 * 1024
"""Numbers are looked through for NaN in pieces, so that a thread that does this lets others run."""

_WORDS = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}

Array = Floats | Integers
Tensor = Mapping[str, Any]
"""An entry of a body's inputs, by the protocol's names; `data` says which of `Cut.lists` has its numbers."""
Places = dict[str, list[tuple[Integers, Floats]]]
"""NaN and infinities by tensor, in pieces: which of its numbers are, and what."""


class Cut(NamedTuple):
    """A body without its numbers: each `data` holds which of `lists` is its, by begin and end."""

    document: Any
    body: bytes
    lists: Sequence[tuple[int, int]]
    header_bytes: int


def cut(body: bytes, header_bytes: int | None) -> Cut:
    """Take the numbers out of a body whose first `header_bytes` are JSON, or all of which is.

    Raises MalformedBody, DuplicateName.
    """
    end = len(body) if header_bytes is None else header_bytes
    if end > len(body):
        raise MalformedBody(f"Inference-Header-Content-Length is {end}, and the body has {len(body)} bytes")
    parts: list[bytes] = []
    lists: list[tuple[int, int]] = []
    begin = seen = size = 0
    while opening := _DATA.search(body, seen, min(end, begin + MAX_HEADER_BYTES - size)):
        first = opening.end() - 1
        # Lists of numbers hold neither of both.
        seen = end
        for mark in b'"', b"}":
            seen = place if (place := body.find(mark, first, seen)) >= 0 else seen
        if last := body.rfind(b"]", first, seen) + 1:
            parts += [body[begin:first], b"[%d]" % len(lists)]
            size += first - begin
            lists.append((first, last))
            begin = last
        if len(lists) > MAX_FIELDS:
            raise MalformedBody(f"more than {MAX_FIELDS} tensors have data; no request has so many")
    if (size := size + end - begin) > MAX_HEADER_BYTES:
        raise MalformedBody(f"the JSON without its data has {size} bytes; the limit is {MAX_HEADER_BYTES}")
    text = b"".join((*parts, body[begin:end]))
    if _ESCAPED.search(text):
        raise MalformedBody("letters are written as escapes; no client does that")
    return Cut(_read(text), body, lists, end)


def numbers(tensors: Sequence[Tensor], cut: Cut) -> tuple[bytes, Places]:
    """The numbers of tensors as a JSON object, in which those that are not finite are zeros. Raises InvalidRequest."""
    body, places = cut.body, Places()
    texts: list[bytes | memoryview] = []
    for tensor in tensors:
        if _binary_bytes(tensor) is not None:
            continue
        name, index = tensor["name"], len(texts) // 4
        if tensor.get("data") != [index] or index >= len(cut.lists):
            raise bad((name,), 'has no list of numbers as "data"')
        begin, end = cut.lists[index]
        text = memoryview(body)[begin:end]
        if body.find(b"N", begin, end) >= 0 or body.find(b"I", begin, end) >= 0:
            copy = BytesIO()
            places[name] = list(_copied(text, copy))
            text = copy.getbuffer()
        texts += [b"," if texts else b"", orjson.dumps(name), b":", text]
    return b"".join((b"{", *texts, b"}")), places


def arrays(tensors: Sequence[Tensor], cut: Cut, lists: Document, places: Places) -> dict[str, Array]:
    """The tensors by name, float32 or int64; `lists` is what `numbers` has, decoded.

    float16 and float64 become float32, int32 becomes int64; of bytes they are views of the body where they can be.
    Raises MalformedBody, InvalidRequest.
    """
    found, body, begin = {}, cut.body, cut.header_bytes
    for tensor in tensors:
        name, size = tensor["name"], _binary_bytes(tensor)
        if size is None:
            found[name] = _shaped(tensor, lists[name], places.get(name, ()))
            continue
        dtype, shape, left = READ[tensor["datatype"]], tensor["shape"], len(body) - begin
        count = prod(shape)
        if size != count * dtype.itemsize or tensor.get("data") is not None:
            takes = f"{tensor['datatype']} of shape {shape} has {count * dtype.itemsize} bytes, and no data"
            raise bad((name,), f"has binary_data_size {size}; {takes}")
        if size > left:
            raise bad((name,), f"has binary_data_size {size}; {left} bytes are left of the body")
        values = np.frombuffer(body, dtype, count, begin).reshape(shape)
        found[name] = narrowed(name, values if values.flags.aligned else values.copy())
        begin += size
    if begin < len(body):
        raise MalformedBody(f"{len(body) - begin} bytes of the body are no tensor's")
    if len(lists) < len(cut.lists):  # nobody has read the others
        raise MalformedBody('a list named "data" is no tensor\'s')
    return found


def header(fields: Mapping[str, Any], tensors: Mapping[str, Array], binary: Container[str]) -> Iterator[bytes]:
    """The JSON of a reply, in pieces; the memory of the tensors that are binary follows it."""
    outputs: list[dict[str, Any]] = []
    for name, values in tensors.items():
        outputs.append({"name": name, "datatype": _WRITTEN[values.dtype.kind], "shape": values.shape})
        outputs[-1] |= {"parameters": {"binary_data_size": values.nbytes}} if name in binary else {"data": ()}
    # No string can hold what it is split at: there, quotes have a backslash.
    text, *others = orjson.dumps({**fields, "outputs": outputs}).split(_NO_DATA)
    yield text
    in_json = (values for name, values in tensors.items() if name not in binary)
    for values, text in zip(in_json, others, strict=True):
        flat = values.reshape(-1)
        words = _words(flat)
        for piece in items(flat, b'"data":[', b"]"):
            if b"n" in piece:
                begin, *rest = piece.split(b"null")
                yield begin + b"".join(next(words) + part for part in rest)
            else:
                yield piece
        yield text


def _binary_bytes(tensor: Tensor) -> int | None:
    """How many bytes after the JSON are a tensor's, None if it stands there."""
    size: int | None = tensor.get("parameters", {}).get("binary_data_size")
    return size


def _read(text: bytes) -> Any:
    """A short JSON text. Raises MalformedBody, DuplicateName."""
    try:
        document = from_json(text)
        # A name that stands twice is lost, and its colon with it; only escapes hide colons.
        if b"\\" not in text and orjson.dumps(document).count(b":") == text.count(b":"):
            return document
    except (ValueError, TypeError):  # TypeError: an integer of more than 64 bits
        pass
    try:
        return json.loads(text.decode(), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
        raise MalformedBody(f"not JSON: {error.msg}, near {near!r} (without the data of tensors)") from None
    except RecursionError:
        raise MalformedBody("not a request: lists are nested hundreds deep") from None
    except ValueError as error:  # no UTF-8, or an integer of thousands of digits
        raise MalformedBody(f"not JSON: {error}") from None


def _copied(text: memoryview, to: BytesIO) -> Iterator[tuple[Integers, Floats]]:
    """Copy a list, with zeros for NaN and infinities, which no decoder of JSON takes; gives where they were, and what.

    All is done in pieces: a thread lets others run in between.
    """
    copied = commas = 0
    for begin in range(0, len(text), PIECE_BYTES):
        end = begin + PIECE_BYTES
        piece = bytes(text[begin:end])
        if b"N" in piece or b"I" in piece or piece.endswith(b"-"):
            # The longest word may go on beyond the piece, and a mark has to follow it.
            words = [word for word in _NOT_FINITE.finditer(text, begin, end + 10) if word.start() < end]
            for word in words:
                to.write(text[copied : word.start()])
                to.write(b"0")
                copied = word.end()
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord(","))
            indices = commas + ends.searchsorted([word.start() - begin for word in words])
            yield indices, np.array([float(word[0]) for word in words], np.float32)
        to.write(text[copied:end])
        copied = max(copied, end)
        commas += piece.count(b",")


def _shaped(tensor: Tensor, values: Any, places: Sequence[tuple[Integers, Floats]]) -> Array:
    """Numbers of JSON in a tensor's shape and type. Raises InvalidRequest."""
    name, shape, datatype = tensor["name"], tuple(tensor["shape"]), tensor["datatype"]
    count = prod(shape)
    if isinstance(values, Ragged) or values.shape not in ((count,), shape):
        came = "of unequal length" if isinstance(values, Ragged) else f"of shape {list(values.shape)}"
        raise bad(
            (name,), f"has data {came}; expected {count} numbers, in one list or nested as its shape, {list(shape)}"
        )
    floats: Floats = values.reshape(-1)
    if places:
        floats = floats.copy()
    for indices, words in places:
        floats[indices] = words
    if datatype.startswith("INT"):
        wrong = np.flatnonzero(~((np.abs(floats) < MAX_WHOLE) & (floats == np.floor(floats))))
        if wrong.size:
            takes = f"whole numbers below {MAX_WHOLE} in JSON, and larger ones as bytes"
            raise bad((name, int(wrong[0])), f"is {floats[wrong[0]]:.9g}; {datatype} takes {takes}")
        return floats.astype(np.int64).reshape(shape)
    return floats.reshape(shape)


def _words(values: Array) -> Iterator[bytes]:
    """What NaN and infinities among numbers (n,) are in JSON, as Python and Triton's client write them."""
    for begin in range(0, len(values), SLICE_VALUES):
        part = values[begin : begin + SLICE_VALUES]
        yield from (_WORDS[str(value)] for value in part[~np.isfinite(part)].tolist())
