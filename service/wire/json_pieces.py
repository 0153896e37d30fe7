"""Large JSON objects of numbers, read piece by piece: the same fields as in one go, but others run between the pieces.

The parser holds the GIL for as long as a call takes, so that nothing else in the process runs meanwhile, on whatever
thread: milliseconds for a large body. So long lists are cut out of the body, which leaves a short text, and are
themselves cut between their innermost lists:

    {"inputs":[[[1,2],[3,4]],[[5,6]]],"h0":[]}
    {"inputs":[                     ],"h0":[]}      the short text
              [[[1,2]       ]]                      pieces, each closed to a list of its own
              [[      [3,4]],[[5,6]]]

If the short text is valid, with empty lists for the long ones, and so is every piece, then the whole is valid, and its
lists are those of the pieces, one after the other.
"""

import re
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import numpy as np

from service.wire import json, json_slow
from service.wire.arrays import MAX_FIELDS, Document, Floats, Ragged, Sizes, assemble
from service.wire.json import Suspicious

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
"""About so much is parsed at a time, half a millisecond; less where it would be more than `MOST_LISTS`."""

MOST_LISTS = 2000
"""Innermost lists in a piece, about: the length of each is looked at."""

WHOLE_BYTES = 8 * 2**20
"""Longest text that is read in one go, for which others wait some 10 ms."""

SAMPLE_BYTES = 16 * 1024
"""Of a piece, to see how long its lists are."""

# Much white space is not looked through again and again: such bodies are read in one go.
_AS_A_FIELD = re.compile(rb"\s{0,64}+:\s{0,64}+(?=\[)")
_OPENING = re.compile(rb"\[\s{0,64}+\[\s{0,64}+(\[)?")
_BETWEEN = re.compile(rb"\]\s{0,64}+,\s{0,64}+(?=\[\s{0,64}+(\[)?)")


def decode(body: bytes) -> Iterator[Document | None]:
    """None after each piece, and at the end what `json.decode` gives. Raises Suspicious as it does.

    A body that only this reader is not sure of is read in one go, unless others would wait too long for that: then it
    raises MalformedBody or InvalidRequest.
    """
    try:
        yield from _decode(body)
    except Suspicious as error:
        if len(body) > WHOLE_BYTES:
            raise json_slow.verdict(*error.args) from None
        yield None
        yield json.decode(body)


def _decode(body: bytes) -> Iterator[Document | None]:
    found = _long_lists(body)
    texts, end = [], 0
    for _, begin, following in found:
        texts += [body[end:begin], b"[]"]
        end = following
    fields = dict(_read(json.decode, b"".join((*texts, body[end:]))))
    for name, begin, end in found:
        # A name that stands twice was refused, and so were objects within: this is the list that was cut out.
        empty = fields.get(name)
        if not isinstance(empty, np.ndarray) or empty.size:
            raise Suspicious
        fields[name] = yield from _list(body, begin, end)
    yield fields


def _long_lists(body: bytes) -> list[tuple[str, int, int]]:
    """Names and the long lists of lists that follow them, up to the last bracket before the next string.

    In valid JSON that has no backslash in its strings, quotes are beginnings and ends of strings by turns. Raises
    Suspicious.
    """
    found: list[tuple[str, int, int]] = []
    quote = body.find(b'"')
    for _ in range(4 * MAX_FIELDS):
        if quote < 0:
            return found
        closing = body.find(b'"', quote + 1)
        name, following = body[quote + 1 : closing], body.find(b'"', closing + 1)
        if closing < 0 or b"\\" in name:
            raise Suspicious
        stop = following if following >= 0 else len(body)
        if stop - closing > 2 * PIECE_BYTES:
            colon = _AS_A_FIELD.match(body, closing + 1)
            end = body.rfind(b"]", closing, stop) + 1
            if colon and end and _OPENING.match(body, colon.end()):
                found.append((name.decode("ascii", "replace"), colon.end(), end))
        quote = following
    raise Suspicious


def _read(decode: Callable[[bytes], T], text: bytes) -> T:
    """Read a part of the body. Raises Suspicious with the part, or without it if it is too long to look at."""
    if len(text) > WHOLE_BYTES:
        raise Suspicious
    try:
        return decode(text)
    except Suspicious:
        raise Suspicious(text) from None


def _list(body: bytes, begin: int, end: int) -> Generator[None, None, Floats | Ragged]:
    """The value of the list of lists of numbers between two places. Raises Suspicious."""
    opening = _OPENING.match(body, begin)
    values: list[Floats] = []
    sizes: Sizes = [[], []] if opening and opening[1] else [[]]
    for text, goes_on in _pieces(body, begin + 1, end - 1, len(sizes) + 1):
        if values:
            yield
        numbers, (_, *these) = _read(json.decode_list, text)
        # An empty list at a cut could be nothing but its brackets, which are ours.
        if len(these) != len(sizes) or not these[0][0] or not these[0][-1]:
            raise Suspicious
        values.append(numbers)
        if goes_on:
            sizes[0][-1] += these[0].pop(0)
        for gathered, lengths in zip(sizes, these, strict=True):
            gathered.extend(lengths)
    return assemble(np.concatenate(values), [[len(sizes[0])], *sizes])


def _pieces(body: bytes, begin: int, end: int, depth: int) -> Iterator[tuple[bytes, bool]]:
    """A list's content cut between its innermost lists, and whether a piece begins amid a row of the one before it."""
    view = memoryview(body)
    opened = 1
    while begin < end:
        lists = body.count(b"[", begin, begin + SAMPLE_BYTES)
        size = min(PIECE_BYTES, SAMPLE_BYTES * MOST_LISTS // max(lists, 1))
        cut = _BETWEEN.search(body, begin + size, end) if end - begin > 2 * size else None
        closed = 2 if cut and depth == 3 and not cut[1] else 1
        stop = cut.start() + 1 if cut else end
        yield b"".join((b"[" * opened, view[begin:stop], b"]" * closed)), opened == 2
        begin, opened = cut.end() if cut else end, closed
