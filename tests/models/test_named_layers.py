"""`--front`, `--pooling` and `--head`: what words mean, and what they cannot mean."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.models.importing.refusal import ChoiceNeeded
from service.models.importing.state_dict import model_from_tensors
from service.models.importing.tensors import Module, Tensors
from tests.models.checkpoint_reference import check_reference
from tests.reference import specs, weights_of, with_chains

STATE = torch.nn.ModuleDict(
    {
        "emb": torch.nn.Embedding(9, 6),
        "lstm": torch.nn.LSTM(6, 8),
        "mlp": torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)),
        "norm": torch.nn.LayerNorm(8),
        "bn": torch.nn.BatchNorm1d(2),
        "rms": torch.nn.RMSNorm(8),
        "conv": torch.nn.Conv1d(8, 8, 3),
        "fc": torch.nn.Linear(8, 2, bias=False),
    }
).state_dict()


def find(tensors=STATE, *, modules=None, **options):
    options = {"layer": None, "nonlinearity": None, "head": None, "file_bytes": 2**30} | options
    return model_from_tensors(Tensors(tensors, [], modules or {}), **options)


def words_of(layers, names) -> str:
    """Layers as a user would say them."""
    words = []
    for layer in layers:
        arguments = [f"{key}={value}".lower() for key, value in layer.options if key in ARGUMENTS[layer.type]]
        name = f"{layer.type}:{names[layer.name]}" if layer.weight_shapes or layer.optional_shapes[-1] else layer.type
        words.append(":".join([name, *arguments]))
    return ",".join(words)


ARGUMENTS = {
    **dict.fromkeys(("layer_norm", "batch_norm", "normalize"), ("eps",)),
    "scale": ("inverse",),
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha",),
    "gelu": ("approximate",),
    "softplus": ("beta", "threshold"),
}
ARGUMENTS |= dict.fromkeys(
    ("embedding", "linear", "relu", "silu", "tanh", "sigmoid", "exp", "softmax", "log_softmax", "dropout"), ()
)


@st.composite
def whole_models(draw):
    return with_chains(lambda options: draw(st.sampled_from(options)), draw(specs(layers=1, size=6)))


@given(spec=whole_models(), seed=st.integers(0, 99))
def test_words_give_the_chain(spec, seed):
    weights = weights_of(spec, 2 * seed)  # with all arrays that layers may have
    names = {layer.name: f"net.{layer.name.replace('.', '_')}" for layer in (*spec.front, *spec.head)}
    renamed = {}
    for name, array in weights.items():
        layer, _, last = name.rpartition(".")
        renamed[f"{names[layer]}.{last}" if layer else f"net.rnn.{name}"] = torch.from_numpy(array)
    found = find(
        renamed,
        front=words_of(spec.front, names) or None,
        head=words_of(spec.head, names) or None,
        nonlinearity=spec.nonlinearity if spec.kind == "rnn" else None,
    )
    if len(spec.head) > 1 or not spec.head:
        assert found.spec == spec
    check_reference(found, {name: tensor.numpy() for name, tensor in found.arrays.items()})
    assert found.left_out == []


@pytest.mark.parametrize(
    ("words", "types"),
    [
        ("mlp.0,relu,mlp.2,bn,softmax", ["linear", "relu", "linear", "batch_norm", "softmax"]),
        ("norm,mlp.0 , dropout", ["layer_norm", "linear", "dropout"]),
        ("layer_norm,fc", ["layer_norm", "linear"]),
        ("layer_norm:rms,fc", ["layer_norm", "linear"]),
        ("linear:fc,batch_norm", ["linear", "batch_norm"]),
    ],
)
def test_layers_are_told_by_their_arrays(words, types):
    assert [layer.type for layer in find(head=words).spec.head] == types


def test_layer_norm_without_arrays():
    state = {name: tensor for name, tensor in STATE.items() if not name.startswith("norm.")}
    found = find(state, head="fc,layer_norm:eps=0.01")
    assert (found.spec.head[1].type, found.spec.head[1].options) == ("layer_norm", (("eps", 0.01),))
    assert not any(name.startswith("head.1") for name in found.arrays)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"head": "mlp.0,mlp"},
            r"mlp holds mlp.0 \(linear \(5, 8\)\), mlp.2 .* name each, and the activations",
        ),
        ({"head": "linear"}, "the file has 3 linear layers: mlp.0, mlp.2, fc; say which with --head linear:NAME"),
        ({"head": "scale"}, "the file has 0 scale layers"),
        ({"head": "mlp.2"}, r"head\[0\]: in_features is 5, and what comes before it is 8 wide"),
        ({"head": "fc,mlp.0"}, r"head\[1\]: in_features is 8, and what comes before it is 2 wide"),
        ({"head": "conv"}, r"conv \(\(8, 8, 3\)\) is no layer that is served"),
        ({"head": "rms"}, r"rms \(\(8,\)\) is no layer that is served; if it is one, say layer_norm:rms"),
        ({"head": "swish"}, "--head swish is not in the file; it has emb, mlp.0"),
        ({"head": ""}, "--head names no layer"),
        ({"head": "fc,,relu"}, "--head names no layer"),
        ({"head": "fc,relu:slope=2"}, "slope: Extra inputs are not permitted"),
        ({"head": "fc,relu:beta=2"}, "relu has no beta"),
        ({"head": "fc,leaky_relu:negative_slope=x"}, "negative_slope: Input should be a valid number"),
        ({"head": "fc,emb"}, "an embedding can only come first in front"),
        ({"front": "mlp.0"}, "--front: front ends 5 wide, and input_size is 6"),
        ({"front": "scale:none.npz"}, "--front: none.npz: the file cannot be read: No such file"),
        ({"pooling": "last"}, "--pooling last says what a head reads: name its layers with --head"),
    ],
)
def test_words_that_do_not_fit(options, reason):
    with pytest.raises(ChoiceNeeded, match=reason):
        find(**options)


def test_what_was_not_named_is_said_and_suggested():
    found = find(head="mlp.0")
    assert [name.partition(" ")[0] for name in found.left_out] == ["emb", "mlp.2", "norm", "bn", "rms", "conv", "fc"]
    [note] = [note for note in find().notes if "more layers fit" in note]
    assert '--front "emb" --head "mlp.0,mlp.2"' in note
    [note] = [note for note in found.notes if "more layers fit" in note]
    assert "--head" not in note


@pytest.mark.parametrize("names", [("mean", "scale"), ("mean_", "scale_"), ("mean", "std")])
@pytest.mark.parametrize("shape", [(6,), (), (1,)])
def test_scaler_of_another_file(tmp_path, names, shape):
    values = np.full(shape, 3.0), np.full(shape, 0.5)
    np.savez(tmp_path / "x.npz", **dict(zip(names, values, strict=True)))
    found = find(
        front=f"scale:{tmp_path}/x.npz", head="fc,scale:" + f"{tmp_path}/x.npz:inverse=true" if shape != (6,) else "fc"
    )
    assert found.arrays["front.0.mean"].tolist() == [3.0] * 6
    assert found.arrays["front.0.scale"].tolist() == [0.5] * 6
    assert shape == (6,) or found.spec.head[-1].option("inverse") is True


def test_scaler_that_is_none(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    np.save(tmp_path / "o.npy", np.array([print], dtype=object))
    (tmp_path / "o.npy").rename(tmp_path / "o.npz")
    with pytest.raises(ChoiceNeeded, match=r"x\.npz has a; expected mean and scale"):
        find(front=f"scale:{tmp_path}/x.npz")
    with pytest.raises(ChoiceNeeded, match=r"o\.npz: it is no npz or safetensors file"):
        find(front=f"scale:{tmp_path}/o.npz")


RECORDED = {
    "mlp": Module("torch.nn.modules.container.Sequential", {}),
    "mlp.0": Module("torch.nn.modules.linear.Linear", {"in_features": 8}),
    "mlp.1": Module("torch.nn.modules.activation.Softplus", {"beta": 2.0, "threshold": 7, "training": True}),
    "mlp.2": Module("torch.nn.modules.linear.Linear", {}),
}


def test_recorded_sequential_has_its_activations():
    found = find(modules=RECORDED, head="mlp")
    assert [layer.type for layer in found.spec.head] == ["linear", "softplus", "linear"]
    assert found.spec.head[1].options == (("beta", 2.0), ("threshold", 7.0))
    flat = RECORDED | {"mlp.1": Module("torch.nn.modules.flatten.Flatten", {})}
    with pytest.raises(ChoiceNeeded, match=r"mlp.1 \(Flatten\) is no layer that is served"):
        find(modules=flat, head="mlp")


@pytest.mark.parametrize(
    ("dim", "pooling", "fits"), [(-1, "none", True), (2, "none", True), (1, "none", False), (1, "last", True)]
)
def test_recorded_softmax_is_over_the_features(dim, pooling, fits):
    modules = {"soft": Module("torch.nn.modules.activation.Softmax", {"dim": dim})}
    if fits:
        assert find(modules=modules, head="fc,soft", pooling=pooling).spec.head[1].type == "softmax"
    else:
        with pytest.raises(ChoiceNeeded, match="softmax is served over the features alone"):
            find(modules=modules, head="fc,soft", pooling=pooling)


def test_recorded_nonlinearity_is_taken():
    state = {f"rnn.{name}": tensor for name, tensor in torch.nn.RNN(3, 4).state_dict().items()}
    modules = {"rnn": Module("torch.nn.modules.rnn.RNN", {"nonlinearity": "relu", "batch_first": False})}
    found = find(state, modules=modules)
    assert found.spec.nonlinearity == "relu"
    assert found.notes == ["rnn has batch_first False: requests are batch first, or say batch_first false"]
    with pytest.raises(ChoiceNeeded, match="--nonlinearity tanh contradicts the file, which says relu"):
        find(state, modules=modules, nonlinearity="tanh")


@pytest.mark.filterwarnings("ignore")  # one form is deprecated
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
def test_weight_norm_is_folded(norm, dim, name):
    torch.manual_seed(1)
    layer, fc = norm(torch.nn.GRU(3, 4), name, dim=dim), norm(torch.nn.Linear(4, 2), dim=dim)
    state = {f"gru.{key}": tensor for key, tensor in layer.state_dict().items()}
    state |= {f"fc.{key}": tensor for key, tensor in fc.state_dict().items()}
    for key in state:
        state[key] = state[key] * (2 if key.endswith(("_g", "original0")) else 1)
    size = sum(tensor.nbytes for tensor in state.values())
    found = find(state, head="fc", file_bytes=size)
    layer.load_state_dict({key.removeprefix("gru."): state[key] for key in state if key.startswith("gru.")})
    layer(torch.zeros(1, 1, 3))  # computes the weight
    np.testing.assert_allclose(found.arrays[name], getattr(layer, name).detach(), rtol=1e-6)
    assert f"gru.{name} is g·v/‖v‖ of its weight norm" in found.notes
    assert "fc.weight is g·v/‖v‖ of its weight norm" in found.notes
    assert found.left_out == []


@pytest.mark.filterwarnings("ignore")  # it is deprecated
def test_computed_weight_of_a_head_is_refused():
    fc = torch.nn.utils.spectral_norm(torch.nn.Linear(8, 2))
    state = STATE | {f"out.{key}": tensor for key, tensor in fc.state_dict().items()}
    with pytest.raises(Exception, match=r"weight is computed from out\.weight_u at each call"):
        find(state | {"out.weight": torch.zeros(2, 8)}, head="out")
