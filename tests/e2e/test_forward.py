"""POST /rnn/forward with every argument, compared with torch.nn in float64."""

import numpy as np
import pytest

from tests.reference import numbers

from .formats import SAFETENSORS
from .models import SMALL, SPECS, assert_close, expected
from .problems import assert_problem

BATCH, TIME = 3, 5


def states(name, rng, batch=BATCH):
    """Initial states (L·D, B, ·) by field."""
    spec = SPECS[name]
    given = {"h0": numbers(rng, spec.states, batch, spec.state_size)}
    return given | ({"c0": numbers(rng, spec.states, batch, spec.hidden_size)} if spec.has_cell_state else {})


def forward(service, name, **fields):
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()}
    reply = service.post("/rnn/forward", {"model": name, **plain})
    assert reply.status_code == 200, reply.text
    document = reply.json()
    assert (document.pop("model"), document.pop("version")) == (name, "1")
    return document


def row_of(states_given, row):
    """One row's initial states."""
    return {key: value[:, row] for key, value in states_given.items()}


def check_rows(document, name, rows, given, outputs_of=lambda values, row: values[row]):
    """Every field of a reply, row by row; `outputs_of` finds a row in outputs and predictions."""
    spec = SPECS[name]
    optional = {"c_n": spec.has_cell_state, "predictions": spec.out_features}
    assert document.keys() == {"outputs", "h_n"} | {field for field, has in optional.items() if has}
    for index, row in enumerate(rows):
        wanted = expected(name, row, **row_of(given, index))
        assert_close(outputs_of(document["outputs"], index), wanted.outputs)
        assert_close(np.array(document["h_n"])[:, index], wanted.h)
        if spec.has_cell_state:
            assert_close(np.array(document["c_n"])[:, index], wanted.c)
        if spec.out_features:
            assert_close(outputs_of(document["predictions"], index), wanted.predictions)


@pytest.mark.parametrize("name", SMALL)
def test_batch_with_initial_states(service, name):
    rng = np.random.default_rng(1)
    inputs, given = numbers(rng, BATCH, TIME, SPECS[name].input_size), states(name, rng)
    check_rows(forward(service, name, inputs=inputs, **given), name, inputs, given)


@pytest.mark.parametrize("name", SMALL)
def test_batch_first_false(service, name):
    rng = np.random.default_rng(2)
    inputs = numbers(rng, TIME, BATCH, SPECS[name].input_size)
    document = forward(service, name, inputs=inputs, batch_first=False)
    check_rows(document, name, inputs.swapaxes(0, 1), {}, lambda values, row: np.array(values)[:, row])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch_first", [True, False])
def test_unbatched_sequence(service, name, batch_first):
    rng = np.random.default_rng(3)
    inputs, given = numbers(rng, TIME, SPECS[name].input_size), row_of(states(name, rng, 1), 0)
    document = forward(service, name, inputs=inputs, batch_first=batch_first, **given)
    wanted = expected(name, inputs, **given)
    assert_close(document["outputs"], wanted.outputs)
    assert_close(document["h_n"], wanted.h)
    if wanted.c is not None:
        assert_close(document["c_n"], wanted.c)
    if wanted.predictions is not None:
        assert_close(document["predictions"], wanted.predictions)


@pytest.mark.parametrize("name", SMALL)
def test_ragged_rows_stay_ragged(service, name):
    rng = np.random.default_rng(4)
    rows = [numbers(rng, length, SPECS[name].input_size) for length in (4, 1, 6)]
    given = states(name, rng)
    document = forward(service, name, inputs=[row.tolist() for row in rows], **given)
    assert [len(row) for row in document["outputs"]] == [4, 1, 6]
    check_rows(document, name, rows, given)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_comes_back_as_zeros(service, name, batch_first):
    rng = np.random.default_rng(5)
    lengths = [2, 5, 1]
    inputs, given = numbers(rng, BATCH, TIME, SPECS[name].input_size), states(name, rng)
    sent = inputs if batch_first else inputs.swapaxes(0, 1)
    document = forward(service, name, inputs=sent, lengths=lengths, batch_first=batch_first, **given)

    def outputs_of(values, row):
        whole = np.array(values) if batch_first else np.array(values).swapaxes(0, 1)
        assert not whole[row, lengths[row] :].any()
        return whole[row, : lengths[row]]

    rows = [inputs[row, :length] for row, length in enumerate(lengths)]
    check_rows(document, name, rows, given, outputs_of)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("lengths", [None, [2, 5, 1]])
def test_last_is_each_rows_last_output(service, name, lengths):
    rng = np.random.default_rng(6)
    inputs = numbers(rng, BATCH, TIME, SPECS[name].input_size)
    document = forward(service, name, inputs=inputs, lengths=lengths, returns=["last"])
    assert document.keys() == {"last"}
    for row, length in enumerate(lengths or [TIME] * BATCH):
        assert_close(document["last"][row], expected(name, inputs[row, :length]).outputs[-1])


@pytest.mark.parametrize("wanted", ["outputs", "h_n", "c_n", "predictions"])
def test_returns_chooses_the_fields(service, wanted):
    inputs = numbers(np.random.default_rng(7), TIME, 4)
    assert forward(service, "lstm-proj", inputs=inputs, returns=[wanted]).keys() == {wanted}


def test_highest_version_is_the_default(service):
    inputs = [[1, 2, 3, 4]]
    replies = [
        service.post("/rnn/forward", {"model": "gru-two-versions", "inputs": inputs} | named).json()
        for named in ({}, {"version": "2"}, {"version": "1"})
    ]
    assert [reply["version"] for reply in replies] == ["2", "2", "1"]
    assert replies[0]["outputs"] == replies[1]["outputs"] != replies[2]["outputs"]
    # Version 1 has the weights of the model "gru".
    assert replies[2]["outputs"] == forward(service, "gru", inputs=inputs)["outputs"]


def test_null_equals_a_missing_field(service):
    nulls = dict.fromkeys(("version", "h0", "c0", "lengths", "returns"))
    assert forward(service, "lstm", inputs=[[1, 2, 3, 4, 5]], **nulls).keys() == {"outputs", "h_n", "c_n"}


def test_non_finite_output(service):
    body = {"model": "explodes", "inputs": [[[1], [1], [1]], [[0], [0], [0]]], "returns": ["outputs"], "h0": None}
    assert_problem(service.post("/rnn/forward", body), 422, "non-finite-output", "outputs", "row 0", "step 2")
    reply = service.post("/rnn/forward", body | {"non_finite": "null"}).json()
    assert reply["outputs"][0][2] == [None, None]


def test_failed_model_gives_the_reason(service):
    reply = service.post("/rnn/forward", {"model": "broken", "inputs": [[1, 2, 3, 4]]})
    assert_problem(reply, 503, "model-failed", "broken", "weight_ih_l0")


def test_padded_reply_of_ragged_rows_is_bounded(service):
    """One long row makes every row long in a format without ragged lists."""
    inputs = [[[1, 2, 3, 4]] * 1000, *[[[1, 2, 3, 4]]] * 1000]
    body = {"model": "tanh", "inputs": inputs}
    assert service.post("/rnn/forward", body).status_code == 200
    reply = service.post("/rnn/forward", body, headers={"accept": SAFETENSORS})
    assert_problem(reply, 422, "invalid-request", "would hold")
