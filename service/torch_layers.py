"""A model's stack, front and head by torch's own functions: the torch engine, and the reference of imports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  # as PyTorch's documentation has it

from service.spec import ChainLayer, ModelSpec

ARRAYS = ("weight", "bias", "running_mean", "running_var", "mean", "scale")  # that a layer of front or head may have


def build_module(spec: ModelSpec) -> torch.nn.RNNBase:
    """The untrained `torch.nn` module of a spec; its sequences are (T, B, I) or packed."""
    extra: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.kind == "rnn" else {}
    if spec.proj_size:
        extra["proj_size"] = spec.proj_size
    make: Any = getattr(torch.nn, spec.kind.upper())
    sizes = spec.input_size, spec.hidden_size, spec.num_layers
    module: torch.nn.RNNBase = make(*sizes, bias=spec.bias, bidirectional=spec.bidirectional, **extra)
    return module


def run_layers(layers: Sequence[ChainLayer], arrays: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Vectors (N, F) through layers of front or head, as outside training; arrays are by `ChainLayer.weight_shapes`."""
    for layer in layers:
        own = {name: arrays.get(f"{layer.name}.{name}") for name in ARRAYS}
        x = _FUNCTIONS[layer.type](x, own, dict(layer.options))
    return x


def _elementwise(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, _, options: function(x, **options)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    **{name: _elementwise(getattr(F, name)) for name in ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus")},
    **{name: _elementwise(getattr(torch, name)) for name in ("tanh", "sigmoid", "exp")},
    "embedding": lambda x, of, _: F.embedding(x[..., 0].long(), of["weight"]),  # token ids (N, 1) that come as numbers
    "linear": lambda x, of, _: F.linear(x, of["weight"], of["bias"]),
    "layer_norm": lambda x, of, o: F.layer_norm(x, x.shape[-1:], of["weight"], of["bias"], **o),
    "batch_norm": lambda x, of, o: F.batch_norm(
        x, of["running_mean"], of["running_var"], of["weight"], of["bias"], **o
    ),
    "scale": lambda x, of, o: x * of["scale"] + of["mean"] if o["inverse"] else (x - of["mean"]) / of["scale"],
    "softmax": lambda x, *_: F.softmax(x, -1),
    "log_softmax": lambda x, *_: F.log_softmax(x, -1),
    "normalize": lambda x, _, o: F.normalize(x, dim=-1, **o),
    "dropout": lambda x, *_: x,
}
