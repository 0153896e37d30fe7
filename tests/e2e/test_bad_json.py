"""Malformed bodies, and values that are not finite 32-bit numbers."""

import json

import numpy as np
import pytest

from .formats import SAFETENSORS, post_arrays
from .problems import assert_problem


@pytest.fixture(params=["/rnn/forward", "/cell/step"])
def path(request):
    return request.param


def send(service, path, body):
    return service.post(path, content=body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ()),
        ("model=tanh&inputs=1", ("line 1 column 1",)),
        ("[[1,2,3,4]]", ("a list", "object")),
        ("null", ("null", "object")),
        ('{"model":"tanh"}{}', ("line 1 column 17",)),
        ('{"model":"tanh",}', ("comma", "line 1 column 16")),
        ("{'model':'tanh'}", ("line 1 column 2",)),
        (b'{"model":"\xff\xfe"}', ("UTF-8",)),
        ('{"model":"tanh"}'.encode("utf-16"), ()),
        (b'{"model":"tanh\x00"}', ("line 1 column 15",)),
        ('{"model":"\\ud800"}', ("surrogate",)),
    ],
)
def test_body_that_is_not_json(service, path, body, words):
    assert_problem(send(service, path, body), 400, "malformed-body", *words)


def test_body_truncated_at_every_byte(service):
    whole = '{"model":"tanh","inputs":[[1,2.5,-3e1,4]],"batch_first":true,"returns":["last"]}'
    with service.client() as client:
        for end in range(len(whole)):
            reply = client.post("/rnn/forward", content=whole[:end].encode())
            assert_problem(reply, 400, "malformed-body")
        assert client.post("/rnn/forward", content=whole.encode()).status_code == 200


def test_truncated_inputs_name_the_place(service, path):
    body = '{"model":"tanh","inputs":[[1,2,3,4],[1,2,'
    assert_problem(send(service, path, body), 400, "malformed-body", "inputs[1][2]")


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"inputs":' + "[" * 100_000,
        '{"inputs":' + "[" * 100_000 + "1" + "]" * 100_000 + "}",
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"model":"tanh","inputs":[[1,2,3,' + "[" * 100_000 + "]" * 100_000 + "]]}",
    ],
    ids=["list", "field", "closed", "objects", "where-a-number-belongs"],
)
def test_deep_nesting_is_malformed(service, path, body):
    assert_problem(send(service, path, body), 400, "malformed-body")


@pytest.mark.parametrize("depth", [4, 5, 100])
def test_nesting_too_deep_for_field_is_named(service, path, depth):
    body = '{"model":"tanh","inputs":' + "[" * depth + "1" + "]" * depth + "}"
    assert_problem(send(service, path, body), 422, "invalid-request", "inputs[0][0][0]", "deeper")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('"4"', "a string"),
        ("true", "a boolean"),
        ("false", "a boolean"),
        ("null", "null"),
        ("{}", "an object"),
        ('{"a":[1]}', "an object"),
        ("[4]", "a list"),
        ("[]", "a list"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("-1e999", "-1e999"),
        ("1" + "0" * 400, "10000"),
        ("1e39", "1e+39"),
        ("-3.5e38", "-3.5e+38"),
    ],
)
@pytest.mark.parametrize(
    ("inputs", "place"),
    [("[[1,2,3,VALUE]]", "inputs[0][3]"), ("[[1,2,3,4],[1,VALUE,3,4]]", "inputs[1][1]")],
)
def test_bad_number_is_named(service, path, inputs, place, value, kind):
    body = '{"model":"tanh","inputs":%s}' % inputs.replace("VALUE", value)  # noqa: UP031  # braces all over
    document = assert_problem(send(service, path, body), 422, "invalid-request", place, kind)
    assert document["errors"][0]["loc"][0] == "inputs"


@pytest.mark.parametrize("value", ["[[[1,2,3,4]],5]", "[[1,2,3,4],null]", '[[1,2,3,4],"x"]', "[5,[1,2,3,4]]"])
def test_wrong_type_at_outer_depth_is_named(service, value):
    body = f'{{"model":"tanh","inputs":{value}}}'
    assert_problem(send(service, "/rnn/forward", body), 422, "invalid-request", "inputs[1]")


