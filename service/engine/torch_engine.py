"""The torch engine: `torch.nn` modules, the reference on every machine and the engine on a GPU.

Rows of unequal length run as one packed sequence; rows of equal length that lie one after the other in memory run
without being copied.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from service.engine.interface import Engine, Floats, Rows
from service.spec import ModelSpec

SLICE_STEPS = 4096

_MODULES: dict[str, type[torch.nn.RNNBase]] = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def resolve_device(choice: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises ValueError for a device that is not there."""
    if choice == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(choice)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {choice} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def build_module(spec: ModelSpec) -> torch.nn.RNNBase:
    """The untrained `torch.nn` module of a spec, batch-first."""
    extra: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.kind == "rnn" else {}
    if spec.proj_size:
        extra["proj_size"] = spec.proj_size
    return _MODULES[spec.kind](
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        bias=spec.bias,
        batch_first=True,
        bidirectional=spec.bidirectional,
        **extra,
    )


class TorchEngine(Engine):
    """One model as a `torch.nn` module on one device; float32 arithmetic (TF32 is off).

    weights are the state_dict's arrays, `head.weight` and `head.bias` among them where the spec has a head; with
    `weights_dtype` bf16 the matrices are rounded to bfloat16 and computed with in float32.
    """

    name = "torch"
    step_seconds = 5e-6  # three or four operators a step
    flops_per_second = 2e10

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats], *, device: torch.device) -> None:
        self.spec = spec
        self._device = device
        if device.type != "cpu":
            self.step_seconds = inf  # waiting for a GPU is never quick enough for the event loop
        tensors = {name: _rounded(torch.from_numpy(array.copy()), spec) for name, array in weights.items()}
        head = {name: tensors.pop(f"head.{name}") for name in ("weight", "bias") if f"head.{name}" in tensors}
        self._module = build_module(spec).eval()
        self._module.load_state_dict(tensors)
        self._module.to(device).requires_grad_(requires_grad=False)
        self._module.flatten_parameters()
        self._head: torch.nn.Linear | None = None
        if spec.out_features is not None:
            self._head = torch.nn.Linear(spec.output_size, spec.out_features).eval()
            self._head.load_state_dict(head)
            self._head.to(device).requires_grad_(requires_grad=False)
        self.nbytes = sum(array.nbytes for array in weights.values())

    def run(self, batches: Sequence[Rows]) -> None:
        """Run every row, a batch at a time. Packing costs more than it saves between batches of unlike lengths."""
        with torch.inference_mode():
            for rows in batches:
                for piece in self._slices(rows):
                    self._run(piece)

    def _slices(self, rows: Rows) -> Iterator[Rows]:
        """The rows, cut in time where they are very long: torch makes a tensor of every step on the way."""
        longest = int(rows.lengths.max(initial=0))
        if self.spec.bidirectional and longest:
            yield rows
            return
        for begin in range(0, longest, SLICE_STEPS):
            lengths = np.clip(rows.lengths - begin, 0, SLICE_STEPS)
            yield replace(rows, starts=rows.starts + begin, lengths=lengths)

    def _run(self, rows: Rows) -> None:
        steps = int(rows.lengths[0])
        uniform = bool((rows.lengths == steps).all())
        adjacent = uniform and bool((np.diff(rows.starts) == steps).all())
        if adjacent:
            begin = int(rows.starts[0])
            span = slice(begin, begin + steps * rows.lengths.size)
            inputs = _tensor(rows.inputs[span]).view(rows.lengths.size, steps, -1).to(self._device)
            outputs, final = self._module(inputs, self._initial(rows, slice(None)))
            self._write_flat(rows, span, outputs)
            self._write_states(rows, slice(None), final)
        else:
            self._run_packed(rows)

    def _run_packed(self, rows: Rows) -> None:
        live = np.flatnonzero(rows.lengths)  # a packed sequence has no row of length 0
        lengths = torch.from_numpy(rows.lengths[live])
        places = [
            slice(start, start + length) for start, length in zip(rows.starts[live], lengths.tolist(), strict=True)
        ]
        padded = torch.nn.utils.rnn.pad_sequence([_tensor(rows.inputs[place]) for place in places], True)
        packed = pack_padded_sequence(padded.to(self._device), lengths, batch_first=True, enforce_sorted=False)
        outputs, final = self._module(packed, self._initial(rows, live))
        self._write_states(rows, live, final)
        if rows.outputs is not None or rows.predictions is not None:
            self._write_padded(rows, places, outputs)

    def _initial(self, rows: Rows, which: Any) -> Any:
        which = which if rows.slots is None else rows.slots[which]
        h = torch.from_numpy(np.ascontiguousarray(rows.h[:, which])).to(self._device)
        if rows.c is None:
            return h
        return h, torch.from_numpy(np.ascontiguousarray(rows.c[:, which])).to(self._device)

    def _write_states(self, rows: Rows, which: Any, final: Any) -> None:
        which = which if rows.slots is None else rows.slots[which]
        if rows.c is not None:
            final, cells = final
            rows.c[:, which] = cells.cpu().numpy()
        rows.h[:, which] = final.cpu().numpy()

    def _write_flat(self, rows: Rows, span: slice, outputs: torch.Tensor) -> None:
        """Results of rows that lie one after the other: outputs (B, T, D·P) cover one span of the flat buffers."""
        if rows.outputs is not None:
            rows.outputs[span] = outputs.reshape(-1, self.spec.output_size).cpu().numpy()
        if rows.predictions is not None:
            rows.predictions[span] = self._predict(outputs).reshape(span.stop - span.start, -1).cpu().numpy()

    def _write_padded(self, rows: Rows, places: list[slice], packed: PackedSequence) -> None:
        outputs, _ = pad_packed_sequence(packed, batch_first=True)
        for target, values in (
            (rows.outputs, outputs),
            (rows.predictions, None if rows.predictions is None else self._predict(outputs)),
        ):
            if target is None or values is None:
                continue
            host = values.cpu().numpy()
            for row, place in enumerate(places):
                target[place] = host[row, : place.stop - place.start]

    def _predict(self, outputs: torch.Tensor) -> torch.Tensor:
        if self._head is None:
            raise ValueError("predictions were asked of a model without a head")
        predictions: torch.Tensor = self._head(outputs)
        return predictions


def _tensor(array: Floats) -> torch.Tensor:
    """A tensor over the same memory; over a copy of what may not be written, which torch does not take."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _rounded(tensor: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    # Biases stay as they are: they are few, and the native engine keeps them too.
    return tensor.to(torch.bfloat16).to(torch.float32) if spec.weights_dtype == "bf16" and tensor.ndim == 2 else tensor
