"""Arrays that do not fit the model, and models that do not exist."""

import json

import numpy as np
import pytest

from .formats import line, post_arrays
from .problems import assert_document, assert_problem
from .raw import Wire, chunk, stream_head
from .sockets import ended, opened

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
def test_ragged_array_where_not_allowed(service, fields, words):
    assert_problem(forward(service, **fields), 422, "invalid-request", *words)


def test_ragged_step_is_refused(service):
    assert_problem(step(service, inputs=[ROW, ROW[:3]]), 422, "invalid-request", "inputs[1]", "3 values")
    assert_problem(step(service, inputs=[[ROW], [ROW, ROW]]), 422, "invalid-request", "inputs")


@pytest.mark.parametrize("inputs", [[], [[]], [[], []], [[[]]], [[[], []], [[], []]]])
def test_empty_inputs_are_refused(service, inputs):
    assert_problem(forward(service, inputs=inputs), 422, "invalid-request", "inputs", "empty")
    assert_problem(step(service, inputs=inputs), 422, "invalid-request", "inputs")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_empty_safetensors_array_is_refused(service, path, shape):
    reply = post_arrays(service, path, {"inputs": np.zeros(shape, np.float32)}, model="tanh")
    assert_problem(reply, 422, "invalid-request", "inputs")


def test_row_without_steps_is_named(service):
    assert_problem(forward(service, inputs=[[ROW], [], [ROW]]), 422, "invalid-request", "inputs[1]", "no time steps")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([[[1, 2, 3]]], ("3 values", "tanh", "input_size 4")),
        ([[1, 2, 3, 4, 5]], ("5 values", "input_size 4")),
        ([1, 2, 3, 4], ("1 axes", "(B,T,I) or (T,I)")),
    ],
)
def test_inputs_of_wrong_width(service, inputs, words):
    assert_problem(forward(service, inputs=inputs), 422, "invalid-request", *words)


def test_more_numbers_than_the_limit(service):
    """The shared service takes 1,000,000 numbers."""
    reply = forward(service, inputs=[[ROW] * 50_001] * 5)
    assert_problem(reply, 422, "invalid-request", "inputs", "1000020", "1000000")
    reply = post_arrays(service, "/cell/step", {"inputs": np.zeros((5, 50_001, 4), np.float32)}, model="tanh")
    assert_problem(reply, 422, "invalid-request", "inputs")


def test_reply_over_the_limit_does_not_run(service):
    """A reply of the shared service may hold 400,000 numbers."""
    inputs = [ROW] * 66_666  # 6 outputs a step, and h_n
    assert_problem(forward(service, inputs=inputs), 422, "invalid-request", "400002", "400000", "returns")
    assert forward(service, inputs=inputs, returns=["last"]).status_code == 200


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
def test_state_of_wrong_shape(service, model, field, value, words):
    reply = service.post("/rnn/forward", {"model": model, "inputs": [[ROW]] * 2, field: value.tolist()})
    assert_problem(reply, 422, "invalid-request", field, str(value.shape), *words)


def test_batched_state_for_one_sequence(service):
    assert_problem(forward(service, inputs=[ROW], h0=[[[0] * 6]]), 422, "invalid-request", "h0", "(1, 6)")


@pytest.mark.parametrize("model", ["tanh", "gru"])
def test_cell_state_needs_lstm(service, model):
    reply = service.post("/rnn/forward", {"model": model, "inputs": [ROW], "c0": [[0]]})
    assert_problem(reply, 422, "invalid-request", "c0", "LSTM", model)
    reply = service.post("/cell/step", {"model": model, "inputs": ROW, "c": [0]})
    assert_problem(reply, 422, "invalid-request", "c is for", model)
    reply = service.post("/rnn/forward", {"model": model, "inputs": [ROW], "returns": ["c_n"]})
    assert_problem(reply, 422, "invalid-request", "returns[0]", "c_n", model)


@pytest.mark.parametrize(("came", "missing"), ["hc", "ch"])
def test_lstm_takes_both_states_or_neither(service, came, missing):
    """As PyTorch does; at every entrance."""
    state = np.zeros((2, 6), np.float32)
    forward = {"inputs": np.zeros((1, 5), np.float32), f"{came}0": state}
    step = {"inputs": np.zeros(5, np.float32), came: state}
    for path, arrays in (("/rnn/forward", forward), ("/cell/step", step), ("/cell/sessions", {came: state})):
        body = {"model": "lstm"} | {name: array.tolist() for name, array in arrays.items()}
        for reply in (service.post(path, body), post_arrays(service, path, arrays, model="lstm")):
            assert_problem(reply, 422, "invalid-request", f"{missing}{'0' * (arrays is forward)} is missing")
    opening = {"model": "lstm", came: state.tolist()}
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step") + chunk(line(opening)))
        assert_problem(wire.reply(), 422, "invalid-request", f"{missing} is missing")
    with opened(service, "", opening) as socket:
        messages, *_ = ended(socket)
    assert_document(json.loads(messages[-1])["error"], 422, "invalid-request", f"{missing} is missing")


def test_predictions_need_a_head(service):
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
        ("../tanh", ()),
        ("tanh\u202e", ()),
        ("💥" * 3_000, ()),
    ],
)
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_unknown_model(service, path, name, words):
    reply = service.post(path, {"model": name, "inputs": [ROW]})
    assert_problem(reply, 404, "model-not-found", *words)


@pytest.mark.parametrize("version", ["2", "9" * 1000])
def test_unknown_version(service, version):
    assert_problem(forward(service, inputs=[ROW], version=version), 404, "version-not-found", "tanh", "it has 1")


def test_model_must_be_named_among_many(service):
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
def test_step_from_state_of_wrong_shape(service, model, field, value):
    width = 5 if model == "lstm" else 4
    reply = service.post("/cell/step", {"model": model, "inputs": [[0] * width], field: value})
    assert_problem(reply, 422, "invalid-request", field)