NO_ARRAYS = ["1", '"x"', "true", '{"a":1}', "{}", '["a"]', '["a",[1]]', "NaN"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("inputs", "h0", "lengths") for value in NO_ARRAYS),
        ("model", "1"),
        ("model", "true"),
        ("model", '{"a":1}'),
        ("model", "[1,2]"),
        ("model", '["tanh"]'),
        ("version", "1"),
        ("version", "{}"),
        ("batch_first", '"true"'),
        ("batch_first", "1"),
        ("batch_first", "{}"),
        ("batch_first", "[1,2]"),
        ("returns", '"last"'),
        ("returns", "{}"),
        ("returns", "[1,2]"),
        ("returns", '["last",1]'),
        ("returns", '[["last"]]'),
        ("returns", '["lats"]'),
        ("non_finite", '"zero"'),
        ("non_finite", "[1,2]"),
        ("non_finite", "{}"),
    ],
)
def test_field_of_wrong_type_is_named(service, field, value):
    fields = {"model": '"tanh"', "inputs": "[[[1,2,3,4]]]"} | {field: value}
    body = "{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}"
    assert_problem(send(service, "/rnn/forward", body), 422, "invalid-request", field)


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"tanh","inputs":[[1,2,3,4]],"inputs":[[1,2,3,4]]}',
        '{"model":"tanh","model":"relu","inputs":[[1,2,3,4]]}',
        '{"model":"tanh","inputs":[[1,2,3,4]],"mod\\u0065l":"tanh"}',
    ],
)
def test_duplicate_name_is_refused(service, path, body):
    assert_problem(send(service, path, body), 400, "duplicate-name", "twice")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 10**26, -(2**64) - 1])
def test_large_integers_round_to_float32(service, number):
    def outputs(text):
        body = f'{{"model":"relu","inputs":[[{text},0,0]],"returns":["outputs"]}}'
        reply = send(service, "/rnn/forward", body)
        assert reply.status_code == 200, reply.text
        return reply.json()["outputs"]

    assert outputs(str(number)) == outputs(repr(float(np.float32(number))))


@pytest.mark.parametrize(
    ("path", "field", "hint"),
    [
        ("/rnn/forward", "input", "inputs"),
        ("/rnn/forward", "hx", "h0"),
        ("/rnn/forward", "batchfirst", "batch_first"),
        ("/rnn/forward", "lengthz", "lengths"),
        ("/cell/step", "return", "returns"),
        ("/cell/step", "qqq", "inputs"),
    ],
)
def test_unknown_field_suggests_known_one(service, path, field, hint):
    body = {"model": "tanh", "inputs": [[1, 2, 3, 4]], field: 1}
    document = assert_problem(service.post(path, body), 422, "invalid-request", field, hint)
    assert document["errors"][0]["loc"] == [field]


def test_problem_stays_small_for_any_body(service):
    for body in (
        {"model": "tanh", "inputs": [[1, 2, 3, 4]]} | {f"field{index}": 1 for index in range(20_000)},
        {"model": "tanh", "inputs": [[1, 2, 3, 4]], "x" * 1_000_000: 1},
        {"model": "tanh", "inputs": [[1, 2, 3, 4]], "returns": ["x"] * 100_000},
        {"model": "x" * 1_000_000, "inputs": [[1, 2, 3, 4]]},
    ):
        reply = service.post("/rnn/forward", body)
        assert reply.status_code in (400, 404, 422)
        assert len(reply.content) < 20_000


def header(text: str | bytes, data: bytes = b"") -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return len(raw).to_bytes(8, "little") + raw + data


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
OVERLAP = f'{{"a":{ONE},"b":{ONE}}}'


def tensor(shape, size, dtype="F32"):
    return header(json.dumps({"inputs": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}), bytes(size))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"abc",
        (2**40).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        (50).to_bytes(8, "little") + b"{}",
        header("not json"),
        header("[" * 100_000),
        header("{}", b"more than it says"),
        tensor([1, 4], 12),
        tensor([1, 4], 16)[:-4],
        tensor([2**33, 2**33], 0),
        tensor([-1, 4], 16),
        tensor([1] * 65, 4),
        tensor([1] * 100, 4),
        tensor([0, 2**62, 4], 0),
        tensor([0, 2**63, 4], 0),
        tensor([1, 4], 8, "BF16"),
        tensor([1, 4], 4, "U8"),
        tensor([1, 4], 4, "X9"),
        header('{"inputs":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
        header('{"inputs":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}', bytes(4)),
        header(OVERLAP, bytes(4)),
    ],
)
def test_bad_safetensors_header(service, path, body):
    assert_problem(service.post(path, content=body, headers={"content-type": SAFETENSORS}), 400, "malformed-body")


@pytest.mark.parametrize("fields", [{"batch_first": "yes"}, {"returns": "[" * 1000}, {"returns": '"lost"'}])
def test_metadata_must_be_json_of_field(service, fields):
    reply = post_arrays(service, "/rnn/forward", {"inputs": np.ones((1, 4), np.float32)}, model="tanh", **fields)
    assert_problem(reply, 422, "invalid-request", next(iter(fields)))


@pytest.mark.parametrize("name", ["model", "non_finite", "batch_first", "returns", "inputz"])
def test_array_where_text_belongs(service, name):
    arrays = {"inputs": np.ones((1, 4), np.float32), name: np.ones(2, np.float32)}
    fields = {} if name == "model" else {"model": "tanh"}
    assert_problem(post_arrays(service, "/rnn/forward", arrays, **fields), 422, "invalid-request", name)
