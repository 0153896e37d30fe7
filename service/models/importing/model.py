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
h and c, and predictions (T, O) with a head."""

Reference = Callable[[Sequence[Arrays], Precision], list[Arrays]]
"""Runs sequences through the checkpoint's own arrays."""

_LAYERS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
_CELLS = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}


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


def torch_reference(spec: ModelSpec, arrays: Mapping[str, torch.Tensor], *, cell: bool) -> tuple[Reference, str]:
    """`torch.nn.RNN`, `GRU`, `LSTM` (or, with cell, `RNNCell` …) with the head as a reference, and its name."""
    make: Any = (_CELLS if cell else _LAYERS)[spec.kind]

    options: dict[str, Any] = {"bias": spec.bias}
    if spec.kind == "rnn":
        options["nonlinearity"] = spec.nonlinearity
    if not cell:
        options |= {"num_layers": spec.num_layers, "bidirectional": spec.bidirectional}
    if spec.proj_size:
        options["proj_size"] = spec.proj_size

    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        dtype = torch.from_numpy(np.zeros(1, precision)).dtype
        module = make(spec.input_size, spec.hidden_size, **options).to(dtype)
        own = {name: array for name, array in arrays.items() if not name.startswith("head.")}
        module.load_state_dict({name.removesuffix("_l0") if cell else name: array for name, array in own.items()})
        head = [arrays[name].to(dtype) for name in ("head.weight", "head.bias") if name in arrays]
        with torch.no_grad():
            return [_run(module, head, sequence, dtype) for sequence in sequences]

    return run, f"torch.nn.{make.__name__}"


def _run(module: torch.nn.Module, head: list[torch.Tensor], sequence: Arrays, dtype: torch.dtype) -> Arrays:
    x, h, *c = (torch.from_numpy(sequence[name]).to(dtype) for name in ("x", "h", "c") if name in sequence)
    state: Any = (h, *c) if c else h
    if isinstance(module, torch.nn.RNNCellBase):
        steps = []
        for row in x.unsqueeze(1):
            state = module(row, state)
            steps.append(state[0] if c else state)
        outputs = torch.cat(steps)
    else:
        outputs, state = module(x, state)
    results = {"outputs": outputs} | dict(zip(("h", "c"), state if c else (state,), strict=False))
    if head:
        results["predictions"] = torch.nn.functional.linear(outputs, *head)
    return {name: tensor.numpy() for name, tensor in results.items()}
