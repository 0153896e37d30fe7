"""JSON objects of numbers: simdjson straight into float32 arrays, orjson straight out of them.

simdjson flattens a nested list without looking at its shape and cannot say where a body is wrong. So the sizes of the
lists are read from the parsed document (they are stored: no walk over the numbers), opening brackets are counted to
catch lists where numbers belong, and a body that does not add up goes to `json_slow`, which is thorough and names the
place.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from service.wire.arrays import MAX_FIELDS, OVERFLOW, SHORT, Document, Floats, Ragged, assemble

_Parser, _Object, _Array = simdjson.Parser, simdjson.Object, simdjson.Array

SLICE_VALUES = 32 * 1024
"""Most numbers that `slices` prints at a time: less than a millisecond's work."""

SLICE_BYTES = 64 * 1024
"""Less than this waits for what follows."""


MAX_NAMES = 32
"""Strings in a list of names: no field of the contract has as many."""

VECTOR_BYTES = 8 * 1024
"""From here on numpy, which needs a copy, counts faster than bytes do."""

_BRACKET = ord("[")


class Suspicious(Exception):
    """The fast reading does not add up; the slow one decides."""


def decode(body: bytes) -> Document:
    """The fields of a JSON object, numbers as float32 arrays (or `Ragged`), everything else as Python values.

    Raises `Suspicious` where the fast parser refuses or is not sure: `json_slow.decode` then gives the answer or the
    error. The two are apart so that a caller can run the slow one elsewhere.
    """
    try:
        document = _parsed(body)
        if not isinstance(document, _Object) or len(document) > MAX_FIELDS:
            raise Suspicious
        fields: dict[str, Any] = {}
        brackets = 0
        for name in document:  # items() would turn every number into a Python object
            value = document[name]
            if isinstance(value, _Array):
                fields[name], opened = _list(value)
                brackets += opened
            elif isinstance(value, _Object):
                raise Suspicious  # no field of the contract is an object
            else:
                fields[name] = value
    except (ValueError, TypeError, KeyError) as error:  # KeyError: names are looked up as far as their first NUL
        raise Suspicious from error
    if len(fields) != len(document) or brackets != _brackets(body):
        raise Suspicious
    return fields


def decode_steps(line: bytes) -> Document | Floats | Ragged:
    """One line of a stream: an object, or an array alone. Raises as `decode` does."""
    if line.lstrip()[:1] != b"[":
        return decode(line)
    try:
        values, brackets = _list(_parsed(line))
    except (ValueError, TypeError) as error:
        raise Suspicious from error
    if not isinstance(values, np.ndarray | Ragged) or brackets != line.count(b"["):
        raise Suspicious
    return values


def lists(text: bytes) -> tuple[Floats, list[list[int]]]:
    """The numbers of a list of lists, and its lengths at each depth, as `assemble` takes them. Raises Suspicious."""
    try:
        array = _parsed(text)
        first = array[0] if isinstance(array, _Array) and len(array) else None
        if not isinstance(first, _Array):
            raise Suspicious
        sizes, brackets = _sizes(array, first)
        values = _numbers(array, sum(sizes[-1]))
    except (ValueError, TypeError) as error:
        raise Suspicious from error
    if brackets != _brackets(text):
        raise Suspicious
    return values, sizes


def flat(body: bytes) -> Floats:
    """All numbers of a list of lists of numbers, in order; how they are divided is not looked at. Raises Suspicious."""
    try:
        array = _parsed(body)
        if not isinstance(array, simdjson.Array):
            raise Suspicious
        return as_float32(np.frombuffer(array.as_buffer(of_type="d")))
    except (ValueError, TypeError) as error:
        raise Suspicious from error


def encode(fields: Document) -> bytes:
    """A JSON object. float32 arrays are printed with the fewest digits that parse back to the same float32.

    NaN and infinities are printed as null: callers that do not want that look for them before.
    """
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def slices(fields: Document) -> Iterator[bytes]:
    """What `encode` gives, byte for byte, in pieces between which the caller may do something else."""
    waiting: list[bytes | memoryview] = []
    size = 0
    for part in _parts(fields):
        waiting.append(part)
        size += len(part)
        if size >= SLICE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _parts(fields: Document) -> Iterator[bytes | memoryview]:
    yield b"{"
    for index, (name, value) in enumerate(fields.items()):
        yield (b"," if index else b"") + orjson.dumps(name) + b":"
        yield from _printed(value)
    yield b"}"


