"""Sequences and stateless steps: the client gives what PyTorch says, in the form that was asked."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from rnn_client import InvalidRequest, ModelNotFound
from tests.e2e.models import expected


def near(actual, wanted):
    assert_allclose(actual, wanted, atol=1e-5, rtol=0)


def test_one_sequence_agrees_with_pytorch(client, row):
    inputs = row("gru", 9)
    result, wanted = client.forward(inputs, "gru"), expected("gru", inputs)
    near(result.outputs, wanted.outputs)
    near(result.h_n, wanted.h)
    near(result.predictions, wanted.predictions)
    assert (result.model, result.version) == ("gru", "1")
    assert result.outputs.dtype == np.float32


def test_list_gives_lists_of_same_lengths(client, row):
    rows = [row("lstm-proj", length) for length in (5, 1, 8)]
    result = client.forward(rows, "lstm-proj", returns=["outputs", "predictions", "last", "c_n"])
    for index, inputs in enumerate(rows):
        alone = client.forward(inputs, "lstm-proj", returns=["outputs", "predictions", "c_n"])
        assert_array_equal(result.outputs[index], alone.outputs)
        assert_array_equal(result.predictions[index], alone.predictions)
        assert_array_equal(result.last[index], alone.outputs[-1])
        assert_array_equal(result.c_n[:, index], alone.c_n)
    assert isinstance(client.forward([row("tanh", 3), row("tanh", 3)], "tanh").outputs, list)


def test_padded_array_with_lengths(client, row):
    inputs, short = row("gru", 4), row("gru", 2)
    padded = np.stack([inputs, np.pad(short, ((0, 2), (0, 0)), constant_values=9)])
    result = client.forward(padded, "gru", lengths=[4, 2], returns="outputs")
    near(result.outputs[1, :2], expected("gru", short).outputs)
    assert not result.outputs[1, 2:].any()


def test_initial_states(client, row):
    inputs, h0, c0 = row("lstm", 6), row("wide", 2)[:, :6], row("wide", 2)[:, :6]
    near(client.forward(inputs, "lstm", h0=h0, c0=c0).outputs, expected("lstm", inputs, h0, c0).outputs)


def test_tensors_equal_arrays(client, row):
    batch, h0 = np.stack([row("gru", 3), row("gru", 3)]), np.ones((2, 2, 7), np.float32)
    tensor = torch.from_numpy(batch)
    given = client.forward(tensor, "gru", h0=torch.from_numpy(h0), lengths=torch.tensor([3, 2]))
    assert_array_equal(given.outputs, client.forward(batch, "gru", h0=h0, lengths=[3, 2]).outputs)
    assert_array_equal(client.forward(list(tensor), "gru").outputs, client.forward(list(batch), "gru").outputs)
    with client.session("gru", h=given.h_n[:, 0]) as session:
        [result] = session.stream([tensor[0, 0]])
        assert_array_equal(result.outputs, client.step(tensor[0, 0], given.h_n[:, 0], model="gru").outputs)


def test_unusable_arguments_are_named(client):
    tensor, trained = torch.ones(2, 4), torch.ones(2, 4, requires_grad=True)
    for error, name, call in (
        (ValueError, "inputs", lambda: client.forward(trained, "gru")),
        (ValueError, r"inputs\[1\]", lambda: client.forward([tensor, trained], "gru")),
        (ValueError, "h0", lambda: client.forward(tensor, "gru", h0=trained)),
        (TypeError, "inputs", lambda: client.step(tensor.to(torch.bfloat16), model="gru")),
        (TypeError, "h", lambda: client.session("gru", h=tensor.to(torch.complex64))),
        (TypeError, "lengths", lambda: client.forward(tensor, "gru", lengths=object())),
        (TypeError, "model", lambda: client.forward(tensor, tensor)),
        (TypeError, "returns", lambda: client.forward(tensor, "gru", returns=[tensor])),
        (TypeError, "ttl_seconds", lambda: client.session("gru", ttl_seconds=tensor)),
        (ValueError, "model", lambda: client.forward(tensor, "\ud800")),
        (ValueError, r"inputs\[0\]", lambda: client.forward([1.0, 2.0], "gru")),
        (TypeError, "inputs", lambda: client.forward(np.zeros((2, 4), "M8[s]"), "gru")),
        (ValueError, "lengths", lambda: client.forward(tensor[None], "gru", lengths=[1.5])),
        (ValueError, "session_id", lambda: client.attach("..")),
    ):
        with pytest.raises(error, match=f"^{name} "):
            call()


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "localhost", "ftp://host", "http://[::1", "http://a b", "http://a#b", "http://a..b", "", None],
)
def test_unusable_url_is_refused(connect, url):
    with pytest.raises(ValueError, match=r"^url is .*; expected http://host:port or https://host:port"):
        connect(url)


@pytest.mark.parametrize("option", [{"timeout": 0}, {"timeout": "a"}, {"retry_seconds": -1}, {"api_key": "a\n"}])
def test_unusable_option_is_refused(connect, option):
    with pytest.raises(ValueError, match=f"^{next(iter(option))} "):
        connect("http://localhost", **option)


def test_stateless_steps_equal_whole_sequence(client, row):
    steps = row("lstm", 12)
    whole, h, c = client.forward(steps, "lstm"), None, None
    for index, inputs in enumerate(steps):
        result = client.step(inputs, h, c, model="lstm")
        h, c = result.h, result.c
        assert_array_equal(result.outputs, whole.outputs[index])
    assert_array_equal(h, whole.h_n)
    assert_array_equal(c, whole.c_n)


def test_models_by_name(client):
    assert {"gru", "lstm", "broken"} <= {model.name for model in client.models()}
    model = client.model("gru-two-versions")
    assert (model.kind, model.input_size, model.num_layers, model.out_features) == ("gru", 4, 2, 2)
    assert (model.default_version, [version.version for version in model.versions]) == ("2", ["1", "2"])


def test_non_finite_results_pass(client):
    result = client.forward(np.ones((8, 1), np.float32), "explodes", returns="outputs")
    assert not np.isfinite(result.outputs[-1]).any()


def test_refusal_carries_problem(client):
    with pytest.raises(InvalidRequest) as caught:
        client.forward(np.zeros((2, 3), np.float32), "gru")
    error = caught.value
    assert (error.status, error.type, error.title) == (422, "/problems/invalid-request", "Invalid request")
    assert error.detail == str(error) == 'inputs[0] has 3 values; model "gru" takes input_size 4'
    assert error.errors[0].loc == ("inputs", 0)
    assert error.request_id
    with pytest.raises(ModelNotFound):
        client.model("none")


def test_missing_array_is_named(client, row):
    result = client.forward(row("tanh", 2), "tanh", returns="last")
    with pytest.raises(AttributeError, match="outputs was not returned; the reply holds last"):
        result.outputs  # noqa: B018


def test_unfit_rows_are_refused(client):
    rows = [np.zeros((2, 4), np.float32), np.zeros(4, np.float32)]
    with pytest.raises(ValueError, match=r"inputs\[1\] has shape \(4,\); expected \(T, I\)"):
        client.forward(rows, "gru")
    with pytest.raises(ValueError, match="inputs is empty"):
        client.forward([], "gru")
    with pytest.raises(ValueError, match="a list of arrays has its own"):
        client.forward(rows[:1], "gru", lengths=[2])
