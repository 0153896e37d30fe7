"""`front` and `head` as functions of torch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  # as PyTorch's documentation has it

from service.spec import ChainLayer

Function = Callable[[torch.Tensor], torch.Tensor]

_WITHOUT_ARRAYS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "softmax": partial(F.softmax, dim=-1),
    "log_softmax": partial(F.log_softmax, dim=-1),
    "normalize": partial(F.normalize, dim=-1),
    "dropout": lambda x: x,
}


def chain_function(layers: Sequence[ChainLayer], tensors: Mapping[str, torch.Tensor]) -> Function:
    """The layers in order, with their arrays among tensors, as outside training."""
    functions = [_function(layer, tensors) for layer in layers]

    def run(x: torch.Tensor) -> torch.Tensor:
        for function in functions:
            x = function(x)
        return x

    return run


def _function(layer: ChainLayer, tensors: Mapping[str, torch.Tensor]) -> Function:
    options: dict[str, Any] = dict(layer.options)

    def array(name: str) -> Any:
        return tensors.get(f"{layer.name}.{name}")

    weight, bias = array("weight"), array("bias")
    match layer.type:
        case "embedding":  # of token ids that come as float32, (N, 1)
            return lambda x: F.embedding(x[..., 0].long(), weight)
        case "linear":
            return lambda x: F.linear(x, weight, bias)
        case "layer_norm":
            return lambda x: F.layer_norm(x, (layer.in_features,), weight, bias, **options)
        case "batch_norm":
            mean, variance = array("running_mean"), array("running_var")
            return lambda x: F.batch_norm(x, mean, variance, weight, bias, **options)
        case "scale":
            mean, scale = array("mean"), array("scale")
            return lambda x: x * scale + mean if options["inverse"] else (x - mean) / scale
    return partial(_WITHOUT_ARRAYS[layer.type], **options)
