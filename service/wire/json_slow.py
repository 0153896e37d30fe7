"""The thorough reading of a JSON body that the fast parser refused: the same values, or an error that names the place.

It makes a Python object of every number, so it is limited in size; callers keep it off the event loop.
"""

import json
import re
from typing import Any

import numpy as np
import orjson
import simdjson

from service.errors import DuplicateName, FieldError, InvalidRequest, Loc, MalformedBody, ServiceError, spell
from service.wire import arrays
from service.wire.arrays import MAX_DEPTH, MAX_FIELDS, Document, Floats, Ragged, Sizes, bad

MAX_BYTES = 2**20
"""Larger bodies get the error without the place."""

WITH_NULL = ("feedback",)
"""Fields whose lists may hold null; they stay lists then."""

_NOT_FINITE = re.compile(r"-?(?:NaN|Infinity)\b")
_TOO_LARGE = re.compile(r"[0-9.eE+-]+")

_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{},:]', re.DOTALL)


def decode(body: bytes) -> Document:
    """The fields of a JSON object.

    Raises MalformedBody (not JSON, with line, column and field), DuplicateName, or InvalidRequest (a value that is no
    finite 32-bit number where numbers belong).
    """
    value = _parse(body)
    if not isinstance(value, dict):
        raise MalformedBody(f"the body is {_kind(value)}; expected an object")
    if len(value) > MAX_FIELDS:
        raise MalformedBody(f"the body has {len(value)} fields; no request has more than {MAX_FIELDS}")
    for name, item in value.items():
        keeps = isinstance(item, list) and ((item and isinstance(item[0], str)) or (name in WITH_NULL and None in item))
        if isinstance(item, list) and not keeps:  # a list of names stays one
            value[name] = _numbers(item, (name,))
    return value


def decode_steps(line: bytes) -> Document | Floats | Ragged | float:
    """One line of a stream: an object, or an array of numbers alone, or one number. Raises as `decode` does."""
    begin = line.lstrip()[:1]
    if begin.isdigit() or begin == b"-":
        return float(_parse(line, ("inputs",)))
    if begin != b"[":
        return decode(line)
    return _numbers(_parse(line, ("inputs",)), ("inputs",))


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text, for `object_pairs_hook`. Raises DuplicateName."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateName(f"the name {twice!r:.80} stands twice in one object")
    return fields


def _parse(body: bytes, name: Loc = ()) -> Any:
    """A JSON text as Python values; name is what the whole is called in errors.

    Raises MalformedBody, DuplicateName, or InvalidRequest for a number that is not finite.
    """
    if len(body) > MAX_BYTES:
        raise verdict(body)
    try:
        orjson.loads(body)  # strict, and it knows the position of NaN and 1e999, which json.loads lets pass
        return json.loads(body, object_pairs_hook=unique)
    except orjson.JSONDecodeError as error:
        place = name + _locate(error.doc[: error.pos])
        number = (_TOO_LARGE if "infinity" in error.msg else _NOT_FINITE).match(error.doc, error.pos)
        if number:
            sign = "-" if error.doc[: error.pos].endswith("-") else ""
            raise bad(place, f"is {sign}{number[0]:.40}; expected a finite number") from None
        at = f", in {spell(place)}" if place else ""
        raise MalformedBody(f"not JSON: {error.msg}: line {error.lineno} column {error.colno}{at}") from None
    except RecursionError:
        raise MalformedBody("not a request: lists are nested hundreds deep") from None


def verdict(text: bytes = b"[]") -> ServiceError:
    """The error of a body too large to look for the place in it, from the text, all of it or a part, that is wrong."""
    advice = f"in a body of up to {MAX_BYTES // 2**20} MiB the place would be named"
    try:
        simdjson.Parser().parse(text)
    except (ValueError, RuntimeError) as error:
        if "NUMBER_ERROR" not in str(error) and b"NaN" not in text and b"Infinity" not in text:
            return MalformedBody(f"not JSON: {error}; {advice}")
    what = "an empty list, something that is no 32-bit number where numbers belong, a name twice, or much white space"
    return InvalidRequest([FieldError((), f"the body holds {what}; {advice}")])


def _locate(text: str) -> Loc:
    """Which value a JSON text was in where it broke off: `("inputs", 3, 17)`; empty at the top, or too deep to say."""
    path: list[str | int] = []
    key = ""
    for mark in _MARKS.findall(text):
        if mark == "[":
            path.append(0)
        elif mark == "{":
            path.append("")
        elif mark in "]}" and path:
            path.pop()
        elif mark == "," and path and isinstance(path[-1], int):
            path[-1] += 1
        elif mark == ":" and path and isinstance(path[-1], str):
            path[-1] = key
        elif mark[0] == '"':
            key = mark[1:-1]
    return tuple(step for step in path if step != "") if len(path) <= MAX_DEPTH + 1 else ()


def _numbers(items: list[Any], loc: Loc) -> Floats | Ragged:
    """A list of numbers, or of lists of them; loc is the field's name, for errors. Raises InvalidRequest."""
    values: list[float] = []
    sizes: Sizes = []
    _collect(items, loc, values, sizes)
    return arrays.assemble(np.array(values, np.float64).astype(np.float32), sizes)


def _collect(items: list[Any], loc: Loc, values: list[float], sizes: Sizes) -> None:
    """Gather numbers in order and lengths by depth. Raises InvalidRequest at the first thing out of place."""
    depth = len(loc)  # the field's name counts for its own list
    if depth > MAX_DEPTH:
        raise bad(loc, f"is nested deeper than the {MAX_DEPTH} lists that a field can have")
    if len(sizes) < depth:
        if values:
            raise bad(loc, "is a list; expected a number, as in the places before it")
        sizes.append([])
    sizes[depth - 1].append(len(items))
    for index, item in enumerate(items):
        place = (*loc, index)
        if isinstance(item, list):
            _collect(item, place, values, sizes)
        elif isinstance(item, bool) or not isinstance(item, int | float):
            raise bad(place, f"is {_kind(item)}; expected a number")
        elif len(sizes) > depth:
            raise bad(place, "is a number; expected a list, as in the places before it")
        elif abs(item) >= arrays.OVERFLOW:
            raise arrays.too_large(place, item)
        else:
            values.append(item)


def _kind(value: Any) -> str:
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
