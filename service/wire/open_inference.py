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
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic_core import from_json

from service.errors import MalformedBody
from service.wire.arrays import MAX_FIELDS, Document, Floats, Integers, Ragged, bad, narrowed
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

_DATA = re.compile(rb'"data"(?<!\\"data")\s*+:\s*+\[')  # what begins with plain letters is searched for faster
_ESCAPED = re.compile(rb"\\u00(?:6[14]|74)")  # a letter of "data", which is not found then
_NO_DATA = b'"data":[]'
_BETWEEN_WORDS = re.compile(rb"[^-A-Za-z]")
_NO_MARKS = bytes({*range(256)} - {*b",aIg"})
_MEANINGS = np.zeros(256, np.float16)
_MEANINGS[[*b"aIg"]] = np.nan, np.inf, -np.inf
_ZEROS = {b"NaN": b" 0 ", b"-Infinity": b" -0      ", b"Infinity": b" 0      "}
"""What stands for words, between blanks: where a word is a part of something, that stays no JSON."""

PIECE_BYTES = 16 * 1024
"""Numbers are looked through for NaN in pieces of less than 2**16: a thread that does this lets others run."""

PIECE_VALUES = 4 * 1024  # most numbers that are printed at a time: less than half a millisecond's work, also of NaN

Array = Floats | Integers
Tensor = Mapping[str, Any]
"""An entry of a body's inputs, by the protocol's names; `data` says which of `Cut.lists` has its numbers."""
Place = tuple[int, NDArray[np.uint16], NDArray[np.float16]]
"""NaN and infinities in a piece of a list: where it begins, which of the numbers from there on are, and what."""
Places = dict[str, list[Place]]


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
    """All lists as a JSON object, tensors' by name, with zeros for NaN and infinities. Raises InvalidRequest."""
    names = [f"data {index}" for index in range(len(cut.lists))]  # of parameters, which have no effect
    indices = [[index] for index in range(len(cut.lists))]
    for tensor in tensors:
        if _binary_bytes(tensor) is None:
            if (data := tensor.get("data")) not in indices:
                raise bad((tensor["name"],), 'has no list of numbers as "data"')
            names[data[0]] = tensor["name"]
    texts, places = [b"{"], Places()
    for name, (begin, end) in zip(names, cut.lists, strict=True):
        texts += [b"," if len(texts) > 1 else b"", orjson.dumps(name), b":"]
        if cut.body.find(b"N", begin, end) >= 0 or cut.body.find(b"I", begin, end) >= 0:
            places[name] = list(_without_words(cut.body, begin, end, texts))
        else:
            texts.append(cut.body[begin:end])
    return b"".join((*texts, b"}")), places


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
        yield b'"data":['
        yield from _printed(values.reshape(-1))
        yield b"]" + text


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


def _without_words(body: bytes, begin: int, end: int, texts: list[bytes]) -> Iterator[Place]:
    """Add a list to texts, with zeros for NaN and infinities, which no decoder of JSON takes; gives them as `Place`s.

    A letter stands for each word. If it was none of a word's, the text has it still, and is no list of numbers.
    """
    first = 0
    while begin < end:
        stop = begin + PIECE_BYTES
        # Ten letters in a row are no number.
        between = _BETWEEN_WORDS.search(body, stop, min(stop + 10, end))
        stop = between.end() if between else min(stop + 10, end)
        piece = body[begin:stop]
        marks = np.frombuffer(piece.replace(b"-I", b"g").translate(None, _NO_MARKS), np.uint8)
        words = np.flatnonzero(marks != ord(","))
        if words.size:
            yield first, (words - np.arange(words.size)).astype(np.uint16), _MEANINGS[marks[words]]
            for word, zero in _ZEROS.items():
                piece = piece.replace(word, zero)
        texts.append(piece)
        first += marks.size - words.size
        begin = stop


def _shaped(tensor: Tensor, values: Any, places: Sequence[Place]) -> Array:
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
    for first, indices, words in places:
        floats[first:][indices] = words
    if datatype.startswith("INT"):
        wrong = np.flatnonzero(~((np.abs(floats) < MAX_WHOLE) & (floats == np.floor(floats))))
        if wrong.size:
            takes = f"whole numbers below {MAX_WHOLE} in JSON, and larger ones as bytes"
            raise bad((name, int(wrong[0])), f"is {floats[wrong[0]]:.9g}; {datatype} takes {takes}")
        return floats.astype(np.int64).reshape(shape)
    return floats.reshape(shape)


def _printed(values: Array) -> Iterator[bytes]:
    """Numbers (n,) in pieces, NaN and infinities as Python and Triton's client write them."""
    for begin in range(0, len(values), PIECE_VALUES):
        part = values[begin : begin + PIECE_VALUES]
        text = orjson.dumps(part, None, orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        if b"n" in text:
            words = part[~np.isfinite(part)]
            names = np.where(np.isnan(words), b"NaN", np.where(words > 0, b"Infinity", b"-Infinity"))
            text = text.replace(b"null", b"%b") % tuple(names.tolist())
        yield b"," + text if begin else text
