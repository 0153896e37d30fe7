"""Front, pooling and head in ONNX graphs: in the forms that exporters write, and equal to the file's own graph."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from service.cli.verify import verify
from service.models.importing.model import torch_reference
from service.models.importing.onnx.model import model_from_onnx
from service.models.importing.refusal import ChoiceNeeded
from service.models.importing.staging import staged
from service.spec import ModelSpec
from tests.models.onnx_files import nodes, parameters, save_graph
from tests.reference import numbers, weights_of


def find(path, head=None):
    return model_from_onnx(path, layer=None, nonlinearity=None, head=head)


def types(found):
    return [layer.type for layer in found.spec.front], found.spec.pooling, [layer.type for layer in found.spec.head]


def check_served(found, folder):
    """The folder that an import writes gives what the file's graph gives."""
    with staged(folder / "models", "m", found.spec, found.arrays, version=None, description=None) as model:
        verdict = verify(model.root, "m", found)
    assert verdict.passed, str(verdict)


def predictions(found, x):
    """Of one sequence (T, I), by torch.nn with the arrays that were found."""
    shapes = {"h": (found.spec.states, found.spec.state_size), "c": (found.spec.states, found.spec.hidden_size)}
    states = {name: np.zeros(shape) for name, shape in shapes.items() if name == "h" or found.spec.has_cell_state}
    reference, _ = torch_reference(found.spec, found.arrays)
    [results] = reference([{"x": x, **states}], np.float64)
    return results["predictions"]


class Net(nn.Module):
    """Front, recurrent layers, what reads their results, head."""

    def __init__(self, front, layer, read, head):
        super().__init__()
        self.front, self.layer, self.read, self.head = front, layer, read, head

    def forward(self, x):
        return self.head(self.read(*self.layer(self.front(x))))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([500.0, -3.0, 0.0]))
        self.register_buffer("deviation", torch.tensor([20.0, 0.1, 1.0]))

    def forward(self, x):
        return (x - self.mean) / self.deviation


def every(outputs, _):
    return outputs


def networks():
    torch.manual_seed(0)
    final = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 3), nn.Softmax(-1))
    norms = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.SiLU())
    activations = nn.Sequential(nn.GELU(), nn.Linear(5, 4), nn.GELU("tanh"), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.Tanh())
    return {
        "tagger": Net(nn.Embedding(9, 4), nn.LSTM(4, 5, 2, batch_first=True), every, nn.Linear(5, 9)),
        "scaled": Net(
            Scaled(),
            nn.GRU(3, 5, batch_first=True),
            every,
            nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(1)),
        ),
        "mean": Net(
            nn.Identity(),
            nn.LSTM(3, 5, bidirectional=True, batch_first=True),
            lambda outputs, _: outputs.mean(1),
            nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(-1)),
        ),
        "last": Net(nn.Identity(), nn.LSTM(3, 5, batch_first=True), lambda y, _: y[:, -1], nn.Linear(5, 3)),
        "max": Net(nn.Identity(), nn.LSTM(3, 5, batch_first=True), lambda y, _: y.max(1).values, nn.Linear(5, 3)),
        "final": Net(
            nn.Identity(),
            nn.GRU(3, 5, 2, bidirectional=True, batch_first=True),
            lambda _, h: torch.cat([h[-2], h[-1]], -1),
            final,
        ),
        "layers": Net(norms, nn.GRU(4, 5, batch_first=True), every, activations),
    }


FOUND = {
    "tagger": (["embedding"], "none", ["linear"]),
    "scaled": (["scale"], "none", ["linear", "relu", "linear", "sigmoid"]),
    "mean": ([], "mean", ["linear", "log_softmax"]),
    "last": ([], "last", ["linear"]),
    "max": ([], "max", ["linear"]),
    "final": ([], "final", ["layer_norm", "linear", "softmax"]),
    "layers": (["linear", "layer_norm", "silu"], "none", ["gelu", "linear", "gelu", "leaky_relu", "elu", "tanh"]),
}


@pytest.mark.filterwarnings("ignore")  # the exporter that needs no other package is the old one, and says so
@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("opset", [14, 20])  # before 17 norms are taken apart, before 20 gelu
@pytest.mark.parametrize("axes", [{"x": {0: "rows", 1: "steps"}}, {"x": {1: "steps"}}, None])
def test_networks_that_torch_exports(tmp_path, name, opset, axes):
    net, path = networks()[name].eval(), tmp_path / "model.onnx"
    ids = name == "tagger"
    x = torch.randint(9, (1, 6)) if ids else torch.randn(1, 6, 3)
    options = {"dynamo": False, "opset_version": opset, "input_names": ["x"], "dynamic_axes": axes}
    torch.onnx.export(net, (x,), path, **options)
    found = find(path)
    assert types(found) == FOUND[name]
    assert (found.notes, found.left_out, found.ignored) == ([], [], [])
    own = net(x).detach().numpy()
    row = x[0].numpy().reshape(6, -1)
    np.testing.assert_allclose(predictions(found, row), own.reshape(-1, found.spec.out_features), atol=1e-5)
    check_served(found, tmp_path)


