"""The model that an import finds in a checkpoint, and `torch.nn` as its reference.

A reference shares no code with the engines: an import is verified against it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.spec import ModelSpec

Numbers = NDArray[np.floating[Any]]
Precision = type[np.floating[Any]]

Arrays = Mapping[str, Numbers]
"""One sequence by name. To run: x (T, I), h (L·D, P), and c (L·D, H) for an LSTM. Results: outputs (T, D·P), the final
h and c, and predictions (T, O), or (1, O) of the last step, with a head."""

Reference = Callable[[Sequence[Arrays], Precision], list[Arrays]]
"""Runs sequences through the checkpoint's own arrays."""


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """A recurrent layer of a checkpoint, with its head if one was asked for.

    arrays have the names and shapes of `spec.weight_shapes()` and the file's own dtypes; sources says what each is
    called in the file. layer is "" where the names of its arrays have no prefix; ignored and notes are for people.
    """

    layer: str
    spec: ModelSpec
    arrays: Mapping[str, torch.Tensor]
    sources: Mapping[str, str]
    reference: Reference
    reference_name: str
    ignored: list[str]
    notes: list[str]


def torch_reference(spec: ModelSpec, arrays: Mapping[str, torch.Tensor]) -> tuple[Reference, str]:
    """`torch.nn.RNN`, `GRU` or `LSTM` with the head as a reference, and its name."""
    make: Any = getattr(torch.nn, spec.kind.upper())
    options: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.kind == "rnn" else {}
    if spec.proj_size:
        options["proj_size"] = spec.proj_size
    own = {name: array for name, array in arrays.items() if not name.startswith("head.")}

    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        dtype = torch.from_numpy(np.zeros(1, precision)).dtype
        sizes = (spec.input_size, spec.hidden_size, spec.num_layers)
        module = make(*sizes, bias=spec.bias, bidirectional=spec.bidirectional, **options).to(dtype)
        module.load_state_dict(own)
        head = [arrays[name].to(dtype) for name in ("head.weight", "head.bias") if name in arrays]
        results: list[Arrays] = []
        for sequence in sequences:
            x, h, *c = (torch.from_numpy(sequence[name]).to(dtype) for name in ("x", "h", "c") if name in sequence)
            with torch.no_grad():
                outputs, state = module(x, (h, *c) if c else h)
                tensors = {"outputs": outputs, **dict(zip(("h", "c"), state if c else (state,), strict=False))}
                if head:
                    tensors["predictions"] = torch.nn.functional.linear(outputs, *head)
            results.append({name: tensor.numpy() for name, tensor in tensors.items()})
        return results

    return run, f"torch.nn.{make.__name__}"
