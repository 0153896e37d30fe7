"""JSON numbers keep their bits, the fast reading equals the thorough one, and errors name the place."""

import json as stdlib_json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.errors import DuplicateName, InvalidRequest, MalformedBody
from service.wire import json, json_slow
from service.wire.arrays import Ragged, RaggedRows

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=FLOATS)
# Numbers as people and programs write them, most of them no float32.
WRITTEN = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(-3e38, 3e38), st.decimals(-1000, 1000, places=9).map(float)
)
NESTED = st.lists(WRITTEN, max_size=4) | st.lists(st.lists(WRITTEN, max_size=3), max_size=4)
NESTED |= st.lists(st.lists(st.lists(WRITTEN, min_size=1, max_size=3), max_size=3), max_size=3)


def read(body: bytes):
    """As the service reads: fast, and thoroughly where the fast reading is not sure."""
    try:
        return json.decode(body)
    except json.Suspicious:
        return json_slow.decode(body)


def same(left, right) -> bool:
    if isinstance(left, Ragged):
        sizes = zip(left.sizes, right.sizes, strict=True)
        return same(left.values, right.values) and all(np.array_equal(*pair) for pair in sizes)
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@given(ARRAYS)
def test_printed_numbers_parse_to_same_bits(array):
    assert same(read(json.encode({"x": array}))["x"], array)


def test_printing_survives_double_rounding():
    """Decimal to float64 to float32 rounds twice: wrong only if a printed decimal lies next to a midpoint of floats.

    The shortest decimal of a float has at most 9 digits. Here are the floats whose shortest decimals come closest:
    neighbours of powers of two and of ten, where the spacing changes, through every binade, and subnormals.
    """
    powers = np.arange(1, 255, dtype=np.uint32) << 23
    near = (powers[:, None] + np.arange(-64, 65)).astype(np.uint32).ravel()
    tens = np.array([float(f"1e{exponent}") for exponent in range(-44, 39)], np.float32).view(np.uint32)
    near_tens = (tens[:, None] + np.arange(-64, 65)).astype(np.uint32).ravel()
    values = np.concatenate([near, near_tens, np.arange(1, 4096, dtype=np.uint32)]).view(np.float32)
    values = values[np.isfinite(values)]
    values = np.concatenate([values, -values])
    assert same(read(json.encode({"x": values}))["x"], values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16777217", 16777216.0),  # halfway between two floats: to even
        ("16777219", 16777220.0),
        ("1.00000005960464477539062500", 1.0),  # exactly 1 + 2^-24
        ("1.0000000596046450", 1.0000001),  # the next double above it
        ("1.00000005960464484", 1.0),  # between the two: read through float64, as Python itself does
        ("7.0064923216240853e-46", 0.0),  # half the smallest subnormal
        ("7.0064923216240862e-46", 1e-45),
        ("3.4028235e38", 3.4028235e38),
        ("3.40282355e38", 3.4028235e38),  # above the largest float, and still nearer to it than to infinity
        ("-0.0", -0.0),
    ],
)
def test_halfway_cases_round_to_even(text, expected):
    values = read(f'{{"x": [{text}]}}'.encode())["x"]
    assert values.tobytes() == np.array([expected], np.float32).tobytes()


@given(NESTED)
def test_fast_reading_equals_the_thorough_one(nested):
    body = stdlib_json.dumps({"x": nested}).encode()
    try:
        thorough = json_slow.decode(body)["x"]
    except InvalidRequest:
        with pytest.raises(json.Suspicious):
            json.decode(body)
        return
    assert same(read(body)["x"], thorough)