SPEC = ModelSpec("lstm", 4, 4)
W, R, B = parameters(SPEC, weights_of(SPEC))
RNG = np.random.default_rng(0)
STORED = {"w": W, "r": R, "b": B, "m": numbers(RNG, 4, 4), "v": numbers(RNG, 4), "p": np.abs(numbers(RNG, 4)) + 0.5}
STORED |= {f"c{value}": np.array(value, np.float32) for value in (0.1, 0.5, 1, 1.4142135, 2, 2.5, 20, 1e-3, 1e-12)}
STORED |= {f"i{value}": np.array([value]) for value in (-1, 0, 1, 2)} | {"ids": numbers(RNG, 9, 4)}
DECOMPOSED = """ReduceMean {x} i-1 > {y}1
    Sub {x} {y}1 > {y}2
    Pow {y}2 c2 > {y}3
    ReduceMean {y}3 i-1 > {y}4
    Add {y}4 c0.001 > {y}5
    Sqrt {y}5 > {y}6
    Div {y}2 {y}6 > {y}"""
# As torch.onnx.export(dynamo=True) writes it.
SOFTPLUS = """Mul {x} c2.5 > {y}1
    Softplus {y}1 > {y}2
    Div {y}2 c2.5 > {y}3
    Greater {y}1 c20 > {y}4
    Where {y}4 {x} {y}3 > {y}"""
# From {x} to {y} of (T, B, 4): the type and the option that are found.
FORMS = {
    "MatMul {x} m > {y}1\nAdd v {y}1 > {y}": ("linear", ("bias", True)),
    "MatMul {x} m > {y}": ("linear", ("bias", False)),
    "Relu {x} > {y}": ("relu",),
    "PRelu {x} c0.1 > {y}": ("leaky_relu", ("negative_slope", 0.1)),
    "Elu {x} > {y} alpha=0.3": ("elu", ("alpha", 0.3)),
    "Div {x} c1.4142135 > {y}1\nErf {y}1 > {y}2\nAdd {y}2 c1 > {y}3\nMul {x} {y}3 > {y}4\nMul {y}4 c0.5 > {y}": (
        "gelu",
        ("approximate", "none"),
    ),
    "Sigmoid {x} > {y}1\nMul {x} {y}1 > {y}": ("silu",),
    "Softplus {x} > {y}": ("softplus", ("beta", 1.0)),
    SOFTPLUS: ("softplus", ("beta", 2.5)),
    DECOMPOSED: ("layer_norm", ("eps", 1e-3)),
    f"{DECOMPOSED}7\nMul {{y}}7 p > {{y}}8\nAdd {{y}}8 v > {{y}}": ("layer_norm", ("eps", 1e-3)),
    "LayerNormalization {x} p v > {y}": ("layer_norm", ("eps", 1e-5)),
    "Transpose {x} > {y}1 perm=[1,2,0]\nBatchNormalization {y}1 p v v p > {y}2\nTranspose {y}2 > {y} perm=[2,0,1]": (
        "batch_norm",
        ("eps", 1e-5),
    ),
    "Sub {x} v > {y}1\nDiv {y}1 p > {y}": ("scale", ("inverse", False)),
    "Mul {x} p > {y}1\nAdd {y}1 c0.5 > {y}": ("scale", ("inverse", True)),
    "LpNormalization {x} > {y} axis=2": ("normalize", ("eps", 1e-12)),
    "ReduceL2 {x} i-1 > {y}1\nMax {y}1 c0.001 > {y}2\nDiv {x} {y}2 > {y}": ("normalize", ("eps", 1e-3)),
    "Softmax {x} > {y}": ("softmax",),
    "LogSoftmax {x} > {y}": ("log_softmax",),
}


def written(texts, x, last):
    """The nodes of forms one after the other, from x to last."""
    names = [x, *(f"{last}_{place}_" for place in range(1, len(texts))), last]
    return "\n".join(text.format(x=a, y=b) for text, a, b in zip(texts, names[:-1], names[1:], strict=True))


