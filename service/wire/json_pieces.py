"""Large JSON objects of numbers, read piece by piece: the same fields as in one go, but others run between the pieces.

The parser holds the GIL for as long as a call takes, so that nothing else in the process runs meanwhile, on whatever
thread. So long lists are cut out of the body, which leaves a short text, and are themselves cut between two numbers or
two lists:

    {"inputs":[[[1,2],[3,4]],[[5,6]]],"h0":[]}
    {"inputs":[                     ],"h0":[]}      the short text
              [[[1,2],[3]]]                         pieces, each closed to a list of its own
              [[[      4]],[[5,6]]]

If the short text is valid, with empty lists for the long ones, and so is every piece, then the whole is valid, and its
lists are those of the pieces, joined where they were cut.
"""

import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from io import BytesIO

import numpy as np
import orjson

from service.errors import InvalidRequest, MalformedBody
from service.wire import json, json_slow
from service.wire.arrays import MAX_FIELDS, Document, Floats, Ragged, assemble
from service.wire.json import Suspicious

PIECE_BYTES = 64 * 1024
"""About so much is parsed at a time: 0.2 ms, and 30 ms for numbers that are the hardest to round. Less where it would
be more than `MOST_LISTS`."""

MAX_REST_BYTES = 64 * 1024  # most that is left of a body without its long lists, and the longest string
MOST_LISTS = 2000  # lists in a piece, about: the length of each is looked at
LONG = 8  # a list of more than an eighth of a piece is cut out: no request has so many that the others make a long text

# Nothing is looked for in more than a piece. A string that goes on beyond, or white space, is no part of a request.
_STRING = re.compile(rb'"([^"\\]|\\.)*+"', re.DOTALL)
_LIST = re.compile(rb'\s{0,64}+:\s{0,64}+\[\s{0,64}+(?:(\[)\s{0,64}+(\[)?+\s{0,64}+)?+(?!")')
_AFTER = re.compile(rb'\s{0,9999}+(?:,\s{0,64}+"(?:[^"\\]|\\.){0,99}+"\s{0,64}+:|\})', re.DOTALL)
_CUT = re.compile(rb",\s{0,64}+(?=[-0-9]|(\[)\s{0,64}+(?:[-0-9]|(\[)))")


def decode(body: bytes) -> Iterator[Document]:
    """An empty document after each piece, and at the end what `json.decode` gives.

    Raises MalformedBody, InvalidRequest; or Suspicious, with the call that gives fields or error and takes long.
    """
    lists: dict[str, Floats | Ragged] = {}
    texts, rest, body = [], 0, body.rstrip()
    for name, depth, begin, end in _long_lists(body):
        texts += [body[rest:begin], b"[]"]
        lists[name] = yield from _list(body, begin + 1, end, name, depth)
        rest = end
    size = sum(map(len, texts)) + len(body) - rest
    if size > MAX_REST_BYTES:
        raise InvalidRequest.at(f"beside long lists of numbers the body has {size} bytes; no request has so many")
    text = b"".join((*texts, body[rest:]))
    if text.count(b"{") > 1:  # its lists would have no field of their own
        raise InvalidRequest.at("there is an object within the body; no field is one")
    try:
        yield _filled(json.decode, text, lists)
    except Suspicious:
        raise Suspicious(partial(_filled, json_slow.decode, text, lists)) from None


def decode_row(line: bytes) -> Iterator[Document]:
    """As `decode`, of a list of numbers alone, which is called `inputs`."""
    line = line.strip()
    yield {"inputs": (yield from _list(line, 1, len(line), "inputs", 1))}


def _filled(decode: Callable[[bytes], Document], text: bytes, lists: dict[str, Floats | Ragged]) -> Document:
    """The fields of the short text, and the long lists in their places."""
    return {**decode(text), **lists}


def _long_lists(body: bytes) -> Iterator[tuple[str, int, int, int]]:
    """The long lists of numbers: name, depth, and the places where they begin and end.

    A list ends with the last bracket before the next string; where it does not, that string, or the end of the body,
    is in its midst. Raises InvalidRequest for more strings, or a longer one, than a request has.
    """
    end = 0
    for _ in range(4 * MAX_FIELDS):
        quote = body.find(b'"', end)
        if quote < 0:
            return
        string = _STRING.match(body, quote, quote + MAX_REST_BYTES)
        if not string:
            break
        end = string.end()
        following = body.find(b'"', end)
        stop = following if following >= 0 else len(body)
        opening = _LIST.match(body, end)
        if opening:
            begin, last = body.index(b"[", end), body.rfind(b"]", end, stop) + 1
            is_whole = last and _AFTER.match(body, last)
            if not is_whole or stop - end > PIECE_BYTES // LONG:
                end = last if is_whole else stop
                yield _name(string[0]), 1 + sum(map(bool, opening.groups())), begin, end
    raise InvalidRequest.at("the body has more strings, or a longer one, than any request")


def _list(body: bytes, begin: int, end: int, name: str, depth: int) -> Generator[Document, None, Floats | Ragged]:
    """The value of a list of numbers, which begins after its bracket. Raises Suspicious."""
    view = memoryview(body)
    values, sizes = BytesIO(), [BytesIO() for _ in range(depth)]
    # What the lists that are cut hold so far, from the outermost in.
    counts = [0]
    while True:
        lists = body.count(b"[", begin, begin + PIECE_BYTES // 4)
        size = min(PIECE_BYTES, PIECE_BYTES // 4 * MOST_LISTS // max(lists, 1))
        is_last = end - begin <= 2 * size
        cut = None if is_last else _CUT.search(body, begin + size, min(end, begin + size + PIECE_BYTES))
        stop = cut.start() if cut else end if is_last else begin + size
        is_cut = max(depth - sum(map(bool, cut.groups())), 1) if cut else 0
        opened = b"".join((b"[" * len(counts), view[begin:stop]))
        # A list that is cut goes on in both its parts: as an item it counts once.
        before = [count - (level + 1 < len(counts)) for level, count in enumerate(counts)]
        if not cut and not (is_last and opened.endswith(b"]")):
            # A string is in its midst, or the body ends in it, or a piece of it has no place to cut.
            text = (opened + b'""' * (end < len(body))) if is_last else opened.rpartition(b",")[0]
            if not text and len(opened.split()) == 1 and not opened[-1:].isspace():
                text = opened  # a number of any length; else blanks of any length
            raise Suspicious(partial(json_slow.explain, text, name, before, depth, closes=end < len(body)))
        try:
            numbers, lengths = json.decode_list(opened + b"]" * is_cut)
            # An empty list at a cut could be nothing but its brackets, which are ours.
            if len(lengths) != depth or not all(level[-1] for level in lengths[:is_cut]):
                raise Suspicious
        except Suspicious:
            raise Suspicious(partial(json_slow.explain, opened, name, before, depth, closes=is_cut > 0)) from None
        values.write(numbers.data)
        for level, count in enumerate(before):
            lengths[level][0] += count
        counts = [level.pop() for level in lengths[:is_cut]]
        for gathered, closed in zip(sizes, lengths, strict=True):
            gathered.write(np.array(closed, np.int32).data)
        if not cut:
            break
        begin = cut.end()
        yield {}
    arrays = [np.frombuffer(gathered.getbuffer(), np.int32) for gathered in sizes]
    return assemble(np.frombuffer(values.getbuffer(), np.float32), arrays)


def _name(text: bytes) -> str:
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"not JSON: {error.msg}: in a name") from None
