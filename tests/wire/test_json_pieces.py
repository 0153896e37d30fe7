"""A body read in pieces is what it is read in one go, whatever it holds, or is left to that."""

import json as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire import json, json_pieces
from service.wire.arrays import Ragged

NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(-1e39, 1e39), st.floats(width=32))
VECTORS = st.lists(NUMBERS, max_size=3)
ROWS = st.lists(VECTORS, max_size=5)
ARRAYS = st.one_of(VECTORS, ROWS, st.lists(ROWS, max_size=5))
EVEN = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)).map(lambda shape: np.ones(shape).tolist())
NAMES = st.sampled_from(["inputs", "h0", "c0", "model", '"inputs":[', "\\", "é", "[[", "]", ""])
VALUES = st.one_of(
    ARRAYS, EVEN, EVEN, NAMES, st.none(), st.integers(), st.just({"inputs": [[1, 2]]}), st.just([{}, [1]])
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
BLANKS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " : ")])
MARKS = st.text('[]{}",:1.e-+N \\u0n', max_size=3)
SIZES = st.integers(1, 40)


def spelt(fields, blanks, indent):
    """A JSON object, names that stand twice and all."""
    members = (
        standard.dumps(name) + blanks[1] + standard.dumps(value, separators=blanks, indent=indent)
        for name, value in fields
    )
    return "{" + blanks[0].join(members) + "}"


def read(decode, body):
    """What comes of it, in a form that can be compared: bits, not numbers."""
    try:
        fields = decode(body)
    except json.Suspicious:
        return None
    return {name: (type(value).__name__, bits(value)) for name, value in fields.items()}


def pieced(body):
    *between, fields = json_pieces.decode(body)
    assert set(between) <= {None}
    return fields


def bits(value):
    if isinstance(value, Ragged):
        return [bits(part) for part in (value.values, *value.sizes)]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


def same_in_pieces_of(size, body):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE_BYTES", size)
        return read(pieced, body) == read(json.decode, body)


@given(fields=FIELDS, blanks=BLANKS, indent=st.none() | st.integers(0, 2), size=SIZES)
def test_pieces_are_read_as_the_whole_is(fields, blanks, indent, size):
    assert same_in_pieces_of(size, spelt(fields, blanks, indent).encode())


@given(fields=FIELDS, blanks=BLANKS, size=SIZES, data=st.data())
def test_nothing_becomes_valid_in_pieces(fields, blanks, size, data):
    text = spelt(fields, blanks, None)
    for _ in range(data.draw(st.integers(1, 2))):
        begin, end, source = (data.draw(st.integers(0, len(text))) for _ in range(3))
        moved = data.draw(MARKS | st.just(text[source : source + 6]))
        text = text[:begin] + moved + text[min(max(begin, end), begin + 4) :]
    assert same_in_pieces_of(size, text.encode())
    assert same_in_pieces_of(size, text[: data.draw(st.integers(0, len(text)))].encode())


@given(text=st.text('[]{}",:1- \\', max_size=40), size=st.integers(1, 5))
def test_no_garbage_is_read_in_pieces(text, size):
    assert same_in_pieces_of(size, b'{"x":[[1],[2]' + text.encode())
    assert same_in_pieces_of(size, b'{"x":[[[1],[2]],[[3],' + text.encode() + b"]]}")


# What pieces alone would take for valid.
@pytest.mark.parametrize(
    "body",
    [
        b'{"x": [[[1],[2],],[[3],[4]]]}',
        b'{"x": [,[1],[2],[3],[4]]}',
        b'{"x": [[1],[2],[3],]}',
        b'{"x": [[[1],[2]],,[[3],[4]]]}',
        b'{"x": [[[1],[2]],[,[3],[4]]]}',
        b'{"x": [[1],[2]],[[3],[4]]}',
        b'{"x": [[1],[2]]],[[[3],[4]]}',
        b'{"x": [[[1],[2]],[3],[[4],[5]]]}',
        b'{"x": [[[1],[2]],[3,[4]],[[5]]]}',
        b'{"x": [[1],[2],3,[4],[5]]}',
        b'{"x": [[1],[2],[3]], "x": [[1],[2],[3]]}',
        b'{"x": [[1],[2],[3]], "y": {"x": []}}',
        b'{"y": {"x": [[1],[2],[3]]}, "x": []}',
        b'{"y": ["a", {"x": [[1],[2],[3]]}], "x": []}',
        b'{"x": [], "y": "\\"x\\":[[1],[2],[3]]"}',
        b'{"x": [[1],[2],[NaN]]}',
        b'{"x": [[1],[2],[1e39]]}',
        b'{"x": [[1],[2],["3"]]}',
        b'{"x": [[1],[2],[3]]',
        b'{"x": [[1],[2],[3]}',
        b'{"x": [[1],[2],[3]]}]',
    ],
)
def test_invalid_json_is_refused_in_pieces(body):
    assert read(json.decode, body) is None or b'"\\"x' in body
    for size in range(1, len(body)):
        assert same_in_pieces_of(size, body)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(60.0).reshape(5, 4, 3).tolist(),
        np.arange(60.0).reshape(20, 3).tolist(),
        np.arange(60.0).reshape(1, 20, 3).tolist(),
        np.arange(60.0).reshape(20, 1, 3).tolist(),
        [[[1, 2]] * 3, [[3, 4]] * 9, [[5, 6]]],
    ],
)
@pytest.mark.parametrize("blanks", [(",", ":"), (" , \n", " :\t")])
def test_others_have_their_turn_between_pieces(value, blanks, monkeypatch):
    monkeypatch.setattr(json_pieces, "PIECE_BYTES", 30)
    body = spelt([("model", "a"), ("inputs", value), ("h0", value), ("returns", ["outputs"])], blanks, None).encode()
    assert read(pieced, body) == read(json.decode, body)
    assert len(list(json_pieces.decode(body))) > len(body) // 120


def test_pieces_of_short_lists_are_smaller():
    lists = 200_000
    body = b'{"inputs":[' + b",".join([b"[1]"] * lists) + b"]}"
    assert read(pieced, body) == read(json.decode, body)
    assert len(list(json_pieces.decode(body))) > lists // (2 * json_pieces.MOST_LISTS)


@pytest.mark.parametrize("place", [b":", b"[[", b"],["])
def test_much_white_space_is_read_in_one_go(place):
    body = b'{"inputs":[[1,2],[3,4]]}'.replace(place, b" ".join(bytes([byte]) for byte in place) + b" " * 2**20, 1)
    assert read(pieced, body) == read(json.decode, body)
