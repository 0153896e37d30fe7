"""Malformed bodies, and values that are not finite 32-bit numbers."""

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
        ("[[1,2,3,4]]", ("a list", "object")),
        ('{"model":"tanh",}', ("comma", "column 16")),
        ('{"model":"tanh","inputs":[[1,2,3,4],[1,2,', ("inputs[1][2]",)),
        ('{"inputs":' + "[" * 100_000, ()),
    ],
)
def test_body_that_is_not_json(service, path, body, words):
    assert_problem(send(service, path, body), 400, "malformed-body", *words)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('"4"', "a string"),
        ("null", "null"),
        ("[4]", "a list"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("1" + "0" * 400, "10000"),
    ],
)
def test_bad_number_is_named(service, path, value, kind):
    body = f'{{"model":"tanh","inputs":[[1,2,3,4],[1,{value},3,4]]}}'
    document = assert_problem(send(service, path, body), 422, "invalid-request", "inputs[1][1]", kind)
    assert document["errors"][0]["loc"][0] == "inputs"


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


def test_duplicate_name_is_refused(service, path):
    body = '{"model":"tanh","inputs":[[1,2,3,4]],"mod\\u0065l":"tanh"}'
    assert_problem(send(service, path, body), 400, "duplicate-name", "twice")


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


@pytest.mark.parametrize("body", [b"", b"abc", (2**40).to_bytes(8, "little") + b"{}"])
def test_body_that_is_no_safetensors(service, path, body):
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
