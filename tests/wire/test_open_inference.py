"""Bodies of the Open Inference Protocol: the same bits as they went in, whatever carries them; lies are refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as numpy_arrays

from service.api.requests import validate
from service.api.v2.requests import InferRequest
from service.errors import DuplicateName, InvalidRequest, MalformedBody, ServiceError
from service.wire import json as fast
from service.wire import json_slow
from service.wire.open_inference import arrays, cut, header, numbers

FLOATS = numpy_arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(width=32))
IDS = numpy_arrays(np.int64, array_shapes(max_dims=2, max_side=5), elements=st.integers(-(2**24) + 1, 2**24 - 1))


def body_of(tensors, binary, flat=()):
    """A request with arrays by name, of which some follow the JSON as bytes; and the size of the JSON."""
    inputs, data = [], b""
    for name, array in tensors.items():
        kind = "FP32" if array.dtype == np.float32 else "INT64"
        entry = {"name": name, "shape": list(array.shape), "datatype": kind}
        if name in binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            data += array.tobytes()
        else:
            entry["data"] = (array.reshape(-1) if name in flat else array).tolist()
        inputs.append(entry)
    text = json.dumps({"id": "1", "inputs": inputs}).encode()
    return text + data, len(text)


def decode(body, header_bytes=None):
    """The arrays of a body, as the service reads them. Raises ServiceError."""
    found = cut(body, header_bytes)
    inputs = validate(InferRequest, found.document).inputs
    text, places = numbers(inputs, found)
    try:
        lists = fast.decode(text)
    except fast.Suspicious:
        lists = json_slow.decode(text)
    return arrays(inputs, found, lists, places)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right, equal_nan=True)


@given(st.dictionaries(st.sampled_from("abcd"), FLOATS | IDS, min_size=1), st.sets(st.sampled_from("abcd")), st.data())
def test_every_number_survives(tensors, binary, data):
    flat = data.draw(st.sets(st.sampled_from("abcd")))
    body, size = body_of(tensors, binary, flat)
    decoded = decode(body, size if binary else data.draw(st.sampled_from([None, size])))
    assert decoded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert same(decoded[name], array)
        if name in binary:
            assert decoded[name].tobytes() == array.tobytes()


@given(st.dictionaries(st.sampled_from("abcd"), FLOATS | IDS), st.sets(st.sampled_from("abcd")))
def test_reply_reads_back(tensors, binary):
    document = json.loads(b"".join(header({"model_name": "m"}, tensors, binary)))
    for entry, (name, array) in zip(document["outputs"], tensors.items(), strict=True):
        assert (entry["name"], entry["shape"]) == (name, list(array.shape))
        if name in binary:
            assert entry["parameters"] == {"binary_data_size": array.nbytes}
            assert "data" not in entry
        else:
            assert same(np.array(entry["data"], array.dtype).reshape(array.shape), array)


@pytest.mark.parametrize("every", [2, 50_000])
def test_long_reply_is_printed_in_pieces(every):
    values = np.linspace(0, 1, 100_000, dtype=np.float32)
    values[::every] = np.resize(np.array([np.inf, np.nan, -np.inf], np.float32), len(values[::every]))
    pieces = list(header({"model_name": "m"}, {"x": values}, ()))
    assert max(map(len, pieces)) < 100_000
    assert same(np.array(json.loads(b"".join(pieces))["outputs"][0]["data"], np.float32), values)


VALID, SIZE = body_of({"a": np.ones((2, 3), np.float32), "b": np.array([7])}, {"b"})
PIECES = [
    b'"data":[',
    b"]",
    b"NaN",
    b"-Infinity",
    b"}",
    b'"',
    b",",
    b"[[",
    b"\xff",
    b"\\",
    b" " * 70,
    b"1e999",
    b"null",
]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.integers(0, 250))
@example(b"\xef\xbb\xbf{}", 3)
@example(b'{"inputs":' + b"[" * 100_000, 100_010)
@example(b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","d\\u0061ta":[0]}]}', 71)
@example(b'{"inputs":[],"parameters":' + b'{"data":[' * 1_000_000, 10_000_000)
def test_any_bytes_are_a_document_or_an_error(body, size):
    for header_bytes in (None, size):
        try:
            decoded = decode(body, header_bytes)
        except ServiceError:
            continue
        assert isinstance(decoded, dict)


@given(st.data())
def test_damaged_body_is_a_document_or_an_error(data):
    place, length = data.draw(st.integers(0, len(VALID))), data.draw(st.integers(0, 5))
    put = data.draw(st.binary(max_size=3) | st.sampled_from(PIECES))
    body = VALID[:place] + put + VALID[place + length :]
    size = data.draw(st.sampled_from([None, SIZE, SIZE + len(put) - length]) | st.integers(0, 300))
    try:
        decoded = decode(body, size if size is None or size >= 0 else 0)
    except ServiceError:
        return
    assert all(array.dtype in (np.float32, np.int64) for array in decoded.values())


def one(shape=(2,), datatype="FP32", **rest):
    return {"name": "x", "shape": list(shape), "datatype": datatype, **rest}


def binary(size):
    return {"parameters": {"binary_data_size": size}}


WORDS = ["NaN", "-Infinity", "Infinity", "0", "-1.5", "1e3", "2"]
LISTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.sampled_from(WORDS), min_size=width, max_size=width), min_size=1)
)
BLANKS = st.sampled_from(["", "", "", " ", "\n", "\t ", " " * 12])
DAMAGE = st.sampled_from(
    [
        *WORDS,
        "N",
        "I",
        "Inf",
        "aN",
        "an",
        "f",
        "-",
        "+",
        ".",
        "e",
        " ",
        "  ",
        ",",
        "[",
        "]",
        "[]",
        "false",
        "null",
        "\0",
    ]
)


def as_python_reads(text):
    """The list of a JSON text as float32, None if it is no list of numbers in up to three axes."""
    try:
        document = json.loads(text)
        kinds = {type(value) for value in np.array(document, object).flat}
        array = np.array(document, np.float32)
    except ValueError:
        return None
    return array if kinds <= {int, float} and 0 < array.ndim < 4 and array.size else None


@given(LISTS, BLANKS, st.none() | st.tuples(st.integers(0, 200), st.integers(0, 3), DAMAGE), st.integers(1, 40))
def test_words_are_read_as_python_reads_them(rows, blanks, damage, size):
    """Wherever pieces end; and what is no list of numbers is refused."""
    text = "[" + f"{blanks},".join(f"[{','.join(blanks + word for word in row)}{blanks}]" for row in rows) + "]"
    if damage:
        place, length, put = damage
        text = text[: 1 + place] + put + text[1 + place + length :]
    wanted = as_python_reads(text)
    shape = [1] if wanted is None else list(wanted.shape)
    body = b'{"inputs":[{"name":"x","shape":%b,"datatype":"FP32","data":%b}]}' % (str(shape).encode(), text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.wire.open_inference.PIECE_BYTES", size)
        if wanted is not None:
            assert same(decode(body)["x"], wanted)
        else:
            with pytest.raises((MalformedBody, InvalidRequest)):
                decode(body)


@pytest.mark.parametrize("wrong", ["N", "-NaN", "1NaN", "NaN1", "1Infinity", "Infinity1", "I", "- Infinity", "NaN NaN"])
def test_what_only_looks_like_a_word_is_refused(wrong):
    for text in (f"[{wrong}]", f"[1,{wrong},NaN]", f"[NaN,{wrong}]"):
        body = f'{{"inputs":[{{"name":"x","shape":[{text.count(",") + 1}],"datatype":"FP32","data":{text}}}]}}'
        with pytest.raises((MalformedBody, InvalidRequest)):
            decode(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","d\\u0061ta":[0]}],"parameters":{"data":[5]}}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","d\\u0061ta":[0]}],"parameters":{"a\\"data":[5]}}',
    ],
)
def test_no_list_is_taken_for_another_ones(body):
    with pytest.raises(MalformedBody, match="escapes"):
        decode(body)


OTHER = b'"parameters":{"data":[1,2]}'


@pytest.mark.parametrize("form", [b'{%b,"inputs":[%b]}', b'{"outputs":[{"name":"y",%b}],"inputs":[%b]}'])
def test_lists_of_parameters_have_no_effect(form):
    tensor = json.dumps(one(data=[5, 7])).encode()
    for parts in ((OTHER, tensor), (OTHER, tensor + b"," + tensor.replace(b'"x"', b'"y"'))):
        body = form % parts
        assert decode(body)["x"].tolist() == [5, 7]
    body = b'{"inputs":[%b],%b}' % (tensor, OTHER)
    assert decode(body)["x"].tolist() == [5, 7]


@pytest.mark.parametrize(
    "rest", [b'"parameters":{"data":[1 2 []}', b'"outputs":[{"name":"y","parameters":{"data":[]]]}}]']
)
def test_no_list_is_left_unread(rest):
    with pytest.raises(MalformedBody):
        decode(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7]}],%b}' % rest)


def test_a_name_that_ends_in_data_is_another():
    body = b'{"parameters":{"a\\"data":[5]},"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7]}]}'
    assert decode(body)["x"].tolist() == [7]


@pytest.mark.parametrize(
    ("inputs", "data", "error", "says"),
    [
        ([one()], b"", InvalidRequest, 'x has no list of numbers as "data"'),
        ([one(data=["a", "b"])], b"", InvalidRequest, 'x has no list of numbers as "data"'),
        ([one(data=[1, None])], b"", InvalidRequest, r"x\[1\] is null; expected a number"),
        ([one(data=[1])], b"", InvalidRequest, r"x has data of shape \[1\]; expected 2 numbers"),
        ([one((2, 2), data=[[1, 2, 3, 4]])], b"", InvalidRequest, r"x has data of shape \[1, 4\]; expected 4 numbers"),
        ([one((3,), data=[[1, 2], [3]])], b"", InvalidRequest, "x has data of unequal length"),
        ([one(data=[1, 1e39])], b"", InvalidRequest, r"x\[1\] is 1e\+39; the largest 32-bit float"),
        ([one(datatype="INT64", data=[1, 2.5])], b"", InvalidRequest, r"x\[1\] is 2.5; INT64 takes whole numbers"),
        ([one(datatype="INT64", data=[1, 2**24])], b"", InvalidRequest, r"x\[1\] is 16777216; INT64 takes whole"),
        ([one(datatype="INT64", data=[1, float("nan")])], b"", InvalidRequest, r"x\[1\] is nan; INT64 takes whole"),
        ([one(**binary(7))], b"1234567", InvalidRequest, r"x has binary_data_size 7; FP32 of shape \[2\] has 8 bytes"),
        ([one(**binary(8))], b"1234567", InvalidRequest, "x has binary_data_size 8; 7 bytes are left of the body"),
        ([one(**binary(8), data=[1, 2])], b"12345678", InvalidRequest, "has 8 bytes, and no data"),
        ([one(**binary(8))], b"123456789", MalformedBody, "1 bytes of the body are no tensor's"),
        ([one(data=[1, 2])], b"12345678", MalformedBody, "8 bytes of the body are no tensor's"),
        ([one(datatype="FP64", **binary(16))], np.array([1, 1e39]).tobytes(), InvalidRequest, r"x\[1\] is 1e\+39"),
    ],
)
def test_what_is_wrong_is_named(inputs, data, error, says):
    text = json.dumps({"inputs": inputs}).encode()
    with pytest.raises(error, match=says):
        decode(text + data, len(text))


def test_header_longer_than_the_body():
    with pytest.raises(MalformedBody, match="Inference-Header-Content-Length is 9, and the body has 2 bytes"):
        cut(b"{}", 9)


def test_number_too_large_for_a_double_is_no_infinity():
    body = json.dumps({"inputs": [one(data=[1, 2])]}).replace("[1, 2]", "[1e999, Infinity]").encode()
    with pytest.raises(InvalidRequest, match=r"x\[0\] is 1e999; expected a finite number"):
        decode(body)


STRINGS = st.sampled_from(['"a"', '"b"', '":"', '"a:"', '"\\u003a"', '"\\u0061"', '"\\""', '"\u00e9"'])
JSON_TEXTS = st.recursive(
    STRINGS | (st.none() | st.booleans() | st.integers() | st.floats()).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner).map(" : ".join), max_size=3).map(lambda pairs: f"{{{','.join(pairs)}}}")
    ),
)


@given(JSON_TEXTS)
@example('{"a":1,"a":1,"b":"\\u003a"}')
@example('{"a":18446744073709551616}')
def test_json_is_read_as_python_reads_it(text):
    """But for names that stand twice in an object, however they are written, and for escaped letters of "data"."""
    assume(not re.search(r"\\u00(6[14]|74)", text))
    try:
        document = json.loads(text, object_pairs_hook=json_slow.unique)
    except DuplicateName:
        with pytest.raises(DuplicateName):
            cut(text.encode(), None)
    else:
        assert repr(cut(text.encode(), None).document) == repr(document)  # NaN is NaN


def test_name_twice():
    with pytest.raises(DuplicateName, match="'id' stands twice"):
        cut(b'{"id":"a","id":"b"}', None)


def test_text_beside_the_data_has_a_limit():
    with pytest.raises(MalformedBody, match="the JSON without its data has 70009 bytes"):
        cut(b'{"id":"' + b"a" * 70_000 + b'"}', None)
    with pytest.raises(MalformedBody, match="more than 32 tensors have data"):
        cut(b'"data":[1],' * 33, None)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", "<f2"), ("FP64", "<f8"), ("INT32", "<i4")])
def test_other_types_become_ours(datatype, dtype):
    data = np.array([1.5, -2] if datatype[0] == "F" else [3, -2], dtype)
    text = json.dumps({"inputs": [one(datatype=datatype, **binary(data.nbytes))]}).encode()
    decoded = decode(text + data.tobytes(), len(text))["x"]
    assert decoded.dtype == (np.float32 if datatype[0] == "F" else np.int64)
    assert decoded.tolist() == data.tolist()


def test_bytes_are_not_copied():
    body, size = body_of({"x": np.ones(4, np.float32)}, {"x"})
    body = body.replace(b'"id": "1"', b'"id": "1"' + b" " * (-size % 8))
    decoded = decode(body, size + -size % 8)["x"]
    assert not decoded.flags.owndata
    assert not decoded.flags.writeable
