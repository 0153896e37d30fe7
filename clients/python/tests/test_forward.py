"""Sequences and stateless steps: the client gives what PyTorch says, in the form that was asked."""

import numpy as np
import pytest

from rnn_client import InvalidRequest, ModelNotFound
from tests.e2e.models import SPECS, expected

RNG = np.random.default_rng(7)


def sequences(name, *lengths):
    return [RNG.normal(size=(length, SPECS[name].input_size)).astype(np.float32) for length in lengths]


def near(actual, wanted):
    np.testing.assert_allclose(actual, wanted, atol=1e-5, rtol=0)


def test_one_sequence_gives_what_pytorch_says(client):
    [row] = sequences("gru", 9)
    result, wanted = client.forward(row, "gru"), expected("gru", row)
    near(result.outputs, wanted.outputs)
    near(result.h_n, wanted.h)
    near(result.predictions, wanted.predictions)
    assert (result.model, result.version) == ("gru", "1")
    assert result.outputs.dtype == np.float32


def test_a_list_of_arrays_gives_lists_of_the_same_lengths(client):
    rows = sequences("lstm-proj", 5, 1, 8)
    result = client.forward(rows, "lstm-proj", returns=["outputs", "predictions", "last", "c_n"])
    for index, row in enumerate(rows):
        alone = client.forward(row, "lstm-proj", returns=["outputs", "predictions", "c_n"])
        np.testing.assert_array_equal(result.outputs[index], alone.outputs)
        np.testing.assert_array_equal(result.predictions[index], alone.predictions)
        np.testing.assert_array_equal(result.last[index], alone.outputs[-1])
        np.testing.assert_array_equal(result.c_n[:, index], alone.c_n)


def test_rows_of_one_length_in_a_list_still_come_as_a_list(client):
    result = client.forward(sequences("tanh", 3, 3), "tanh")
    assert isinstance(result.outputs, list)
    assert [values.shape for values in result.outputs] == [(3, 6), (3, 6)]


def test_lengths_of_a_padded_array(client):
    rows = sequences("gru", 4, 2)
    padded = np.stack([rows[0], np.pad(rows[1], ((0, 2), (0, 0)), constant_values=9)])
    result = client.forward(padded, "gru", lengths=[4, 2], returns="outputs")
    near(result.outputs[1, :2], expected("gru", rows[1]).outputs)
    assert not result.outputs[1, 2:].any()


def test_initial_states_are_taken(client):
    [row] = sequences("lstm", 6)
    h0, c0 = (RNG.normal(size=(2, 6)).astype(np.float32) for _ in range(2))
    near(client.forward(row, "lstm", h0=h0, c0=c0).outputs, expected("lstm", row, h0, c0).outputs)


def test_stateless_steps_equal_the_whole_sequence_to_the_bit(client):
    [row] = sequences("lstm", 12)
    whole, h, c = client.forward(row, "lstm"), None, None
    for index, inputs in enumerate(row):
        result = client.step(inputs, h, c, model="lstm")
        h, c = result.h, result.c
        np.testing.assert_array_equal(result.outputs, whole.outputs[index])
    np.testing.assert_array_equal(h, whole.h_n)
    np.testing.assert_array_equal(c, whole.c_n)


def test_models_by_name(client):
    assert {"gru", "lstm", "broken"} <= {model.name for model in client.models()}
    model = client.model("gru-two-versions")
    assert (model.kind, model.input_size, model.num_layers, model.out_features) == ("gru", 4, 2, 2)
    assert (model.default_version, [version.version for version in model.versions]) == ("2", ["1", "2"])


def test_what_is_not_finite_passes(client):
    result = client.forward(np.ones((8, 1), np.float32), "explodes", returns="outputs")
    assert not np.isfinite(result.outputs[-1]).any()


def test_a_refusal_says_what_the_service_said(client):
    with pytest.raises(InvalidRequest) as caught:
        client.forward(np.zeros((2, 3), np.float32), "gru")
    error = caught.value
    assert (error.status, error.type, error.title) == (422, "/problems/invalid-request", "Invalid request")
    assert error.detail == str(error) == 'inputs[0] has 3 values; model "gru" takes input_size 4'
    assert error.errors[0].loc == ("inputs", 0)
    assert error.request_id
    with pytest.raises(ModelNotFound):
        client.model("none")


def test_what_was_not_returned_is_named(client):
    result = client.forward(sequences("tanh", 2)[0], "tanh", returns="last")
    with pytest.raises(AttributeError, match="outputs was not returned; the reply holds last"):
        result.outputs  # noqa: B018


def test_rows_that_do_not_fit_together_are_refused_before_they_leave(client):
    rows = [np.zeros((2, 4), np.float32), np.zeros(4, np.float32)]
    with pytest.raises(ValueError, match=r"inputs\[1\] has shape \(4,\); expected \(T, 4\)"):
        client.forward(rows, "gru")
    with pytest.raises(ValueError, match="inputs is empty"):
        client.forward([], "gru")
    with pytest.raises(ValueError, match="a list of arrays has its own"):
        client.forward(rows[:1], "gru", lengths=[2])
