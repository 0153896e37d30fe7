"""ONNX's RNN, GRU and LSTM as PyTorch's, checked against torch in float64 and against onnx.reference."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx.helper import make_graph, make_node
from onnx.reference import ReferenceEvaluator

from service.models.importing.onnx.model import model_from_onnx
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.spec import ModelSpec
from tests.models.checkpoint_reference import check_reference
from tests.models.onnx_files import node_attributes, parameters, save_graph, save_stack
from tests.reference import numbers, run_reference, specs, weights_of

LSTM = ModelSpec("lstm", 3, 4)
WEIGHTS = weights_of(LSTM)
W, R, B = parameters(LSTM, WEIGHTS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def find(path, *, layer=None, nonlinearity=None, head=None):
    return model_from_onnx(path, layer=layer, nonlinearity=nonlinearity, head=head)


def arrays_of(found):
    return {name: tensor.numpy() for name, tensor in found.arrays.items()}


@given(
    spec=specs(),
    layout=st.sampled_from((0, 1)),
    squeeze=st.booleans(),
    head=st.sampled_from(("Gemm", "MatMul")),
)
def test_any_stack_comes_back_as_its_module(spec, layout, squeeze, head):
    stack = replace(spec, proj_size=0, head=())
    spec = stack.with_linear_head(spec.out_features) if spec.head else stack
    weights = weights_of(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_stack(path, spec, weights, layout=layout, squeeze=squeeze, head=head if spec.out_features else None)
        found = find(path, head="fc" if spec.out_features else None)
    assert found.spec == spec
    for name, array in arrays_of(found).items():
        np.testing.assert_array_equal(array, weights[name])
    check_reference(found, weights, tolerance=1e-9)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_graph_equals_the_imported_module(path, kind):
    spec = ModelSpec(kind, 3, 4, num_layers=2, bidirectional=True)
    model = save_stack(path, spec, weights_of(spec))
    x = numbers(np.random.default_rng(0), 6, 1, 3)
    [outputs] = ReferenceEvaluator(model).run(None, {"x": x})
    found = find(path)
    expected = run_reference(found.spec, arrays_of(found), x[:, 0])
    np.testing.assert_allclose(outputs[:, 0], expected.outputs, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_kept(path, dtype):
    save_stack(path, LSTM, WEIGHTS, dtype=dtype)
    assert {array.dtype for array in arrays_of(find(path)).values()} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (
            ModelSpec("gru", 3, 4),
            {"linear_before_reset": None},
            "linear_before_reset is 0: the reset gate.*#2852\\): import the .pt",
        ),
        (ModelSpec("gru", 3, 4), {"activations": ["Sigmoid", "Relu"]}, "activations are sigmoid, relu; PyTorch has"),
        (LSTM, {"input_forget": 1}, "input_forget is 1"),
        (LSTM, {"clip": 3.0}, "clip is 3"),
        (LSTM, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "activations are hardsigmoid, tanh, tanh"),
        (LSTM, {"direction": "reverse"}, "direction 'reverse' alone does not exist in PyTorch"),
        (LSTM, {"hidden_size": 7}, "hidden_size is 7, and R has 4 columns"),
        (LSTM, {"direction": "bidirectional"}, r"W has shape \(1, 16, 3\); expected \(2, 16, 3\)"),
        (ModelSpec("rnn", 3, 4), {"activations": ["Softsign"]}, "activations are softsign; PyTorch has tanh, or relu"),
        (ModelSpec("rnn", 3, 4, bidirectional=True), {"activations": ["Tanh", "Relu"]}, "activations are tanh, relu"),
    ],
)
def test_refusal_names_node_and_reason(path, spec, options, reason):
    save_stack(path, spec, weights_of(spec), **options)
    with pytest.raises(CheckpointRefused, match=f"{spec.kind.upper()} node /encoder/{spec.kind}/.*: {reason}"):
        find(path)


def lstm_node(inputs="x w r", output="y", name="n", **attributes):
    """An LSTM node; inputs are names, - for one that is left out."""
    return make_node(
        "LSTM", inputs.replace("-", "").split(" "), [output], name=name, **node_attributes(LSTM, **attributes)
    )


@pytest.mark.parametrize(
    ("inputs", "stored", "reason"),
    [
        ("x w r b - - - p", {"b": B, "p": np.ones((1, 12), np.float32)}, "peepholes"),
        ("x w x", {}, r"R \(x\) is computed by the graph"),
        ("x w r", {"w": W.astype(np.int32)}, "W is int32; expected float16"),
        ("x w r", {"w": W[0]}, r"W has shape \(16, 3\)"),
    ],
)
def test_refused_inputs(path, inputs, stored, reason):
    save_graph(path, [lstm_node(inputs)], {"w": W, "r": R} | stored)
    with pytest.raises(CheckpointRefused, match=reason):
        find(path)


def test_parameters_behind_simple_operators(path):
    nodes = [
        make_node("Unsqueeze", ["w", "zero"], ["w3"]),
        make_node("Concat", ["r_top", "r_bottom"], ["r3"], axis=1),
        lstm_node("x w3 r3", name=""),
    ]
    save_graph(path, nodes, {"w": W[0], "zero": np.array([0], np.int64), "r_top": R[:, :5], "r_bottom": R[:, 5:]})
    found = find(path)
    assert found.layer == "y"
    np.testing.assert_array_equal(found.arrays["weight_hh_l0"].numpy(), WEIGHTS["weight_hh_l0"])


def test_missing_bias_becomes_zeros(path):
    spec = ModelSpec("lstm", 4, 4, num_layers=2)
    model = save_stack(path, spec, weights_of(spec))
    upper = [node for node in model.graph.node if node.op_type == "LSTM"][1]
    del upper.input[3:]
    onnx.save(model, str(path))
    found = find(path)
    assert not found.arrays["bias_ih_l1"].any()
    assert found.notes == ["some layers have no bias; zeros were written"]


def test_nonlinearity_is_read_from_the_file(path):
    spec = ModelSpec("rnn", 3, 4, nonlinearity="relu")
    save_stack(path, spec, weights_of(spec))
    assert find(path, nonlinearity="relu").spec.nonlinearity == "relu"
    with pytest.raises(ChoiceNeeded, match="--nonlinearity tanh contradicts the file, which says relu"):
        find(path, nonlinearity="tanh")


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (make_node("MatMul", ["z", "cube"], ["y"], name="/fc/MatMul"), "MatMul /fc/MatMul is none of the layers"),
        (make_node("MatMul", ["z", "narrow"], ["y"], name="/fc/MatMul"), "MatMul /fc/MatMul is none of the layers"),
        (make_node("MatMul", ["z", "m"], ["y"], name="/out/MatMul"), "it has /out/MatMul"),
        (make_node("Gemm", ["z", "m", "m"], ["y"], name="/fc/Gemm"), "Gemm /fc/Gemm is none of the layers"),
        (make_node("Gemm", ["z", "m"], ["y"], name="/fc/Gemm", transA=1), "Gemm /fc/Gemm is none of the layers"),
    ],
)
def test_node_that_is_no_head(path, node, reason):
    stored = {"w": W, "r": R, "m": np.ones((4, 2), np.float32), "cube": np.ones((1, 4, 2), np.float32)}
    save_graph(path, [lstm_node(output="z"), node], stored | {"narrow": np.ones((3, 2), np.float32)})
    with pytest.raises(ChoiceNeeded, match=reason):
        find(path, head="fc")


def test_head_without_bias(path):
    nodes = [
        lstm_node(output="z"),
        make_node("Transpose", ["fc.weight"], ["turned"], perm=[1, 0]),
        make_node("MatMul", ["z", "turned"], ["y"]),
    ]
    save_graph(path, nodes, {"w": W, "r": R, "fc.weight": np.ones((2, 4), np.float32)})
    found = find(path, head="fc")
    assert found.arrays["head.weight"].shape == (2, 4)
    assert found.arrays["head.bias"].tolist() == [0, 0]


def test_graph_without_recurrent_nodes(path):
    save_graph(path, [make_node("Identity", ["x"], ["y"])], {})
    with pytest.raises(CheckpointRefused, match="no RNN, GRU or LSTM node among the 1 of"):
        find(path)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (
            make_node("If", ["x"], ["y"], then_branch=make_graph([lstm_node()], "then", [], [])),
            "LSTM n is quantized, or in a branch",
        ),
        (
            make_node("DynamicQuantizeLSTM", ["x"], ["y"], domain="com.microsoft"),
            "DynamicQuantizeLSTM y is quantized, or",
        ),
        (make_node("MatMul", ["x", "w"], ["y"]), "apart into smaller operators"),
    ],
)
def test_layer_that_is_not_found_has_its_reason(path, node, reason):
    save_graph(path, [node], {"w": W})
    with pytest.raises(CheckpointRefused, match=f"no RNN, GRU or LSTM node among .*; .*{reason}"):
        find(path)


def test_every_truncation_is_one_sentence(path):
    save_stack(path, LSTM, WEIGHTS)
    content = path.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointRefused) as refusal:
            find(path)
        assert str(refusal.value).isprintable()


def test_damage_is_refused_or_read(path):
    """Bytes changed at random raise nothing but refusals, in reading and in the reference."""
    spec = ModelSpec("gru", 3, 4, num_layers=2).with_linear_head(2)
    save_stack(path, spec, weights_of(spec), head="Gemm")
    content, rng = path.read_bytes(), random.Random(0)
    sequence = {"x": np.zeros((2, 3)), "h": np.zeros((2, 4))}
    read, refused = 0, 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(6):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            find(path, head="fc").reference([sequence], np.float32)
            read += 1
        except CheckpointRefused:
            refused += 1
    assert read
    assert refused


def test_attribute_of_another_type_is_refused(path):
    save_stack(path, LSTM, WEIGHTS, clip="high")
    with pytest.raises(CheckpointRefused, match="graph makes no sense: unsupported format"):
        find(path)


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
def test_files_that_torch_exports(path, make, bidirectional, batch_first):
    torch.manual_seed(0)
    net = Net(make(3, 4, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)).eval()
    torch.onnx.export(net, (torch.zeros(1, 5, 3),), path, dynamo=False)
    found = find(path, head="fc")
    expected = net.layer.state_dict() | {"head.weight": net.fc.weight, "head.bias": net.fc.bias}
    for name, tensor in expected.items():
        assert torch.equal(found.arrays[name], tensor), name
