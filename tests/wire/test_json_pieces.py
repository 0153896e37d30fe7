"""A body read in pieces is what it is read in one go, whatever it holds, or is left to that."""

import json as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError
from service.wire import json, json_pieces, json_slow
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
SIZES = st.integers(32, 80)  # in fewer bytes a number and its brackets have no place


def spelt(fields, blanks, indent):
    """A JSON object, names that stand twice and all."""
    members = (
        standard.dumps(name) + blanks[1] + standard.dumps(value, separators=blanks, indent=indent)
        for name, value in fields
    )
    return "{" + blanks[0].join(members) + "}"


def read(decode, body):
    """What comes of it, in a form that can be compared: bits, not numbers; or the error."""
    try:
        try:
            fields = decode(body)
        except json.Suspicious as error:
            fields = error.args[0]() if error.args else json_slow.decode(body)
    except ServiceError as error:
        return error
    return {name: (type(value).__name__, bits(value)) for name, value in fields.items()}


def pieced(body):
    *between, fields = json_pieces.decode(body)
    assert not any(between)
    return fields


def bits(value):
    if isinstance(value, Ragged):
        return [bits(value.values), *map(list, value.sizes)]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


NOT_IN_PIECES = (
    "is empty",
    "more than 64 bits",
    "holds blanks",
    "no request has so many",
    "than any request",
    "no field is one",
)


def same_in_pieces_of(size, body):
    """Whether pieces give what the whole gives: the same fields, or an error of one sort or the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE_BYTES", size)
        parts, whole = read(pieced, body), read(json.decode, body)
    if isinstance(whole, ServiceError) or isinstance(parts, ServiceError):
        refused = isinstance(parts, ServiceError) and any(words in str(parts) for words in NOT_IN_PIECES)
        return isinstance(parts, ServiceError) and (refused or isinstance(whole, ServiceError))
    return parts == whole


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


def row_in_pieces(line):
    *_, fields = json_pieces.decode_row(line)
    return fields


def row_as_a_whole(line):
    """As short lines are read; what is no list of numbers is refused by the streams, and by the pieces."""
    try:
        found = json.decode_steps(line)
    except json.Suspicious:
        found = json_slow.decode_steps(line)
    if found.ndim > 1:
        raise InvalidRequest.at("a list of lists")
    return {"inputs": found}


@given(
    values=st.lists(NUMBERS | VECTORS | st.sampled_from([None, "a", {}]), max_size=20),
    rest=st.text('[]{}",:1- \\', max_size=6)
    | st.sampled_from(["", ',"step":5,"x":[2]', ',"inputs":[1]', "}{", '],"a":[']),
    size=SIZES,
)
def test_row_is_read_in_pieces_as_the_whole_is(values, rest, size):
    line = (standard.dumps(values) + rest).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE_BYTES", size)
        parts, whole = read(row_in_pieces, line), read(row_as_a_whole, line)
    if isinstance(parts, ServiceError) and any(words in str(parts) for words in NOT_IN_PIECES):
        return
    if isinstance(whole, ServiceError):
        # Of a wrong value and bad JSON behind it, pieces meet the value first.
        assert isinstance(parts, InvalidRequest) or type(parts) is type(whole)
    else:
        assert parts == whole


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
    assert isinstance(read(json.decode, body), ServiceError) or b'"y"' in body
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
    assert read(pieced, body) == read(json_slow.decode, body)
    assert len(list(json_pieces.decode(body))) > lists // (2 * json_pieces.MOST_LISTS)


LARGE = np.arange(100_000.0)


@pytest.mark.parametrize(
    "shape", [(100_000,), (1, 100_000), (50_000, 2), (5, 2, 10_000), (10_000, 5, 2), (1, 100_000, 1)]
)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("null", "is null"),
        ("NaN", "is NaN"),
        ("-1e999", "is -1e999"),
        ("1e39", "is 1e+39"),
        ("{}", "is an object"),
        ("1,,1", "not JSON"),
        (str(10**30), "64 bits"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 66_666, 99_999])
def test_wrong_number_in_large_body_is_named(shape, value, says, place):
    text = standard.dumps(LARGE.reshape(shape).tolist()).replace(f"{place}.0", value, 1)
    error = read(pieced, f'{{"h0":[[1]],"inputs":{text},"model":"a"}}'.encode())
    loc = "".join(f"[{index}]" for index in np.unravel_index(place, shape))
    assert says in str(error)
    assert f"inputs{loc}" in str(error) or says == "not JSON"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inputs":[[]%b]}' % (b",[]" * 50_000), "inputs[0] is empty"),
        (b'{"inputs":[[{}%b]]}' % (b",{}" * 50_000), "inputs[0][0] is an object"),
        (b'{"inputs":[[1],[%b1]]}' % (b" " * 500_000), "inputs holds blanks"),
        (b'{"inputs":[[%b]]}' % (b"9" * 500_000), "inputs[0][0] is 9999999"),
        (b'{"inputs":[%b["1"]]}' % (b"[1]," * 50_000), "inputs[50000][0] is a string"),
        (b'{"inputs":[%b[[1]]]}' % (b"[1]," * 50_000), "inputs[50000][0] is a list"),
        (b'{"inputs":[%b1]}' % (b"[1]," * 50_000), "inputs[50000] is a number; expected a list"),
        (b'{"inputs":["1"%b]}' % (b",[1]" * 50_000), "beside long lists of numbers"),
        (b'{"inputs":[%b[1' % (b"[1]," * 50_000), "inputs[50000]"),
        (b'{"inputs":[[1]%b]}}' % (b",[1]" * 50_000), "not JSON"),
        (b'{"model":"%b"}' % (b"a" * 100_000), "a longer one"),
        (b'{"a":1%b}' % (b',"a":1' * 50_000), "more strings"),
        (b'{"model":%b"a"}' % (b" " * 100_000), "beside long lists of numbers the body has 100013 bytes"),
        (b'{"inputs":[[1]%b],"inputs":1}' % (b",[1]" * 50_000), "'inputs' stands twice"),
    ],
)
def test_what_is_no_numbers_is_refused_in_a_large_body(body, says):
    assert says in str(read(pieced, body))
