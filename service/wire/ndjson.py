"""Blocks of NDJSON lines, each one step of a stream: many lines read in one go, and many answers printed in one.

A line that is a plain list, or an object of `inputs` and `step`, is cut out of its line by marks alone; all lists
together are then one JSON text. It must hold as many lists of numbers as there are lines; as each of these begins and
ends with a bracket, each is one list. A block that does not add up is `Suspicious`, and its lines are read one by one.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from service.wire.arrays import Floats
from service.wire.json import Suspicious, decode_list

_BEFORE = re.compile(rb'\s*\{\s*(?:"step"\s*:\s*(0|[1-9][0-9]{0,17})\s*,\s*)?"inputs"\s*:\s*(?=\[)')
_ID_LINE = re.compile(
    rb'\s*(?:(0|[1-9][0-9]{0,7})|\{\s*(?:"step"\s*:\s*(0|[1-9][0-9]{0,17})\s*,\s*)?"inputs"\s*:\s*(0|[1-9][0-9]{0,7})'
    rb'\s*(?:,\s*"step"\s*:\s*(0|[1-9][0-9]{0,17})\s*)?\})\s*'
)
_AFTER = re.compile(rb'\s*(?:,\s*"step"\s*:\s*(0|[1-9][0-9]{0,17})\s*)?\}\s*')


def decode(lines: Sequence[bytes], width: int) -> tuple[Floats, list[int | None]]:
    """The inputs (k, width) of k lines, and the numbers that they give their steps. Raises Suspicious."""
    lists, numbers = [], []
    for line in lines:
        plain = line.startswith(b"[") and line.endswith(b"]")
        text, number = (line, None) if plain else _unwrapped(line)
        lists.append(text)
        numbers.append(number)
    values, sizes = decode_list(b"[%b]" % b",".join(lists))
    if sizes != [[len(lines)], [width] * len(lines)]:
        raise Suspicious
    return values.reshape(-1, width), numbers


def decode_ids(lines: Sequence[bytes]) -> tuple[Floats, list[int | None]]:
    """The token ids (k, 1) of k lines, each a whole number or an object with one, and the numbers of their steps.

    Raises Suspicious.
    """
    ids, numbers = [], []
    for line in lines:
        found = _ID_LINE.fullmatch(line)
        if found is None or (found[2] and found[4]):
            raise Suspicious
        ids.append(int(found[1] or found[3]))
        step = found[2] or found[4]
        numbers.append(int(step) if step else None)
    return np.array(ids, np.float32)[:, None], numbers


def encode(fields: Mapping[str, Floats], first: int, count: int) -> list[bytes]:
    """Lines that answer k = count steps, numbered from first; the fields are arrays (k, …), one step of each a line.

    Numbers are printed as `json.encode` prints them. Arrays of more than two axes are for k = 1 alone.
    """
    columns = [_texts(values) for values in fields.values()]
    keys = [b'"%b":' % name.encode() for name in fields]
    if len(keys) == 1:  # by far the commonest, and worth its own words
        key = keys[0]
        return [b'{%b%b,"step":%d}\n' % (key, text, step) for step, text in enumerate(columns[0], first)]
    lines = []
    for index in range(count):
        members = [key + column[index] for key, column in zip(keys, columns, strict=True)]
        lines.append(b"{%b}\n" % b",".join([*members, b'"step":%d' % (first + index)]))
    return lines


def _unwrapped(line: bytes) -> tuple[bytes, int | None]:
    """The list in an object of `inputs` and perhaps `step`, and the step. Raises Suspicious."""
    before = _BEFORE.match(line)
    end = line.rfind(b"]") + 1
    after = _AFTER.fullmatch(line, end) if end else None
    if before is None or after is None:
        text = line.strip()  # a list with blanks around it
        if not (text.startswith(b"[") and text.endswith(b"]")):
            raise Suspicious
        return text, None
    if before[1] and after[1]:
        raise Suspicious
    step = before[1] or after[1]
    return line[before.end() : end], None if step is None else int(step)


def _texts(values: Floats) -> list[bytes]:
    """Each of k arrays as JSON text."""
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    if len(values) == 1:
        return [text[1:-1]]
    return [b"[%b]" % row for row in text[2:-2].split(b"],[")]
