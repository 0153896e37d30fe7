"""The torch engine: `torch.nn` modules, the reference on every machine and the engine on a GPU.

    batches ─merging─► rows ─batching─► calls ─► inputs, states ─module, head─► outputs asked for, states ─► batches

All rows of all batches run in few calls of the module. Rows that lie one after the other in memory are not copied on
the CPU. docs/gpu.md says what is different on a GPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence

from service.engine.batching import Call, packing, plan
from service.engine.interface import Engine, Floats, Integers, Rows
from service.engine.merging import Merged, Span, deliver, gathered, steps_that_ask
from service.engine.torch_step import MAX_BUCKET_ROWS, Steps
from service.spec import GATES, Kind, ModelSpec

CALL_BYTES = 64 * 2**20
"""What the steps of one call may take; on a GPU `GPU_MEMORY_SHARE` of what is free, if that is more."""

GPU_MEMORY_SHARE = 0.25
"""Of the free memory: cuDNN's workspace is not counted in a call, and other processes may want some."""

PERSISTENT_HIDDEN_SIZE: dict[Kind, int] = {"rnn": 384, "gru": 192, "lstm": 192}
"""The largest H for which torch picks a persistent algorithm of cuDNN in float32, for input that is not packed.

Source: `use_rnn_persist_small_h` in ATen/native/cudnn/RNN.cpp. Larger models run the standard algorithm either way, and
packed input then wastes nothing."""

GPU_TURN_SECONDS = 4e-3
"""A turn's launches, copies and waiting are spread over more steps than on a CPU. Not measured."""

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
    `weights_dtype` bf16 the matrices are rounded to bfloat16 and computed with in float32. like_gpu makes and fills
    batches and steps on the CPU as on a GPU.
    """

    name = "torch"
    step_seconds = 5e-6  # three or four operators a step
    flops_per_second = 2e10

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Floats], *, device: torch.device, like_gpu: bool = False
    ) -> None:
        self.spec = spec
        self._device = device
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
        self._step_bytes = bytes_per_step(spec)
        self._side_by_side = False
        self._steps: Steps | None = None
        if device.type == "cuda" or like_gpu:
            self._steps = Steps(spec, self._module, self._head, device)
            self._side_by_side = spec.hidden_size <= PERSISTENT_HIDDEN_SIZE[spec.kind] and not spec.proj_size
        if device.type == "cuda":
            self.call_seconds = inf  # waiting for a GPU is never quick enough for the event loop
            self.flops_per_second = 1e13  # a guess, until turns have been measured
            self.turn_seconds, self.turn_rows = GPU_TURN_SECONDS, MAX_BUCKET_ROWS
            self.full_rows = MAX_BUCKET_ROWS

    def run(self, batches: Sequence[Rows]) -> None:
        """Run every row of every batch in few calls, rows of like lengths side by side."""
        with torch.inference_mode():
            merged = Merged.of(batches, self.spec)
            most_steps = self._most_steps(int(merged.lengths.sum()))
            calls = plan(
                merged.lengths,
                most_steps=most_steps,
                sliceable=not self.spec.bidirectional,
                side_by_side=self._side_by_side,
            )
            for call in calls:
                if self._steps is not None and call.steps == len(call.rows) <= MAX_BUCKET_ROWS:
                    self._run_step(self._steps, merged, call)
                else:
                    self._run(merged, call)
            merged.store()

    def _most_steps(self, wanted: int) -> int:
        """How many steps a call may have, of as many as are wanted."""
        step_bytes = self._step_bytes
        most_bytes = CALL_BYTES
        if self._device.type == "cuda" and wanted * step_bytes > most_bytes:
            free, _ = torch.cuda.mem_get_info(self._device)
            # What torch has had from the driver and holds for later is free as well.
            free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            most_bytes = max(most_bytes, int(free * GPU_MEMORY_SHARE))
        return max(1, most_bytes // step_bytes)

    def _run_step(self, steps: Steps, merged: Merged, call: Call) -> None:
        spans = merged.spans(call)
        predict = any(span.batch.predictions is not None for span in spans)
        final = steps.run(
            gathered(spans, self.spec.input_size),
            merged.h[:, call.rows],
            None if merged.c is None else merged.c[:, call.rows],
            predict=predict,
        )
        merged.h[:, call.rows] = final.h
        if merged.c is not None:
            merged.c[:, call.rows] = final.c
        # The outputs of a single step are the last layer's new states.
        last = final.h[-self.spec.directions :].swapaxes(0, 1).reshape(-1, self.spec.output_size)
        for name, values in (("outputs", last), ("predictions", final.predictions)):
            which = steps_that_ask(spans, name)
            if values is not None:
                deliver(spans, name, values if which is None else values[which])

    def _run(self, merged: Merged, call: Call) -> None:
        spans = merged.spans(call)
        inputs = self._upload(gathered(spans, self.spec.input_size))
        initial: Any = self._upload(merged.h[:, call.rows])
        if merged.c is not None:
            initial = initial, self._upload(merged.c[:, call.rows])
        order: Integers | None = None  # of the outputs' steps, if they come packed
        if call.uniform:
            outputs, final = self._module(inputs.view(len(call.rows), -1, self.spec.input_size), initial)
            outputs = outputs.reshape(-1, self.spec.output_size)
        else:
            packed, active = packing(call.lengths)
            sequence = PackedSequence(inputs[self._upload(packed)], torch.from_numpy(active))
            (outputs, *_), final = self._module(sequence, initial)
            order = np.argsort(packed)
        results = self._results(spans, outputs, order)
        if merged.c is not None:
            final, cells = final
            merged.c[:, call.rows] = cells.cpu().numpy()
        merged.h[:, call.rows] = final.cpu().numpy()
        for name, values in results:
            deliver(spans, name, values.cpu().numpy())

    def _results(
        self, spans: Sequence[Span], outputs: torch.Tensor, order: Integers | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Outputs and predictions (≤ N, …) of the steps that ask for them; order is where each step stands."""
        for name in ("outputs", "predictions"):
            asking = steps_that_ask(spans, name)
            which = order if asking is None else asking if order is None else order[asking]
            if which is not None and not which.size:
                continue
            values = outputs if which is None else outputs[self._upload(which)]
            yield name, values if name == "outputs" else self._predict(values)

    def _upload(self, array: NDArray[Any]) -> torch.Tensor:
        """On the device; over the same memory on the CPU, or over a copy of what may not be written."""
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if self._device.type == "cuda":
            # From pinned memory the copy runs beside what the device does; torch keeps that memory for the next time.
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    def _predict(self, outputs: torch.Tensor) -> torch.Tensor:
        if self._head is None:
            raise ValueError("predictions were asked of a model without a head")
        predictions: torch.Tensor = self._head(outputs)
        return predictions


def bytes_per_step(spec: ModelSpec) -> int:
    """What one row's time step takes in a call, roughly and rather too much, with all that torch makes on the way."""
    gates = spec.directions * GATES[spec.kind] * spec.hidden_size
    widths = 2 * max(spec.input_size, spec.output_size) + gates + 2 * spec.output_size + (spec.out_features or 0)
    return widths * np.dtype(np.float32).itemsize


def _rounded(tensor: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    # Biases stay as they are: they are few, and the native engine keeps them too.
    return tensor.to(torch.bfloat16).to(torch.float32) if spec.weights_dtype == "bf16" and tensor.ndim == 2 else tensor
