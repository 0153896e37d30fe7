"""Bad input, part two: numbers that do not fit the model, and models that do not exist."""

import numpy as np
import pytest
from safetensors.numpy import save

from .problems import assert_problem

ROW = [1, 2, 3, 4]


def forward(service, **fields):
    return service.post("/rnn/forward", {"model": "tanh"} | fields)


def step(service, **fields):
    return service.post("/cell/step", {"model": "tanh"} | fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": [[ROW, ROW[:3]]]}, ("inputs[0][1]", "3 values", "input_size 4")),
        ({"inputs": [[ROW, ROW], [ROW, [*ROW, 5]]]}, ("inputs[1][1]", "5 values")),
        ({"inputs": [ROW, ROW[:2]]}, ("inputs[1]", "2 values")),
        ({"inputs": [[ROW], [ROW, ROW]], "batch_first": False}, ("ragged", "batch_first")),
        ({"inputs": [[ROW], [ROW, ROW]], "lengths": [1, 2]}, ("lengths", "padded")),
        ({"inputs": [ROW], "h0": [[0] * 6, [0]]}, ("h0", "ragged")),
        ({"inputs": [[ROW]], "lengths": [[1], []]}, ("lengths", "ragged")),
    ],
)
def test_ragged_where_it_may_not_be(service, fields, words):
    assert_problem(forward(service, **fields), 422, "invalid-request", *words)


def test_a_ragged_step(service):
    assert_problem(step(service, inputs=[ROW, ROW[:3]]), 422, "invalid-request", "inputs[1]", "3 values")
    assert_problem(step(service, inputs=[[ROW], [ROW, ROW]]), 422, "invalid-request", "inputs")


@pytest.mark.parametrize("inputs", [[], [[]], [[], []], [[[]]], [[[], []], [[], []]]])
def test_an_empty_batch_or_zero_steps(service, inputs):
    assert_problem(forward(service, inputs=inputs), 422, "invalid-request", "inputs", "empty")
    assert_problem(step(service, inputs=inputs), 422, "invalid-request", "inputs")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_empty_arrays_in_safetensors(service, path, shape):
    body = save({"inputs": np.zeros(shape, np.float32)}, {"model": "tanh"})
    reply = service.post(path, content=body, headers={"content-type": "application/vnd.safetensors"})
    assert_problem(reply, 422, "invalid-request", "inputs")


def test_a_row_without_steps(service):
    assert_problem(forward(service, inputs=[[ROW], [], [ROW]]), 422, "invalid-request", "inputs[1]", "no time steps")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([[[1, 2, 3]]], ("3 values", "tanh", "input_size 4")),
        ([[1, 2, 3, 4, 5]], ("5 values", "input_size 4")),
        ([1, 2, 3, 4], ("1 axes", "(B,T,I) or (T,I)")),
    ],
)
def test_inputs_of_another_model(service, inputs, words):
    assert_problem(forward(service, inputs=inputs), 422, "invalid-request", *words)


def test_more_numbers_than_the_limit(service):
    """The shared service takes 100,000 numbers; a reply may hold 400,000."""
    reply = forward(service, inputs=[[ROW] * 5001] * 5)
    assert_problem(reply, 422, "invalid-request", "inputs", "100020", "100000")
    body = save({"inputs": np.zeros((5, 5001, 4), np.float32)}, {"model": "tanh"})
    reply = service.post("/cell/step", content=body, headers={"content-type": "application/vnd.safetensors"})
    assert_problem(reply, 422, "invalid-request", "inputs")
    body = {"model": "wide", "inputs": [[0] * 64] * 1560, "returns": ["outputs"]}
    assert service.post("/rnn/forward", body | {"returns": ["last"]}).status_code == 200


def test_a_reply_over_the_limit_does_not_run(launch):
    small = launch(max_reply_values=100)
    reply = small.post("/rnn/forward", {"model": "tanh", "inputs": [ROW] * 17})
    assert_problem(reply, 422, "invalid-request", "108", "100", "returns")
    assert small.post("/rnn/forward", {"model": "tanh", "inputs": [ROW] * 17, "returns": ["last"]}).status_code == 200


@pytest.mark.parametrize(
    ("model", "field", "value", "words"),
    [
        ("tanh", "h0", np.zeros((2, 2, 6)), ("(1, 2, 6)",)),  # L·D
        ("tanh", "h0", np.zeros((1, 3, 6)), ("(1, 2, 6)",)),  # B
        ("tanh", "h0", np.zeros((1, 2, 5)), ("(1, 2, 6)",)),  # P
        ("tanh", "h0", np.zeros((1, 6)), ("(1, 2, 6)",)),  # an unbatched state for a batch
        ("gru", "h0", np.zeros((1, 2, 7)), ("(2, 2, 7)",)),
        ("lstm-proj", "h0", np.zeros((1, 2, 8)), ("(1, 2, 3)",)),  # P is proj_size
        ("lstm-proj", "c0", np.zeros((1, 2, 3)), ("(1, 2, 8)",)),
        ("lstm-proj", "c0", np.zeros((1, 8)), ("(1, 2, 8)",)),
    ],
)
def test_a_state_of_the_wrong_shape(service, model, field, value, words):
    reply = service.post("/rnn/forward", {"model": model, "inputs": [[ROW]] * 2, field: value.tolist()})
    assert_problem(reply, 422, "invalid-request", field, str(value.shape), *words)


