"""What a state_dict's names and shapes say, and what they do not."""

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given
from hypothesis import strategies as st

from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.models.importing.state_dict import model_from_tensors
from service.models.importing.tensors import Tensors
from tests.models.checkpoint_reference import check_reference
from tests.reference import specs, weights_of


def find(arrays, *, others=(), layer=None, nonlinearity="tanh", head=None, file_bytes=2**30):
    tensors = Tensors({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, list(others))
    return model_from_tensors(tensors, layer=layer, nonlinearity=nonlinearity, head=head, file_bytes=file_bytes)


def prefixed(weights, prefix, head="fc"):
    return {
        f"{prefix}{name}" if not name.startswith("head.") else name.replace("head", head): array
        for name, array in weights.items()
    }


@given(spec=specs(), prefix=st.sampled_from(("", "lstm.", "module.encoder.0.rnn.")), seed=st.integers(0, 99))
def test_shapes_tell_all_but_nonlinearity(spec, prefix, seed):
    weights = weights_of(spec, seed)
    asked = spec.nonlinearity if spec.kind == "rnn" else None
    found = find(prefixed(weights, prefix), nonlinearity=asked, head="fc" if spec.out_features else None)
    assert found.spec == spec
    assert found.arrays.keys() == weights.keys()
    assert all(np.array_equal(found.arrays[name], weights[name]) for name in weights)
    check_reference(found, weights)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_imported_as_a_layer(kind, bias):
    torch.manual_seed(1)
    cell = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[kind](4, 3, bias=bias)
    found = find(state_of("step", cell))
    assert (found.spec.kind, found.spec.input_size, found.spec.hidden_size, found.spec.bias) == (kind, 4, 3, bias)
    x, zeros = torch.randn(5, 1, 4), np.zeros((1, 3), np.float32)
    [results] = found.reference(
        [{"x": x[:, 0].numpy(), **dict.fromkeys("hc"[: 1 + (kind == "lstm")], zeros)}], np.float64
    )
    cell, state = cell.double(), None
    for row, output in zip(x.double(), results["outputs"], strict=True):
        state = cell(row, state)
        np.testing.assert_allclose(output, (state[0] if kind == "lstm" else state)[0].detach(), atol=1e-12)


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
        # Names from a file cannot command a terminal.
        (prefixed(LSTM, "\x1b[2Jevil\n.") | RNN, {}, r"2 recurrent layers: \\x1b\[2Jevil\\n.lstm, rnn; say which"),
    ],
)
def test_user_must_choose(arrays, options, reason):
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
        (
            LSTM | {"fc.weight": np.zeros((2, 5), np.float32)},
            {"head": "fc"},
            "in_features is 5, .* before it is 8 wide",
        ),
        (LSTM, {"file_bytes": 100}, r"claims shape \(16, 3\), more than the file holds"),
    ],
)
def test_checkpoint_is_refused(arrays, options, reason):
    with pytest.raises(CheckpointRefused, match=reason):
        find(arrays, **options)


class WeightDrop(torch.nn.Module):
    """As in AWD-LSTM: weight_hh_l0 of the module is what was left by the last dropout of weight_hh_l0_raw."""

    def __init__(self, module):
        super().__init__()
        self.module, self.weight_hh_l0_raw = module, torch.nn.Parameter(module.weight_hh_l0.detach() + 1)


@pytest.mark.filterwarnings("ignore")  # some say that they are deprecated
@pytest.mark.parametrize(
    "wrap",
    [
        WeightDrop,
        lambda layer: torch.nn.utils.spectral_norm(layer, "weight_hh_l0"),
        lambda layer: torch.nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0"),
        lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight_hh_l0", 0.5),
    ],
)
@pytest.mark.parametrize("prefix", ["", "rnns.0"])
def test_computed_weight_is_refused_with_the_way_out(wrap, prefix):
    layer = wrap(torch.nn.LSTM(3, 3))
    names = {f"{prefix}.{name}".lstrip("."): tensor.numpy() for name, tensor in layer.state_dict().items()}
    with pytest.raises(
        CheckpointRefused, match=r"weight_hh_l0 is computed from .* at each call; in Python, "
    ) as refusal:
        find(names)
    exec(str(refusal.value).rpartition("store it: ")[2], {"torch": torch, "layer": layer})
    folded = {name: tensor for name, tensor in layer.state_dict().items() if not name.endswith("_raw")}
    assert find({name: tensor.numpy() for name, tensor in folded.items()}, nonlinearity=None).spec.kind == "lstm"


def test_ignored_tensors_are_listed():
    arrays = LSTM | {"embed.weight": np.zeros((9, 3), np.float32), "fc.weight": np.zeros((2, 8), np.float32)}
    found = find(arrays, others=["epoch"])
    assert found.stored["weight_hh_l1_reverse"].source == "lstm.weight_hh_l1_reverse"
    assert found.ignored == ["embed.weight (9, 3)", "fc.weight (2, 8)", "epoch"]
    assert found.left_out == ["embed (embedding (9, 3))", "fc (linear (2, 8))"]
    assert found.notes == [
        "--nonlinearity tanh was ignored: only an RNN has a choice of it",
        'by their widths more layers fit: --front "embed" --head "fc", with the activations between them',
    ]


def test_head_without_bias_gets_zeros():
    found = find(LSTM | {"net.fc.weight": np.ones((2, 8), np.float32)}, nonlinearity=None, head="fc")
    assert found.arrays["head.bias"].tolist() == [0, 0]
    assert found.notes == ["--head fc has no bias; zeros were written"]


def test_layer_may_be_named_by_its_ending():
    assert find(prefixed(LSTM, "module.") | RNN, layer="lstm").layer == "module.lstm"
    assert find(weights_of(find(RNN).spec) | LSTM, layer=".").spec.kind == "rnn"
