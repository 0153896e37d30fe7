"""The layer of a checkpoint as the `torch.nn` module it was: what an import is verified against.

It shares no code with the engines, so that a mistake of theirs does not hide itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from service.models.importing.found import Precision, Probe, Reference, Results
from service.spec import ModelSpec

_LAYERS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
_CELLS = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}

# What goes into a run, x (T, I) with the initial h and c, and what comes out: outputs (T, D·P) with the final ones.
_Run = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def torch_reference(spec: ModelSpec, arrays: Mapping[str, torch.Tensor], *, cell: bool) -> Reference:
    """A function that runs probes through `torch.nn.RNN`, `GRU`, `LSTM` (or, with cell, `RNNCell` …) and the head."""

    def run(probes: Sequence[Probe], precision: Precision) -> list[Results]:
        dtype = torch.from_numpy(np.zeros(1, precision)).dtype
        layer = (_cell(spec) if cell else _layer(spec)).to(dtype)
        own = {name: array for name, array in arrays.items() if not name.startswith("head.")}
        layer.load_state_dict({name.removesuffix("_l0") if cell else name: array for name, array in own.items()})
        step = _run_cell if cell else _run_layer
        with torch.no_grad():
            return [_results(*step(layer, _tensors(probe, dtype)), arrays) for probe in probes]

    return run


def reference_name(spec: ModelSpec, *, cell: bool) -> str:
    """What the reference is, for people: `torch.nn.LSTM`."""
    return f"torch.nn.{(_CELLS if cell else _LAYERS)[spec.kind].__name__}"


def _layer(spec: ModelSpec) -> torch.nn.Module:
    extra: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.kind == "rnn" else {}
    if spec.kind == "lstm":
        extra["proj_size"] = spec.proj_size
    make: Any = _LAYERS[spec.kind]
    layer: torch.nn.Module = make(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bias=spec.bias,
        bidirectional=spec.bidirectional,
        **extra,
    )
    return layer


def _cell(spec: ModelSpec) -> torch.nn.Module:
    extra: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.kind == "rnn" else {}
    make: Any = _CELLS[spec.kind]
    cell: torch.nn.Module = make(spec.input_size, spec.hidden_size, bias=spec.bias, **extra)
    return cell


def _tensors(probe: Probe, dtype: torch.dtype) -> _Run:
    x, h = torch.from_numpy(probe.x).to(dtype), torch.from_numpy(probe.h).to(dtype)
    return x, h, None if probe.c is None else torch.from_numpy(probe.c).to(dtype)


def _run_layer(layer: torch.nn.Module, probe: _Run) -> _Run:
    x, h, c = probe
    if c is None:
        outputs, h = layer(x, h)
        return outputs, h, None
    outputs, (h, c) = layer(x, (h, c))
    return outputs, h, c


def _run_cell(cell: torch.nn.Module, probe: _Run) -> _Run:
    steps, h, c = probe
    outputs = []
    for x in steps.unsqueeze(1):
        if c is None:
            h = cell(x, h)
        else:
            h, c = cell(x, (h, c))
        outputs.append(h)
    return torch.cat(outputs), h, c


def _results(
    outputs: torch.Tensor, h: torch.Tensor, c: torch.Tensor | None, arrays: Mapping[str, torch.Tensor]
) -> Results:
    predictions = None
    if "head.weight" in arrays:
        weight, bias = (arrays[f"head.{name}"].to(outputs.dtype) for name in ("weight", "bias"))
        predictions = torch.nn.functional.linear(outputs, weight, bias).numpy()
    return Results(outputs.numpy(), h.numpy(), None if c is None else c.numpy(), predictions)
