"""The independent reference: torch.nn in float64, one row at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  # as PyTorch's documentation has it

from service.models.layer_config import LayerConfig, chain_layers
from service.spec import ModelSpec
from service.torch_layers import build_module

TOLERANCE = 1e-5


@dataclass
class Result:
    outputs: np.ndarray  # (T, D·P)
    h: np.ndarray  # (L·D, P)
    c: np.ndarray | None  # (L·D, H)
    predictions: np.ndarray | None  # (T, O)


def specs(*, kinds=("rnn", "gru", "lstm"), directions=(False, True), layers=3, size=9) -> st.SearchStrategy[ModelSpec]:
    """Models of every kind and argument, small."""

    @st.composite
    def draw(draw_one):
        kind = draw_one(st.sampled_from(kinds))
        hidden = draw_one(st.integers(1, size))
        projects = kind == "lstm" and hidden > 1 and draw_one(st.booleans())
        spec = ModelSpec(
            kind=kind,
            input_size=draw_one(st.integers(1, size)),
            hidden_size=hidden,
            num_layers=draw_one(st.integers(1, layers)),
            nonlinearity=draw_one(st.sampled_from(("tanh", "relu"))) if kind == "rnn" else "tanh",
            bias=draw_one(st.booleans()),
            bidirectional=draw_one(st.sampled_from(directions)),
            proj_size=draw_one(st.integers(1, hidden - 1)) if projects else 0,
        )
        head = draw_one(st.none() | st.integers(1, 4))
        return spec.with_linear_head(head) if head else spec

    return draw()


def weights_of(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """PyTorch's default initialisation, float32, by state_dict name."""
    torch.manual_seed(seed)
    arrays = {name: tensor.numpy() for name, tensor in build_module(spec).state_dict().items()}
    rng = np.random.default_rng(seed)
    for layer in (*spec.front, *spec.head):
        optional = layer.optional_shapes[-1 if seed % 2 == 0 else 0]
        for name, shape in (layer.weight_shapes | optional).items():
            values = rng.uniform(-1, 1, shape) / np.sqrt(layer.in_features)  # as torch.nn.Linear begins
            positive = name.endswith((".running_var", ".scale"))
            arrays[name] = (np.abs(values) + 0.5 if positive else values).astype(np.float32)
    return arrays


def with_chains(choose: Callable[[Sequence[Any]], Any], spec: ModelSpec) -> ModelSpec:
    """The spec with a linear head or none, or with a front and a head of a few layers; `choose` picks from a list."""
    if choose([False, False, True]):
        head = choose([None, 1, 6])
        return spec.with_linear_head(head) if head else spec
    size = spec.input_size
    ids, linear = {"type": "embedding", "num_embeddings": 7}, {"type": "linear", "in_features": 4}
    front = choose([[], [ids | {"embedding_dim": size}], [linear | {"out_features": size}]])
    last = {"type": "linear", "out_features": choose([1, 6, 33]), "bias": choose([False, True])}

    def others() -> list[dict[str, Any]]:
        return [OTHERS[name] | {"type": name} for name in (choose(list(OTHERS)) for _ in range(choose([0, 1, 2])))]

    front, head = (
        [LayerConfig(**entry) for entry in entries] for entries in (front + others(), [*others(), last, *others()])
    )
    return replace(spec, front=chain_layers("front", front, size), head=chain_layers("head", head, spec.output_size))


def with_layers(spec: ModelSpec, entries: list[dict[str, Any]]) -> ModelSpec:
    """The spec with the same layers as front and as head."""
    layers = [LayerConfig(**entry) for entry in entries]
    front, head = chain_layers("front", layers, spec.input_size), chain_layers("head", layers, spec.output_size)
    return replace(spec, front=front, head=head)


def run_chain(layers, arrays, x: torch.Tensor) -> torch.Tensor:
    """Layers by the functions of torch.nn.functional, in the precision of x."""
    for layer in layers:
        own = [name for name in arrays if name.startswith(f"{layer.name}.")]
        of = {name.removeprefix(f"{layer.name}."): arrays[name].double() for name in own}
        x = FUNCTIONS.get(layer.type, lambda x, *_: x)(x, of, dict(layer.options))
    return x


FUNCTIONS = {
    "embedding": lambda x, of, _: of["weight"][x[..., 0].long()],
    "linear": lambda x, of, _: F.linear(x, of["weight"], of.get("bias")),
    "layer_norm": lambda x, of, o: F.layer_norm(x, x.shape[-1:], of.get("weight"), of.get("bias"), o["eps"]),
    "batch_norm": lambda x, of, o: (
        (x - of["running_mean"]) / torch.sqrt(of["running_var"] + o["eps"]) * of.get("weight", 1) + of.get("bias", 0)
    ),
    "scale": lambda x, of, o: x * of["scale"] + of["mean"] if o["inverse"] else (x - of["mean"]) / of["scale"],
    "normalize": lambda x, _, o: F.normalize(x, dim=-1, eps=o["eps"]),
    "softmax": lambda x, *_: F.softmax(x, -1),
    "log_softmax": lambda x, *_: F.log_softmax(x, -1),
    "relu": lambda x, *_: F.relu(x),
    "leaky_relu": lambda x, _, o: F.leaky_relu(x, **o),
    "elu": lambda x, _, o: F.elu(x, **o),
    "gelu": lambda x, _, o: F.gelu(x, **o),
    "silu": lambda x, *_: F.silu(x),
    "tanh": lambda x, *_: torch.tanh(x),
    "sigmoid": lambda x, *_: torch.sigmoid(x),
    "softplus": lambda x, _, o: F.softplus(x, **o),
    "exp": lambda x, *_: torch.exp(x),
}
OTHERS: dict[str, dict[str, Any]] = {name: {} for name in FUNCTIONS if name not in ("embedding", "linear", "exp")}
OTHERS |= {
    "dropout": {"p": 0.5},
    "leaky_relu": {"negative_slope": 0.3},
    "elu": {"alpha": 0.7},
    "scale": {"inverse": True},
}
OTHERS |= {"softplus": {"beta": 2.0, "threshold": 3.0}, "gelu": {"approximate": "tanh"}, "layer_norm": {"eps": 1e-3}}


def run_reference(spec: ModelSpec, weights, inputs, h0=None, c0=None) -> Result:
    """One row: inputs (T, I), h0 (L·D, P), c0 (L·D, H)."""
    tensors = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    module = build_module(spec).double()
    module.load_state_dict({name: tensors[name] for name in spec.stack_shapes()})
    h = torch.zeros(spec.states, spec.state_size) if h0 is None else torch.from_numpy(np.array(h0))
    state = h.double()
    if spec.has_cell_state:
        c = torch.zeros(spec.states, spec.hidden_size) if c0 is None else torch.from_numpy(np.array(c0))
        state = (state, c.double())
    with torch.no_grad():
        x = run_chain(spec.front, tensors, torch.from_numpy(np.array(inputs)).double())
        outputs, final = module(x, state)
        predictions = run_chain(spec.head, tensors, outputs).numpy() if spec.head else None
    h_n, c_n = (final[0].numpy(), final[1].numpy()) if spec.has_cell_state else (final.numpy(), None)
    return Result(outputs.numpy(), h_n, c_n, predictions)


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)
