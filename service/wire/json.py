"""JSON objects of numbers: simdjson straight into float32 arrays, orjson straight out of them.

simdjson flattens a nested list without looking at its shape and cannot say where a body is wrong. So the sizes of the
lists are read from the parsed document (they are stored: no walk over the numbers), opening brackets are counted to
catch lists where numbers belong, and a body that does not add up goes to `json_slow`, which is thorough and names the
place.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import orjson
import simdjson

from service.wire.arrays import FLOAT32, MAX_FIELDS, OVERFLOW, Document, Floats, Ragged, assemble

_Parser, _Object, _Array = simdjson.Parser, simdjson.Object, simdjson.Array

SLICE_VALUES = 32 * 1024  # most numbers that `slices` prints at a time: less than a millisecond's work
MAX_NAMES = 32  # strings in a list of names: no field of the contract has as many

MAX_LISTS = 2**15
"""Lists of one depth: each is looked at. A body of more is long enough to be read in pieces."""

DOT_VALUES = 4096
"""Up to so many numbers one dot product is the quickest look at all of them: BLAS does it in one thread."""

VECTOR_BYTES = 4 * 1024  # from here on numpy, which needs a copy, counts faster than bytes do


class Suspicious(Exception):
    """The fast reading does not add up; the slow one decides."""


def decode(body: bytes) -> Document:
    """The fields of a JSON object, numbers as float32 arrays (or `Ragged`), everything else as Python values.

    Raises `Suspicious` where the fast parser refuses or is not sure: `json_slow.decode` then gives the answer or the
    error. The two are apart so that a caller can run the slow one elsewhere.
    """
    fields: dict[str, Any] = {}
    brackets = 0
    try:
        document = _parsed(body, _Object)
        if len(document) > MAX_FIELDS:
            raise Suspicious
        for name in document:  # items() would turn every number into a Python object
            value = document[name]
            if isinstance(value, _Array):
                first = value[0] if len(value) else None
                if isinstance(first, str):
                    if len(value) > MAX_NAMES:  # and as_list() writes out of bounds beyond 16,777,215 items
                        raise Suspicious
                    value = value.as_list()
                    brackets += 1
                else:
                    values, sizes = _numbers(value, first)
                    value = assemble(values, sizes)
                    brackets += sum(map(len, sizes))
            elif isinstance(value, _Object):
                raise Suspicious  # no field of the contract is an object
            fields[name] = value
    except (ValueError, TypeError, KeyError) as error:  # KeyError: names are looked up as far as their first NUL
        raise Suspicious from error
    if len(fields) != len(document) or brackets != _brackets(body):
        raise Suspicious
    return fields


def decode_steps(line: bytes) -> Document | Floats | Ragged:
    """One line of a stream: an object, or an array alone. Raises as `decode` does."""
    return assemble(*decode_list(line)) if line.lstrip()[:1] == b"[" else decode(line)


def decode_list(text: bytes) -> tuple[Floats, list[list[int]]]:
    """The numbers of a list, however nested, and the sizes of its lists, for `assemble`. Raises Suspicious."""
    try:
        array = _parsed(text, _Array)
        values, sizes = _numbers(array, array[0] if len(array) else None)
    except (ValueError, TypeError) as error:
        raise Suspicious from error
    if sum(map(len, sizes)) != _brackets(text):
        raise Suspicious
    return values, sizes


def encode(fields: Document) -> bytes:
    """A JSON object. float32 arrays are printed with the fewest digits that parse back to the same float32.

    NaN and infinities are printed as null: callers that do not want that look for them before.
    """
    return orjson.dumps(fields, list, orjson.OPT_SERIALIZE_NUMPY)


def slices(fields: Document) -> Iterator[bytes]:
    """What `encode` gives, byte for byte, in pieces between which the caller may do something else."""
    if sum(map(_size, fields.values())) <= SLICE_VALUES:
        yield encode(fields)
        return
    before = b"{"
    for name, value in fields.items():
        before += orjson.dumps(name) + b":"
        if _size(value) > SLICE_VALUES:
            yield from items(value, before + b"[", b"]")
        else:
            yield before + orjson.dumps(value, list, orjson.OPT_SERIALIZE_NUMPY)
        before = b","
    yield b"}"


def items(value: Any, before: bytes, after: bytes) -> Iterator[bytes]:
    """The items of an array, a list of them, or `RaggedRows`, in pieces: it is halved until few numbers are left."""
    half = len(value) // 2
    if _size(value) <= SLICE_VALUES:
        text = memoryview(orjson.dumps(value, list, orjson.OPT_SERIALIZE_NUMPY))
        yield b"".join((before, text[1:-1], after))
    elif half:
        yield from items(value[:half], before, b",")
        yield from items(value[half:], b"", after)
    else:
        yield from items(value[0], before + b"[", b"]" + after)


def _size(value: Any) -> int:
    """How many numbers a value prints, or about as much work."""
    return sum(map(_size, value)) if isinstance(value, list) else getattr(value, "size", 1)


def _parsed(text: bytes, kind: type) -> Any:
    """The list or object that a text is. Raises Suspicious, or ValueError where it is not JSON."""
    try:
        # A parser's buffers stay as large as its largest body: a new one costs less than a microsecond.
        value = _Parser().parse(text)
    except RuntimeError as error:  # an integer of more than 64 bits
        raise Suspicious from error
    if not isinstance(value, kind):
        raise Suspicious
    return value


def _brackets(text: bytes) -> int:
    """How many opening brackets there are."""
    if len(text) < VECTOR_BYTES:
        return text.count(b"[")
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("[")))


def _numbers(array: Any, first: Any) -> tuple[Floats, list[list[int]]]:
    """The numbers of a list, and its sizes as deep as the first elements go: other brackets are the caller's to find.

    Raises Suspicious; ValueError or TypeError where something is neither a number nor a list.
    """
    total = len(array)
    sizes = [[total]]
    if isinstance(first, _Array):
        if total > MAX_LISTS:
            raise Suspicious
        rows = list(array) if total > 1 else [first]
        lengths = list(map(len, rows))
        sizes.append(lengths)
        total = sum(lengths)
        if lengths[0] and isinstance(first[0], _Array):
            if total > MAX_LISTS:
                raise Suspicious
            lengths = list(map(len, chain.from_iterable(rows)))
            sizes.append(lengths)
            total = sum(lengths)
    doubles = np.frombuffer(array.as_buffer(of_type="d"))
    if doubles.size != total:
        raise Suspicious
    if total > DOT_VALUES:  # no dot product: BLAS would wake threads that spin beside the engine's
        too_large = np.maximum.reduce(doubles) >= OVERFLOW or np.minimum.reduce(doubles) <= -OVERFLOW
    else:
        too_large = doubles.dot(doubles) >= OVERFLOW and np.maximum.reduce(np.abs(doubles)) >= OVERFLOW
    if too_large:
        raise Suspicious
    return doubles.astype(FLOAT32), sizes
