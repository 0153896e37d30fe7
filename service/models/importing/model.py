"""The model that an import finds in a checkpoint, its front and head, and `torch.nn` as its reference.

A reference shares no code with the native engine: an import is verified against it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from service.models.config import Layers, first_error
from service.models.layer_config import chain_layers
from service.spec import ChainLayer, ModelSpec
from service.torch_layers import build_module, run_layers

Numbers = NDArray[np.floating[Any]]
Precision = type[np.floating[Any]]
ZEROS = "(zeros)"  # in place of the name of an array that is not in the file

Arrays = Mapping[str, Numbers]
"""One sequence by name. To run: x (T, I), token ids (T, 1), h (L·D, P), and c (L·D, H) for an LSTM. Results: outputs
(T, D·P), the final h and c, and with a head predictions (T, O), or (1, O) of a model that pools or of the last step."""

Reference = Callable[[Sequence[Arrays], Precision], list[Arrays]]  # runs sequences through the checkpoint's own arrays


class Stored(NamedTuple):
    """An array, of numpy or torch, and what it is called in the file."""

    values: Any
    source: str


Entry = tuple[Mapping[str, Any], Mapping[str, Stored]]
"""A layer as config.json has it, which may leave out its sizes, and its arrays by PyTorch's names."""


@dataclass(frozen=True)
class CheckpointModel:
    """A recurrent layer of a checkpoint, with the front, pooling and head that were found or asked for.

    stored has the names and shapes of `spec.weight_shapes()`, of layers' `optional_shapes` where the file has these,
    and may hold h0 (L·D, P) and c0 (L·D, H). layer is "" where its arrays' names in the file have no prefix; ignored
    and notes are for people. left_out names layers of the file that may belong to the network and that the model does
    not have: it is not called verified without them.
    """

    layer: str
    spec: ModelSpec
    stored: Mapping[str, Stored]
    reference: Reference
    reference_name: str
    ignored: list[str]
    notes: list[str]
    left_out: Sequence[str] = ()

    @cached_property
    def arrays(self) -> dict[str, torch.Tensor]:
        return {
            name: values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
            for name, (values, _) in self.stored.items()
        }


def convert_layers(part: str, entries: Sequence[Entry], width: int) -> tuple[tuple[ChainLayer, ...], dict[str, Stored]]:
    """The `front` of a stack that takes vectors of `width`, or the `head` of one that gives them, and the arrays.

    A head of one linear layer is what config.json has a short form for, and has a bias. Raises ValueError.
    """
    given = [{**_sizes(entry["type"], arrays), **entry} for entry, arrays in entries]
    try:
        configs = TypeAdapter(dict[str, Layers]).validate_python({part: given})[part]
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    layers = chain_layers(part, configs, width)
    stored: dict[str, Stored] = {}
    if part == "head" and [layer.type for layer in layers] == ["linear"]:
        layers = (replace(layers[0], name="head", options=(("bias", True),)),)
        stored["head.bias"] = Stored(torch.zeros(layers[0].out_features), ZEROS)
    for layer, (_, arrays) in zip(layers, entries, strict=True):
        for name, (values, source) in arrays.items():
            one = layer.type == "scale" and prod(values.shape) == 1  # for all features
            full = values.reshape(1).repeat(layer.out_features) if one else values
            stored[f"{layer.name}.{name}"] = Stored(full, source)
    return layers, stored


def weight_shape(arrays: Mapping[str, Stored]) -> tuple[int, ...]:
    return tuple(arrays["weight"].values.shape) if "weight" in arrays else ()


def _sizes(kind: str, arrays: Mapping[str, Stored]) -> dict[str, Any]:
    """What the arrays of a layer say of it."""
    shape = weight_shape(arrays)
    first, second = shape if len(shape) == 2 else (0, 0)
    if kind == "linear":
        return {"in_features": second, "out_features": first, "bias": "bias" in arrays}
    return {"num_embeddings": first, "embedding_dim": second} if kind == "embedding" else {}


def torch_reference(spec: ModelSpec, arrays: Mapping[str, torch.Tensor]) -> tuple[Reference, str]:
    """`torch.nn.RNN`, `GRU` or `LSTM` with front, pooling and head as a reference, and its name."""

    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        dtype = torch.from_numpy(np.zeros(1, precision)).dtype
        module = build_module(spec).to(dtype)
        module.load_state_dict({name: arrays[name] for name in spec.stack_shapes()})
        own = {name: array.to(dtype) for name, array in arrays.items()}
        results: list[Arrays] = []
        for sequence in sequences:
            x, h, *c = (torch.from_numpy(sequence[name]).to(dtype) for name in ("x", "h", "c") if name in sequence)
            with torch.no_grad():
                outputs, state = module(run_layers(spec.front, own, x), (h, *c) if c else h)
                tensors = {"outputs": outputs, **dict(zip(("h", "c"), state if c else (state,), strict=False))}
                if spec.head:
                    tensors["predictions"] = run_layers(spec.head, own, _pooled(spec, outputs, tensors["h"]))
            results.append({name: tensor.numpy() for name, tensor in tensors.items()})
        return results

    return run, f"torch.nn.{spec.kind.upper()}"


def _pooled(spec: ModelSpec, outputs: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """What the head reads: outputs (T, D·P) as they are, or one vector (1, D·P) of them all."""
    match spec.pooling:
        case "last":
            return outputs[-1:]
        case "final":
            return h[-spec.directions :].reshape(1, -1)
        case "mean":
            return outputs.mean(0, keepdim=True)
        case "max":
            return outputs.amax(0, keepdim=True)
    return outputs