def test_a_batched_state_for_one_sequence(service):
    assert_problem(forward(service, inputs=[ROW], h0=[[[0] * 6]]), 422, "invalid-request", "h0", "(1, 6)")


@pytest.mark.parametrize("model", ["tanh", "gru"])
def test_a_cell_state_for_a_model_that_has_none(service, model):
    reply = service.post("/rnn/forward", {"model": model, "inputs": [ROW], "c0": [[0]]})
    assert_problem(reply, 422, "invalid-request", "c0", "LSTM", model)
    reply = service.post("/cell/step", {"model": model, "inputs": ROW, "c": [0]})
    assert_problem(reply, 422, "invalid-request", "c is for", model)
    reply = service.post("/rnn/forward", {"model": model, "inputs": [ROW], "returns": ["c_n"]})
    assert_problem(reply, 422, "invalid-request", "returns[0]", "c_n", model)


def test_predictions_of_a_model_without_a_head(service):
    for path in ("/rnn/forward", "/cell/step"):
        reply = service.post(path, {"model": "tanh", "inputs": [ROW], "returns": ["predictions"]})
        assert_problem(reply, 422, "invalid-request", "returns[0]", "no head")


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([0, 2], ("lengths[0]", "1 to 3")),
        ([2, 4], ("lengths[1]", "4", "1 to 3")),
        ([-1, 2], ("lengths[0]", "-1")),
        ([1.5, 2], ("lengths[0]", "1.5")),
        ([2, 1e30], ("lengths[1]",)),
        ([2, 2**63], ("lengths[1]",)),
        ([2], ("2 whole numbers",)),
        ([2, 2, 2], ("2 whole numbers",)),
        ([], ("2 whole numbers",)),
        ([[2], [2]], ("2 whole numbers",)),
    ],
)
def test_lengths_out_of_range(service, lengths, words):
    reply = forward(service, inputs=[[ROW] * 3] * 2, lengths=lengths)
    assert_problem(reply, 422, "invalid-request", "lengths", *words)


def test_lengths_of_one_sequence(service):
    assert_problem(forward(service, inputs=[ROW] * 3, lengths=[3]), 422, "invalid-request", "lengths")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tnah", ("did you mean", "tanh")),
        ("nothing-like-it", ("GET /models",)),
        ("", ()),
        ("../tanh", ()),
        ("./tanh", ()),
        ("tanh/1", ()),
        ("/etc/passwd", ()),
        ("..", ()),
        ("tanh\x00", ()),
        ("tanh\n", ()),
        ("TANH", ()),
        ("ｔａｎｈ", ()),
        ("tаnh", ()),  # a Cyrillic а
        ("tanh\u202e", ()),
        ("tanh\u200b", ()),
        ("x" * 100_000, ()),
        ("💥" * 1000, ()),
    ],
)
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_an_unknown_model(service, path, name, words):
    reply = service.post(path, {"model": name, "inputs": [ROW]})
    assert_problem(reply, 404, "model-not-found", *words)


@pytest.mark.parametrize("version", ["2", "01", "1.0", "", "-1", "1\x00", "١", "latest", "../1", "9" * 1000])
def test_an_unknown_version(service, version):
    assert_problem(forward(service, inputs=[ROW], version=version), 404, "version-not-found", "tanh", "it has 1")


def test_no_model_where_there_are_many(service):
    reply = service.post("/rnn/forward", {"inputs": [ROW]})
    assert_problem(reply, 422, "invalid-request", "must name a model", "RNN_DEFAULT_MODEL")


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("tanh", "h", [[0] * 5]),
        ("tanh", "h", [[0] * 6] * 2),
        ("tanh", "h", [[[0] * 6]] * 2),
        ("gru", "h", [[0] * 7]),  # two layers: (L,B,P)
        ("gru", "h", [0] * 7),
        ("lstm", "c", [[[0] * 6]] * 3),
        ("tanh", "h", [[0, 1], [2]]),
        ("tanh", "h", []),
    ],
)
def test_a_step_from_a_state_of_the_wrong_shape(service, model, field, value):
    width = 5 if model == "lstm" else 4
    reply = service.post("/cell/step", {"model": model, "inputs": [[0] * width], field: value})
    assert_problem(reply, 422, "invalid-request", field)