def _printed(value: Any) -> Iterator[bytes | memoryview]:
    """An array, or a list of arrays, printed in groups along its first axis; anything else as it is."""
    if _count(value) <= SLICE_VALUES:
        yield orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        return
    opening = b"["
    for begin, end in _groups(value):
        yield opening
        opening = b","
        if end - begin == 1:
            yield from _printed(value[begin])
        else:
            yield memoryview(orjson.dumps(value[begin:end], option=orjson.OPT_SERIALIZE_NUMPY))[1:-1]
    yield b"]"


def _count(value: Any) -> int:
    """Numbers in an array or in a list of arrays."""
    if isinstance(value, list):
        return sum(_count(item) for item in value)
    return value.size if isinstance(value, np.ndarray) else 1


def _groups(value: Any) -> Iterator[tuple[int, int]]:
    """Where to cut a list: as many of its items together as `SLICE_VALUES` allows, one at least."""
    if isinstance(value, np.ndarray):
        step = max(1, SLICE_VALUES // value[0].size)
        yield from ((begin, min(begin + step, len(value))) for begin in range(0, len(value), step))
        return
    begin, values = 0, 0
    for index, item in enumerate(value):
        count = _count(item)
        if index > begin and values + count > SLICE_VALUES:
            yield begin, index
            begin, values = index, 0
        values += count
    yield begin, len(value)


def _parsed(body: bytes) -> Any:
    try:
        # A parser's buffers stay as large as its largest body: a new one costs less than a microsecond.
        return _Parser().parse(body)
    except RuntimeError as error:  # an integer of more than 64 bits
        raise Suspicious from error


def _brackets(text: bytes) -> int:
    """How many opening brackets there are."""
    if len(text) < VECTOR_BYTES:
        return text.count(b"[")
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == _BRACKET))


def _list(array: Any) -> tuple[Floats | Ragged | list[Any], int]:
    """The value of a JSON list, and how many brackets it opens."""
    count = len(array)
    first = array[0] if count else None
    if isinstance(first, _Array):
        sizes, brackets = _sizes(array, first)
        return assemble(_numbers(array, sum(sizes[-1])), sizes), brackets
    if isinstance(first, str):
        if count > MAX_NAMES:  # and as_list() writes out of bounds beyond 16,777,215 items
            raise Suspicious
        return array.as_list(), 1
    return _numbers(array, count), 1


def _numbers(array: Any, count: int) -> Floats:
    """All numbers of an array, however nested, which must be so many."""
    doubles = np.frombuffer(array.as_buffer(of_type="d"))
    if doubles.size != count:
        raise Suspicious
    return as_float32(doubles)


def as_float32(doubles: NDArray[np.float64]) -> Floats:
    """As float32. Raises Suspicious if one is too large."""
    if doubles.size <= SHORT:
        if doubles.dot(doubles) >= OVERFLOW:  # rather too early: each number alone may be up to that
            _refuse_overflow(doubles)
    else:
        _refuse_overflow(doubles)
    return doubles.astype(np.float32)


def _refuse_overflow(doubles: NDArray[np.float64]) -> None:
    # Two passes, and no dot product where arrays are long: BLAS would wake threads that spin beside the engine's.
    if np.maximum.reduce(doubles) >= OVERFLOW or np.minimum.reduce(doubles) <= -OVERFLOW:
        raise Suspicious


def _sizes(array: Any, first: Any) -> tuple[list[list[int]], int]:
    """Lengths of the lists at each depth, as deep as the first elements go, and how many brackets open them.

    first is the list that stands first in the array. Raises TypeError if a list is missing.
    """
    count = len(array)
    outer = list(array) if count > 1 else [first]
    inner = [len(lists) for lists in outer]
    sizes, brackets = [[count], inner], 1 + count
    if inner[0] and isinstance(first[0], _Array):
        if isinstance(first[0][0] if len(first[0]) else None, _Array):  # deeper than any field
            raise Suspicious
        sizes.append([len(innermost) for lists in outer for innermost in lists])
        brackets += len(sizes[2])
    return sizes, brackets
