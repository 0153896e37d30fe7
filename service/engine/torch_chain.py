"""`front` and `head` as `torch.nn` modules."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from service.spec import ChainLayer


class _Function(nn.Module):
    """A function of torch as a module."""

    def __init__(self, function: Callable[..., torch.Tensor], **arguments: Any) -> None:
        super().__init__()
        self._function = partial(function, **arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x)


_WITHOUT_ARRAYS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "exp": partial(_Function, torch.exp),
    "softmax": partial(nn.Softmax, dim=-1),
    "log_softmax": partial(nn.LogSoftmax, dim=-1),
    "normalize": partial(_Function, nn.functional.normalize, dim=-1),
    "dropout": nn.Identity,
}


class _Ids(nn.Embedding):
    """An embedding of token ids that come as float32, (N, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., 0].long())


class _Scale(nn.Module):
    """(x - mean)/scale, or x·scale + mean."""

    def __init__(self, size: int, *, inverse: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self._inverse = inverse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        return x * scale + mean if self._inverse else (x - mean) / scale


def chain_module(layers: Sequence[ChainLayer], tensors: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The layers in order, with their arrays among tensors; in evaluation mode."""
    return nn.Sequential(*(_module(layer, tensors) for layer in layers)).eval()


def _module(layer: ChainLayer, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    prefix = f"{layer.name}."
    arrays = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module = _untrained(layer, arrays)
    missing, _ = module.load_state_dict(arrays, strict=False)
    if set(missing) - {"num_batches_tracked"}:
        raise RuntimeError(f"{layer.name} lacks {', '.join(missing)}")
    return module


def _untrained(layer: ChainLayer, arrays: Mapping[str, torch.Tensor]) -> nn.Module:
    options = dict(layer.options)
    affine = {"elementwise_affine": "weight" in arrays, "bias": "bias" in arrays}
    modules: dict[str, Callable[..., nn.Module]] = {
        "embedding": partial(_Ids, embedding_dim=layer.out_features),
        "linear": partial(nn.Linear, layer.in_features, layer.out_features),
        "layer_norm": partial(nn.LayerNorm, layer.in_features, **affine),
        "batch_norm": partial(nn.BatchNorm1d, layer.in_features, affine="weight" in arrays),
        "scale": partial(_Scale, layer.in_features),
    }
    return (modules | _WITHOUT_ARRAYS)[layer.type](**options)