@given(st.binary(max_size=40) | st.text('[]{}",:0123456789.eE+-truefalsn aN', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(body):
    try:
        fields = read(body)
    except (MalformedBody, DuplicateName, InvalidRequest):
        return
    for value in fields.values():
        assert isinstance(value, np.ndarray | Ragged | list | dict | str | int | float | bool | None)


def test_ragged_rows_keep_their_lengths():
    ragged = read(b'{"x": [[[1, 2], [3, 4]], [[5, 6]]]}')["x"]
    assert ragged.values.tolist() == [1, 2, 3, 4, 5, 6]
    assert ragged.sizes == [[2], [2, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b"", MalformedBody, "empty"),
        (b"[1]", MalformedBody, "the body is a list; expected an object"),
        (b'{"inputs": [[1, 2], [3', MalformedBody, "in inputs[1][0]"),
        (b'{"inputs": [[1, 2], [3,]]}', MalformedBody, "column 23, in inputs[1][0]"),
        (b"null", MalformedBody, "null"),
        (b'{"x":\n1}{}', MalformedBody, "line 2 column 3"),
        (b'{"x": 1}{}', MalformedBody, "column 9"),
        (b"{'x': 1}", MalformedBody, ": column 2"),
        (b'{"x": "a\x00"}', MalformedBody, "column 9"),
        (b'{"x": "\\ud800"}', MalformedBody, "surrogate"),
        ('{"x": 1}'.encode("utf-16"), MalformedBody, ""),
        (b"[" * 100_000, MalformedBody, "depth limit"),
        (b'{"x": [[1, 2, ' + b"[" * 100_000 + b"]" * 100_000 + b"]]}", MalformedBody, ""),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, MalformedBody, ""),
        (b'{"x": [[[[1]]]]}', InvalidRequest, "x[0][0][0]"),
        (b'{"x": ' + b"[" * 900 + b"]" * 900 + b"}", InvalidRequest, "nested deeper"),
        (b'{"x": [1, NaN]}', InvalidRequest, "x[1] is NaN"),
        (b'{"x": [1, -Infinity]}', InvalidRequest, "x[1] is -Infinity"),
        (b'{"x": [[1, 1e999]]}', InvalidRequest, "x[0][1] is 1e999"),
        (b'{"x": [1, -1e999]}', InvalidRequest, "x[1] is -1e999"),
        (b'{"x": [1, 1e39]}', InvalidRequest, "x[1] is 1e+39"),
        (b'{"x": [1, 1' + b"0" * 400 + b"]}", InvalidRequest, "x[1] is 10000"),
        (b'{"x": [3.4028236e38]}', InvalidRequest, "x[0] is 3.4028236e+38; the largest 32-bit float is 3.40282347e+38"),
        (b'{"x": {"a": 1, "a": 2}}', DuplicateName, "'a' stands twice"),
        (b'{"x": [1, null]}', InvalidRequest, "x[1] is null"),
        (b'{"x": [true]}', InvalidRequest, "x[0] is a boolean"),
        (b'{"x": [1, "2"]}', InvalidRequest, "x[1] is a string"),
        (b'{"x": [1, {"a": 2}]}', InvalidRequest, "x[1] is an object"),
        (b'{"x": [[1], 2]}', InvalidRequest, "x[1] is a number; expected a list"),
        (b'{"x": [1, [2]]}', InvalidRequest, "x[1] is a list; expected a number"),
        (b'{"x": [[1, 2], [[], [1, 2]]]}', InvalidRequest, "x[1][0] is a list"),
        (b'{"x": 1, "x": 2}', DuplicateName, "'x' stands twice"),
        (b"{%b}" % b",".join(b'"%x":1' % (index % 59_999) for index in range(60_000)), DuplicateName, "'0' stands"),
        (b'{"x": "\xff"}', MalformedBody, "UTF-8"),
        (b'{"x": 01}', MalformedBody, "leading zero"),
    ],
)
def test_errors_name_the_place(body, error, says):
    with pytest.raises(error) as caught:
        read(body)
    assert says in str(caught.value)


def test_every_truncation_is_malformed():
    whole = b'{"model":"tanh","inputs":[[1,2.5,-3e1,4]],"batch_first":true,"returns":["last"]}'
    for size in range(len(whole)):
        with pytest.raises(MalformedBody):
            read(whole[:size])


def test_integers_beyond_float64_are_rounded():
    values = read(b'{"x": [9007199254740993, 18446744073709551616]}')["x"]
    assert values.tolist() == [9007199254740992.0, 18446744073709551616.0]


def test_name_may_hold_any_character():
    assert read(b'{"\\u0000a": 1}') == {"\0a": 1}


@pytest.mark.parametrize("line", [b"[1, 2.5]", b'{"inputs": [1, 2.5], "step": 3}'])
def test_line_is_an_array_or_an_object(line):
    fields = json.decode_steps(line)
    inputs = fields if isinstance(fields, np.ndarray) else fields["inputs"]
    assert inputs.tolist() == [1, 2.5]


def test_not_a_number_is_printed_as_null():
    assert json.encode({"x": np.array([np.nan, np.inf, 1], np.float32)}) == b'{"x":[null,null,1.0]}'


def test_string_does_not_hide_a_nested_list():
    body = orjson.dumps({"x": [[1, 2], [[], [1, 2]]], "model": "]" * 3})
    with pytest.raises(InvalidRequest):
        read(body)


def test_bad_number_in_a_bare_line_is_named():
    with pytest.raises(InvalidRequest, match=r"inputs\[1\] is NaN"):
        json_slow.decode_steps(b"[1, NaN]")


ROWS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5), elements=FLOATS)
PRINTED = (
    ARRAYS
    | ROWS.map(lambda rows: RaggedRows(rows, np.unique([0, len(rows) // 2, len(rows)])))
    | ROWS.map(lambda rows: [None, *rows])
)


@given(values=st.lists(PRINTED, max_size=3), most=st.integers(1, 40))
def test_slices_are_the_same_bytes(values, most):
    fields = {f"x{index}": value for index, value in enumerate(values)} | {"model": 'a"b', "version": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "SLICE_VALUES", most)
        assert b"".join(json.slices(fields)) == json.encode(fields)


def test_slice_holds_few_numbers():
    many = np.full((3, 1000, 100), 0.1, np.float32)
    pieces = list(json.slices({"outputs": many, "h_n": RaggedRows(many[0], np.array([0, 3, 1000]))}))
    assert max(piece.count(b"0.1") for piece in pieces) <= json.SLICE_VALUES
    assert len(pieces) > 400_000 // json.SLICE_VALUES
