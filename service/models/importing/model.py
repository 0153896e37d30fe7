"""The model that an import finds in a checkpoint, and `torch.nn` as its reference.

A reference shares no code with the native engine: an import is verified against it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.spec import ModelSpec
from service.torch_layers import build_module, run_layers

Numbers = NDArray[np.floating[Any]]
Precision = type[np.floating[Any]]

Arrays = Mapping[str, Numbers]
"""One sequence by name. To run: x (T, I), token ids (T, 1), h (L·D, P), and c (L·D, H) for an LSTM. Results: outputs
(T, D·P), the final h and c, and with a head predictions (T, O), or (1, O) of a model that pools or of the last step."""

Reference = Callable[[Sequence[Arrays], Precision], list[Arrays]]  # runs sequences through the checkpoint's own arrays


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """A recurrent layer of a checkpoint, with the front, pooling and head that were found or asked for.

    arrays have the names and shapes of `spec.weight_shapes()`, of layers' `optional_shapes` where the file has these,
    and may hold h0 (L·D, P) and c0 (L·D, H); sources says what each is called in the file. layer is "" where the names
    of its arrays have no prefix; ignored and notes are for people. left_out names layers of the file that may belong
    to the network and that the model does not have: it is not called verified without them.
    """

    layer: str
    spec: ModelSpec
    arrays: Mapping[str, torch.Tensor]
    sources: Mapping[str, str]
    reference: Reference
    reference_name: str
    ignored: list[str]
    notes: list[str]
    left_out: Sequence[str] = ()


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
