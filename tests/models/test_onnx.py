"""ONNX's RNN, GRU and LSTM as PyTorch's, checked against torch in float64 and against onnx.reference."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from service.models.importing.found import CheckpointRefused, ChoiceNeeded, Probe
from service.models.importing.onnx.checkpoint import find_onnx_layer
from service.spec import ModelSpec
from tests.reference import numbers, run_reference, specs, weights_of
from tests.models.onnx_graphs import node_attributes, parameters, save_graph, save_stack

LSTM = ModelSpec("lstm", 3, 4)


def find(path, *, layer=None, nonlinearity=None, head=None):
    return find_onnx_layer(path, layer=layer, nonlinearity=nonlinearity, head=head)


def arrays_of(found):
    return {name: tensor.numpy() for name, tensor in found.arrays.items()}


@settings(deadline=None)
@given(
    spec=specs(),
    layout=st.sampled_from((0, 1)),
    squeeze=st.booleans(),
    head=st.sampled_from(("Gemm", "MatMul")),
)
def test_any_stack_comes_back_as_the_module_that_it_was(spec, layout, squeeze, head):
    spec = replace(spec, proj_size=0)
    weights = weights_of(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_stack(path, spec, weights, layout=layout, squeeze=squeeze, head=head if spec.out_features else None)
        found = find(path, head="fc" if spec.out_features else None)
    assert found.spec == spec
    for name, array in arrays_of(found).items():
        np.testing.assert_array_equal(array, weights[name])
    rng = np.random.default_rng(0)
    x, h = numbers(rng, 5, spec.input_size), numbers(rng, spec.states, spec.state_size)
    c = numbers(rng, spec.states, spec.hidden_size) if spec.has_cell_state else None
    [result] = found.reference([Probe(x, h, c)], np.float64)
    expected = run_reference(spec, weights, x, h, c)
    for mine, theirs in (
        (result.outputs, expected.outputs),
        (result.h, expected.h),
        (result.c, expected.c),
        (result.predictions, expected.predictions),
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, atol=1e-9 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_the_whole_graph_in_onnx_reference_is_the_module_with_the_imported_weights(tmp_path, kind):
    spec = ModelSpec(kind, 3, 4, num_layers=2, bidirectional=True)
    model = save_stack(tmp_path / "model.onnx", spec, weights_of(spec))
    x = numbers(np.random.default_rng(0), 6, 1, 3)
    [outputs] = ReferenceEvaluator(model).run(None, {"x": x})
    found = find(tmp_path / "model.onnx")
    expected = run_reference(found.spec, arrays_of(found), x[:, 0])
    np.testing.assert_allclose(outputs[:, 0], expected.outputs, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_kept(tmp_path, dtype):
    save_stack(tmp_path / "model.onnx", LSTM, weights_of(LSTM), dtype=dtype)
    assert {array.dtype for array in arrays_of(find(tmp_path / "model.onnx")).values()} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("gru", {"linear_before_reset": None}, "linear_before_reset is 0: the reset gate applies before"),
        ("gru", {"activations": ["Sigmoid", "Relu"]}, "activations are sigmoid, relu; PyTorch has sigmoid, tanh"),
        ("lstm", {"input_forget": 1}, "input_forget is 1"),
        ("lstm", {"clip": 3.0}, "clip is 3"),
        ("lstm", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "activations are hardsigmoid, tanh, tanh"),
        ("lstm", {"direction": "reverse"}, "direction 'reverse' alone does not exist in PyTorch"),
        ("lstm", {"hidden_size": 7}, "hidden_size is 7, and R has 4 columns"),
        ("lstm", {"direction": "bidirectional"}, r"W has shape \(1, 16, 3\); expected \(2, 16, 3\)"),
        ("rnn", {"activations": ["Softsign"]}, "activations are softsign; PyTorch has tanh, or relu"),
    ],
)
def test_what_pytorch_cannot_express_is_refused_with_the_reason(tmp_path, kind, options, reason):
    spec = ModelSpec(kind, 3, 4)
    save_stack(tmp_path / "model.onnx", spec, weights_of(spec), **options)
    with pytest.raises(CheckpointRefused, match=f"{kind.upper()} node /encoder/{kind}/{kind.upper()}: {reason}"):
        find(tmp_path / "model.onnx")


def test_mixed_activations_of_two_directions_are_refused(tmp_path):
    spec = ModelSpec("rnn", 3, 4, bidirectional=True)
    save_stack(tmp_path / "model.onnx", spec, weights_of(spec), activations=["Tanh", "Relu"])
    with pytest.raises(CheckpointRefused, match="activations are tanh, relu"):
        find(tmp_path / "model.onnx")


def node_with(tmp_path, inputs, stored, kind="LSTM", **attributes):
    node = helper.make_node(kind, inputs, ["y"], name="n", **attributes)
    save_graph(tmp_path / "model.onnx", [node], stored)
    return tmp_path / "model.onnx"


def test_peepholes_are_refused(tmp_path):
    w, r, b = parameters(LSTM, weights_of(LSTM), 0)
    stored = {"w": w, "r": r, "b": b, "p": np.ones((1, 12), np.float32)}
    path = node_with(tmp_path, ["x", "w", "r", "b", "", "", "", "p"], stored, **node_attributes(LSTM))
    with pytest.raises(CheckpointRefused, match="peepholes"):
        find(path)


def test_parameters_that_the_graph_computes_are_refused(tmp_path):
    w, r, _ = parameters(LSTM, weights_of(LSTM), 0)
    with pytest.raises(CheckpointRefused, match=r"R \(x\) is computed by the graph"):
        find(node_with(tmp_path, ["x", "w", "x"], {"w": w, "r": r}, **node_attributes(LSTM)))
    with pytest.raises(CheckpointRefused, match="W is int32; expected float16"):
        find(node_with(tmp_path, ["x", "w", "r"], {"w": w.astype(np.int32), "r": r}, **node_attributes(LSTM)))
    with pytest.raises(CheckpointRefused, match=r"W has shape \(16, 3\)"):
        find(node_with(tmp_path, ["x", "w", "r"], {"w": w[0], "r": r}, **node_attributes(LSTM)))


def test_parameters_behind_simple_operators_are_read(tmp_path):
    w, r, _ = parameters(LSTM, weights_of(LSTM), 0)
    nodes = [
        helper.make_node("Unsqueeze", ["w", "zero"], ["w3"]),
        helper.make_node("Concat", ["r_top", "r_bottom"], ["r3"], axis=1),
        helper.make_node("LSTM", ["x", "w3", "r3"], ["y"], hidden_size=4),
    ]
    stored = {"w": w[0], "zero": np.array([0], np.int64), "r_top": r[:, :5], "r_bottom": r[:, 5:]}
    save_graph(tmp_path / "model.onnx", nodes, stored)
    found = find(tmp_path / "model.onnx")
    assert found.layer == "y"
    np.testing.assert_array_equal(found.arrays["weight_hh_l0"].numpy(), weights_of(LSTM)["weight_hh_l0"])


def two_layers(tmp_path, *between, second=LSTM, second_input="t"):
    """An LSTM of 3 → 4, nodes between, and a second layer."""
    first, upper = parameters(LSTM, weights_of(LSTM), 0), parameters(second, weights_of(second), 0)
    nodes = [
        helper.make_node("LSTM", ["x", "w0", "r0"], ["y0"], name="lower", hidden_size=4),
        *between,
        helper.make_node("LSTM", [second_input, "w1", "r1"], ["y"], name="upper", hidden_size=second.hidden_size),
    ]
    stored = {"w0": first[0], "r0": first[1], "w1": upper[0], "r1": upper[1], "one": np.array([1], np.int64)}
    save_graph(tmp_path / "model.onnx", nodes, stored)
    return tmp_path / "model.onnx"


SQUEEZE = helper.make_node("Squeeze", ["y0", "one"], ["s"])


@pytest.mark.parametrize(
    ("between", "layers"),
    [
        ([helper.make_node("Squeeze", ["y0", "one"], ["t"])], 2),
        ([SQUEEZE, helper.make_node("Dropout", ["s"], ["t"])], 2),
        (
            [
                SQUEEZE,
                helper.make_node("Transpose", ["s"], ["u"], perm=[1, 0, 2]),
                helper.make_node("Transpose", ["u"], ["t"], perm=[1, 0, 2]),
            ],
            2,
        ),
        ([SQUEEZE, helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0, 2])], 1),
        ([SQUEEZE, helper.make_node("Relu", ["s"], ["t"])], 1),
        ([helper.make_node("Reshape", ["y0", "x"], ["t"])], 1),
    ],
)
def test_nodes_are_one_stack_only_where_nothing_but_axes_lies_between(tmp_path, between, layers):
    path = two_layers(tmp_path, *between, second=ModelSpec("lstm", 4, 4))
    if layers == 2:
        assert find(path).spec.num_layers == 2
    else:
        with pytest.raises(ChoiceNeeded, match="2 recurrent layers: lower, upper; say which with --layer"):
            find(path)
        assert find(path, layer="upper").spec == ModelSpec("lstm", 4, 4, bias=False)


def test_layers_of_unlike_sizes_are_models_of_their_own(tmp_path):
    path = two_layers(tmp_path, helper.make_node("Squeeze", ["y0", "one"], ["t"]), second=ModelSpec("lstm", 4, 6))
    assert find(path, layer="upper").spec.hidden_size == 6
    with pytest.raises(ChoiceNeeded, match="--layer other is not in the file; it has lower, upper"):
        find(path, layer="other")


def test_one_layer_without_bias_among_others_gets_zeros_and_says_so(tmp_path):
    spec = ModelSpec("lstm", 4, 4, num_layers=2)
    model = save_stack(tmp_path / "model.onnx", spec, weights_of(spec))
    upper = [node for node in model.graph.node if node.op_type == "LSTM"][1]
    del upper.input[3:]
    onnx.save(model, str(tmp_path / "model.onnx"))
    found = find(tmp_path / "model.onnx")
    assert not found.arrays["bias_ih_l1"].any()
    assert found.notes == ["some layers have no bias; zeros were written"]


def test_a_stored_initial_state_is_pointed_out(tmp_path):
    w, r, b = parameters(LSTM, weights_of(LSTM), 0)
    stored = {"w": w, "r": r, "b": b, "h": np.ones((1, 1, 4), np.float32), "c": np.zeros((1, 1, 4), np.float32)}
    found = find(node_with(tmp_path, ["x", "w", "r", "b", "", "h", "c"], stored, **node_attributes(LSTM)))
    assert found.notes == ["n starts from a stored h0 that is not zero: requests must send it"]


def test_the_nonlinearity_is_known_from_the_file(tmp_path):
    spec = ModelSpec("rnn", 3, 4, nonlinearity="relu")
    save_stack(tmp_path / "model.onnx", spec, weights_of(spec))
    assert find(tmp_path / "model.onnx", nonlinearity="relu").spec.nonlinearity == "relu"
    with pytest.raises(ChoiceNeeded, match="--nonlinearity tanh contradicts the file, which says relu"):
        find(tmp_path / "model.onnx", nonlinearity="tanh")


@pytest.mark.parametrize(
    ("node", "error", "reason"),
    [
        (helper.make_node("Gemm", ["x", "m"], ["y"], name="/fc/Gemm", alpha=2.0), CheckpointRefused, "scales"),
        (helper.make_node("MatMul", ["x", "cube"], ["y"], name="/fc/MatMul"), CheckpointRefused, "not a matrix"),
        (helper.make_node("MatMul", ["x", "narrow"], ["y"], name="/fc/MatMul"), ChoiceNeeded, "outputs .* are 4 wide"),
        (helper.make_node("MatMul", ["x", "m"], ["y"], name="/out/MatMul"), ChoiceNeeded, "it has /out/MatMul"),
        (helper.make_node("Gemm", ["x", "m", "m"], ["y"], name="/fc/Gemm"), CheckpointRefused, "bias has shape"),
    ],
)
def test_what_is_no_head(tmp_path, node, error, reason):
    w, r, _ = parameters(LSTM, weights_of(LSTM), 0)
    stored = {"w": w, "r": r, "m": np.ones((4, 2), np.float32), "cube": np.ones((1, 4, 2), np.float32)}
    stored["narrow"] = np.ones((3, 2), np.float32)
    save_graph(tmp_path / "model.onnx", [helper.make_node("LSTM", ["x", "w", "r"], ["z"], hidden_size=4), node], stored)
    with pytest.raises(error, match=reason):
        find(tmp_path / "model.onnx", head="fc")


def test_a_head_without_bias(tmp_path):
    w, r, _ = parameters(LSTM, weights_of(LSTM), 0)
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["z"], hidden_size=4),
        helper.make_node("Transpose", ["fc.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["z", "turned"], ["y"]),
    ]
    save_graph(tmp_path / "model.onnx", nodes, {"w": w, "r": r, "fc.weight": np.ones((2, 4), np.float32)})
    found = find(tmp_path / "model.onnx", head="fc")
    assert found.arrays["head.weight"].shape == (2, 4)
    assert found.notes == ["--head has no bias; zeros were written"]


def test_a_graph_without_recurrent_nodes(tmp_path):
    save_graph(tmp_path / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], {})
    with pytest.raises(CheckpointRefused, match="no RNN, GRU or LSTM node among the 1 nodes"):
        find(tmp_path / "model.onnx")


def test_every_truncation_is_one_sentence(tmp_path):
    save_stack(tmp_path / "whole.onnx", LSTM, weights_of(LSTM))
    content = (tmp_path / "whole.onnx").read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut.onnx").write_bytes(content[:size])
        with pytest.raises(CheckpointRefused) as refusal:
            find(tmp_path / "cut.onnx")
        assert "\n" not in str(refusal.value)


def test_damage_is_refused_or_read(tmp_path):
    """Bytes changed at random: no other error than a refusal comes of it, neither in reading nor in the reference."""
    spec = ModelSpec("gru", 3, 4, num_layers=2, out_features=2)
    save_stack(tmp_path / "whole.onnx", spec, weights_of(spec), head="Gemm")
    content, rng = (tmp_path / "whole.onnx").read_bytes(), random.Random(0)
    probe = Probe(np.zeros((2, 3)), np.zeros((2, 4)))
    read, refused = 0, 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(6):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / "damaged.onnx").write_bytes(changed)
        try:
            find(tmp_path / "damaged.onnx", head="fc").reference([probe], np.float32)
            read += 1
        except CheckpointRefused:
            refused += 1
    assert read
    assert refused


def test_attributes_of_another_type_make_no_sense(tmp_path):
    save_stack(tmp_path / "model.onnx", LSTM, weights_of(LSTM), clip="high")
    with pytest.raises(CheckpointRefused, match="graph makes no sense: TypeError"):
        find(tmp_path / "model.onnx")


class Net(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.fc = torch.nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 2)

    def forward(self, x):
        return self.fc(self.layer(x)[0])


@pytest.mark.filterwarnings("ignore")  # the exporter that needs no other package is the old one, and says so
@pytest.mark.parametrize("make", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_torch_itself_exports(tmp_path, make, bidirectional, batch_first):
    torch.manual_seed(0)
    net = Net(make(3, 4, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)).eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (torch.zeros(1, 5, 3),), path, dynamo=False)
    found = find(path, head="fc")
    for name, tensor in net.layer.state_dict().items():
        assert torch.equal(found.arrays[name], tensor), name
    assert torch.equal(found.arrays["head.weight"], net.fc.weight)
    assert torch.equal(found.arrays["head.bias"], net.fc.bias)
