"""What a state_dict's names and shapes say, and what they do not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models.importing.checkpoint import Tensors
from service.models.importing.found import CheckpointRefused, ChoiceNeeded, Probe
from service.models.importing.state_dict import find_layer
from tests.reference import TOLERANCE, numbers, run_reference, specs, weights_of

GIB = 2**30


def find(arrays, *, others=(), layer=None, nonlinearity="tanh", head=None, file_bytes=GIB):
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return find_layer(
        Tensors(tensors, list(others)), layer=layer, nonlinearity=nonlinearity, head=head, file_bytes=file_bytes
    )


def prefixed(weights, prefix, head="fc"):
    return {
        f"{prefix}{name}" if not name.startswith("head.") else name.replace("head", head): array
        for name, array in weights.items()
    }


@settings(deadline=None)
@given(spec=specs(), prefix=st.sampled_from(("", "lstm.", "module.encoder.0.rnn.")), seed=st.integers(0, 99))
def test_shapes_tell_everything_but_an_rnns_nonlinearity(spec, prefix, seed):
    weights = weights_of(spec, seed)
    asked = spec.nonlinearity if spec.kind == "rnn" else None
    found = find(prefixed(weights, prefix), nonlinearity=asked, head="fc" if spec.out_features else None)
    assert found.spec == spec
    assert {name: array.tolist() for name, array in found.arrays.items()} == {
        name: array.tolist() for name, array in weights.items()
    }


@settings(deadline=None)
@given(spec=specs())
def test_the_reference_is_torch_in_float64(spec):
    weights = weights_of(spec)
    rng = np.random.default_rng(0)
    x, h = numbers(rng, 5, spec.input_size), numbers(rng, spec.states, spec.state_size)
    c = numbers(rng, spec.states, spec.hidden_size) if spec.has_cell_state else None
    found = find(prefixed(weights, ""), nonlinearity=spec.nonlinearity, head="fc" if spec.out_features else None)
    [result] = found.reference([Probe(x, h, c)], np.float64)
    expected = run_reference(spec, weights, x, h, c)
    for mine, theirs in zip(
        (result.outputs, result.h, result.c, result.predictions),
        (expected.outputs, expected.h, expected.c, expected.predictions),
        strict=True,
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, atol=1e-12 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_is_a_layer_and_runs_as_the_cell_that_it_was(kind, bias):
    torch.manual_seed(1)
    cell = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[kind](4, 3, bias=bias)
    arrays = {f"step.{name}": tensor.numpy() for name, tensor in cell.state_dict().items()}
    found = find(arrays)
    assert (found.spec.kind, found.spec.input_size, found.spec.hidden_size) == (kind, 4, 3)
    assert found.spec.bias == bias
    assert found.reference_name == f"torch.nn.{type(cell).__name__}"
    rng = np.random.default_rng(0)
    x, h = numbers(rng, 6, 4), numbers(rng, 1, 3)
    c = numbers(rng, 1, 3) if kind == "lstm" else None
    [result] = found.reference([Probe(x, h, c)], np.float64)
    expected = run_reference(found.spec, {name: array.numpy() for name, array in found.arrays.items()}, x, h, c)
    np.testing.assert_allclose(result.outputs, expected.outputs, atol=TOLERANCE)
    np.testing.assert_allclose(result.h, expected.h, atol=TOLERANCE)


def state_of(prefix, module):
    return {f"{prefix}.{name}": tensor.numpy() for name, tensor in module.state_dict().items()}


LSTM = state_of("lstm", torch.nn.LSTM(3, 4, 2, bidirectional=True))
RNN = state_of("rnn", torch.nn.RNN(3, 4))


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        (RNN, {"nonlinearity": None}, "say --nonlinearity tanh .* or --nonlinearity relu"),
        (LSTM | RNN, {}, "2 recurrent layers: lstm, rnn; say which with --layer"),
        (LSTM, {"layer": "gru"}, "--layer gru is not in the file; it has lstm"),
        (prefixed(LSTM, "a.") | prefixed(LSTM, "b."), {"layer": "lstm"}, "--layer lstm fits a.lstm, b.lstm"),
        (LSTM, {"head": "fc"}, "--head fc is not in the file"),
    ],
)
def test_what_the_user_must_choose(arrays, options, reason):
    with pytest.raises(ChoiceNeeded, match=reason):
        find(arrays, **options)


@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        ({"fc.weight": np.zeros((2, 3), np.float32)}, {}, "no recurrent layer: none of the file's 1 tensors"),
        (without(LSTM, "lstm.weight_hh_l0"), {}, "weight_hh_l0 is missing"),
        (without(LSTM, "lstm.weight_hh_l1"), {}, "weight_hh_l1 is missing for a bidirectional lstm of 2 layers"),
        (without(LSTM, "lstm.bias_hh_l0_reverse"), {}, "bias_hh_l0_reverse is missing"),
        (without(LSTM, "lstm.weight_ih_l0"), {}, "weight_ih_l0 is missing"),
        (LSTM | {"lstm.weight_hr_l0": np.zeros((2, 4), np.float32)}, {}, r"weight_hh_l0 has shape \(16, 4\)"),
        (LSTM | {"lstm.weight_hh": np.zeros((2, 4), np.float32)}, {}, "lstm.weight_hh does not belong"),
        (LSTM | {"lstm.weight_hh_l0": np.zeros((10, 4), np.float32)}, {}, "10 rows and hidden_size is 4"),
        (LSTM | {"lstm.weight_hh_l0": np.zeros((0, 0), np.float32)}, {}, "0 rows and hidden_size is 0"),
        (LSTM | {"lstm.weight_hh_l0": np.zeros(16, np.float32)}, {}, r"has shape \(16,\); expected two dimensions"),
        (LSTM | {"lstm.weight_ih_l1": np.zeros((16, 5), np.float32)}, {}, r"lstm.weight_ih_l1 has shape \(16, 5\)"),
        (LSTM | {"lstm.bias_ih_l0": np.zeros(16, np.int8)}, {}, "lstm.bias_ih_l0 is int8; expected dense float32"),
        (LSTM | {"fc.weight": np.zeros((2, 5), np.float32)}, {"head": "fc"}, r"fc.weight has shape \(2, 5\)"),
        (LSTM, {"file_bytes": 100}, r"claims shape \(16, 3\), more than the file holds"),
    ],
)
def test_what_is_refused(arrays, options, reason):
    with pytest.raises(CheckpointRefused, match=reason):
        find(arrays, **options)


def test_what_is_found_and_what_is_ignored():
    arrays = LSTM | {"embed.weight": np.zeros((9, 3), np.float32), "fc.weight": np.zeros((2, 8), np.float32)}
    found = find(arrays, others=["epoch"])
    assert found.sources["weight_hh_l1_reverse"] == "lstm.weight_hh_l1_reverse"
    assert found.ignored == ["embed.weight (9, 3)", "fc.weight (2, 8), could be --head fc", "epoch"]
    assert found.notes == ["--nonlinearity tanh was ignored: only an RNN has a choice of it"]


def test_a_head_without_bias_gets_zeros_and_says_so():
    found = find(LSTM | {"net.fc.weight": np.ones((2, 8), np.float32)}, nonlinearity=None, head="fc")
    assert found.arrays["head.bias"].tolist() == [0, 0]
    assert found.notes == ["--head fc has no bias; zeros were written"]


def test_names_from_a_file_cannot_command_a_terminal():
    with pytest.raises(ChoiceNeeded) as refusal:
        find(prefixed(LSTM, "\x1b[2Jevil\n.") | RNN)
    assert str(refusal.value).isprintable()


def test_layer_names_may_be_given_by_their_ending():
    assert find(prefixed(LSTM, "module.") | RNN, layer="lstm").layer == "module.lstm"
    assert find(weights_of(find(RNN).spec) | LSTM, layer=".").spec.kind == "rnn"
