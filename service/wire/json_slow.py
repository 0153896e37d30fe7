"""The thorough reading of a JSON body that the fast parser refused: the same values, or an error that names the place.

It makes a Python object of every number: callers keep it off the event loop, and give it short bodies, or pieces.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import orjson

from service.errors import DuplicateName, Loc, MalformedBody, spell
from service.wire import arrays
from service.wire.arrays import MAX_DEPTH, MAX_FIELDS, Document, Floats, Ragged, bad

WITH_NULL = ("feedback",)  # fields whose lists may hold null; they stay lists then

_NOT_FINITE = re.compile(r"-?(?:NaN|Infinity)\b")
_TOO_LARGE = re.compile(r"[0-9.eE+-]+")

_MARKS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},:]', re.DOTALL)


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


def explain(text: bytes, name: str, base: Sequence[int], depth: int, *, closes: bool = False) -> NoReturn:
    """Raise the error of a piece of a field's list: of the lists that it goes on with, base are the items before it.

    depth is that of the whole list; closes: whether brackets are missing at the end.
    """
    text += b"]" * (closes * (text.count(b"[") - text.count(b"]")))
    if text:
        _collect(_parse(text, (name,), base), (name,), [], [[] for _ in range(depth)], base, strict=True)
    what = f"holds blanks or a number of more bytes than in any request, after {spell((name, *base))}"
    raise bad((name,), what)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text, for `object_pairs_hook`. Raises DuplicateName."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise DuplicateName(f"the name {twice!r:.80} stands twice in one object")
    return fields


def _parse(body: bytes, name: Loc = (), base: Sequence[int] = ()) -> Any:
    """A JSON text as Python values; name is what the whole is called in errors, base as in `explain`.

    Raises MalformedBody, DuplicateName, or InvalidRequest for a number that is not finite.
    """
    try:
        orjson.loads(body)  # strict, and it knows the position of NaN and 1e999, which json.loads lets pass
        return json.loads(body, object_pairs_hook=unique)
    except orjson.JSONDecodeError as error:
        place = name + _locate(error.doc[: error.pos], base)
        number = (_TOO_LARGE if "infinity" in error.msg else _NOT_FINITE).match(error.doc, error.pos)
        if number:
            sign = "-" if error.doc[: error.pos].endswith("-") else ""
            raise bad(place, f"is {sign}{number[0]:.40}; expected a finite number") from None
        line = f"line {error.lineno} " if b"\n" in body else ""
        at = [] if base else [f"{line}column {error.colno}"]  # a piece knows nothing of the lines before it
        at += [f"in {spell(place)}"] if place else []
        raise MalformedBody(f"not JSON: {error.msg}: {', '.join(at)}") from None
    except RecursionError:
        raise MalformedBody("not a request: lists are nested hundreds deep") from None


def _locate(text: str, base: Sequence[int]) -> Loc:
    """Which value a JSON text was in where it broke off: `("inputs", 3, 17)`; empty at the top, or too deep to say."""
    path: list[str | int] = []
    key = ""
    for mark in _MARKS.findall(text):
        if mark == "[":
            goes_on = len(path) < len(base) and path == [*base[: len(path)]]
            path.append(base[len(path)] if goes_on else 0)
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
    sizes: list[list[int]] = []
    _collect(items, loc, values, sizes)
    return arrays.assemble(np.array(values, np.float64).astype(np.float32), sizes)


def _collect(
    items: list[Any],
    loc: Loc,
    values: list[float],
    sizes: list[list[int]],
    base: Sequence[int] = (),
    *,
    strict: bool = False,
) -> None:
    """Gather numbers in order and lengths by depth; base as in `explain`; strict: refuse what is not read in pieces.

    Raises InvalidRequest at the first thing out of place.
    """
    depth = len(loc)  # the field's name counts for its own list
    if depth > MAX_DEPTH:
        raise bad(loc, f"is nested deeper than the {MAX_DEPTH} lists that a field can have")
    if len(sizes) < depth:
        if values or strict:
            raise bad(loc, "is a list; expected a number, as in the places before it")
        sizes.append([])
    sizes[depth - 1].append(len(items))
    if strict and not items:
        raise bad(loc, "is empty; expected numbers")
    first = base[0] if base else 0
    for index, item in enumerate(items, first):
        place = (*loc, index)
        if isinstance(item, list):
            _collect(item, place, values, sizes, base[1:] if index == first else (), strict=strict)
        elif len(sizes) > depth and _kind(item) == "a number":
            raise bad(place, "is a number; expected a list, as in the places before it")
        else:
            values.append(_number(item, place, strict=strict))


def _number(item: Any, place: Loc, *, strict: bool) -> float:
    """A finite 32-bit number. Raises InvalidRequest."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise bad(place, f"is {_kind(item)}; expected a number")
    if abs(item) >= arrays.OVERFLOW:
        raise arrays.too_large(place, item)
    if strict and isinstance(item, int) and not -(2**63) <= item < 2**64:
        raise bad(place, "is an integer of more than 64 bits; write it with a point or an exponent")
    return item


def _kind(value: Any) -> str:
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