POOLINGS = {
    "none": "Squeeze y0 i1 > s",
    "last": "Squeeze y0 i1 > t\nGather t last > s axis=0",
    "final": "Squeeze h0 i0 > s",
    "mean": "Squeeze y0 i1 > t\nReduceMean t i0 > s keepdims=0",
    "max": "Transpose y0 > t perm=[2,1,3,0]\nReduceMax t i-1 > u keepdims=0\nSqueeze u i1 > s",
}
LSTM = "LSTM f w r b > y0 h0 name=lstm hidden_size=4"


def save(path, *texts, x_shape=("steps", "rows", 4), **stored):
    made = [node for text in texts for node in nodes(text)]
    save_graph(path, made, STORED | {"last": np.array(-1)} | stored, x_shape=x_shape)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_layer(tmp_path, form):
    kind, *option = FORMS[form]
    save(tmp_path / "m", written([form], "x", "f"), LSTM, POOLINGS["none"], written([form], "s", "y"))
    found = find(tmp_path / "m")
    assert types(found) == ([kind], "none", [kind])
    assert set(option) <= set(found.spec.front[0].options) | {("bias", True)}
    check_served(found, tmp_path)


@settings(max_examples=40)
@given(
    front=st.lists(st.sampled_from(list(FORMS)), max_size=3),
    pooling=st.sampled_from(list(POOLINGS)),
    head=st.lists(st.sampled_from(list(FORMS)), min_size=1, max_size=4),
)
def test_any_chain_gives_what_the_graph_gives(front, pooling, head):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        front = written(front, "x", "f") if front else "Identity x > f"
        text = (
            POOLINGS[pooling] if pooling == "none" else POOLINGS[pooling].replace("> s", "> q") + "\nUnsqueeze q i0 > s"
        )
        save(path, front, LSTM, text, written(head, "s", "y"))
        found = find(path)
        assert found.left_out == []
        assert found.spec.pooling in (pooling, "last")
        x = numbers(np.random.default_rng(1), 7, 1, 4)
        [own] = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
        expected = predictions(found, x[:, 0])
        np.testing.assert_allclose(own.reshape(expected.shape), expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_head_ends_where_it_is_told(tmp_path):
    stored = {"fc.weight": STORED["m"], "out.weight": STORED["m"]}
    unknown = "MatMul s fc.weight > a\nHardSwish a > b name=odd\nMatMul b out.weight > y"
    save(tmp_path / "m", "Identity x > f", LSTM, POOLINGS["mean"], unknown, **stored)
    found = find(tmp_path / "m")
    assert (types(found), found.left_out) == (([], "none", []), ["HardSwish odd"])
    assert found.notes == [
        "behind the recurrent layers, HardSwish odd is none of the layers that are served: "
        "the model has no predictions; --head fc ends the head before it"
    ]
    found = find(tmp_path / "m", head="fc")
    assert (types(found), found.left_out) == (([], "mean", ["linear"]), ["HardSwish odd", "MatMul y"])
    with pytest.raises(ChoiceNeeded, match="--head out: HardSwish odd is none of the layers that are served"):
        find(tmp_path / "m", head="out")


def test_unknown_front_is_said(tmp_path):
    save(tmp_path / "m", "HardSwish x > f name=odd", LSTM, POOLINGS["none"], "MatMul s m > y")
    found = find(tmp_path / "m")
    assert (types(found), found.left_out) == (([], "none", ["linear"]), ["HardSwish odd"])
    assert found.notes[0].startswith("before the recurrent layers, HardSwish odd is none of the layers that are served")
    check_served(found, tmp_path)


def test_one_of_several_outputs_is_asked_for(tmp_path):
    save(tmp_path / "m", "Identity x > f", LSTM, POOLINGS["none"], "MatMul s m > y\nRelu s > value\nIdentity h0 > h")
    model = onnx.load(tmp_path / "m")
    for name in ("value", "h"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "m")
    with pytest.raises(ChoiceNeeded, match="the graph has 2 outputs: y, value; say which with --head"):
        find(tmp_path / "m")
    assert types(find(tmp_path / "m", head="value")) == ([], "none", ["relu"])


@pytest.mark.parametrize("x_shape", [("steps", "rows", 4), (5, 1, 4)])
def test_pooling_alone_is_served(tmp_path, x_shape):
    save(tmp_path / "m", "Identity x > f", LSTM, f"{POOLINGS['mean']}\nIdentity s > y", x_shape=x_shape)
    found = find(tmp_path / "m")
    assert types(found) == ([], "mean", ["dropout"])
    check_served(found, tmp_path)
