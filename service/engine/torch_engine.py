"""The torch engine: `torch.nn` modules, the reference on every machine and the engine on a GPU.

All rows of a call run together, packed: longest first, and step by step, all rows' first steps, then their second …

    batches ─► one buffer: inputs, h, c ─► device ─ module, head ─► one buffer: outputs, predictions, h, c ─► batches

Nothing is padded: a padded row would run on past its end, and its final state would be lost.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import inf

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from service.engine.interface import Engine, Floats, Integers, Rows
from service.spec import GATES, ModelSpec
from service.torch_layers import build_module, run_layers

CALL_BYTES = 64 * 2**20  # what the steps of one call may take


def resolve_device(choice: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises ValueError for a device that is not there."""
    if choice == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(choice)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {choice} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


class TorchEngine(Engine):
    """One model as a `torch.nn` module on one device; float32 arithmetic (`EngineFactory` turns TF32 off).

    weights are the arrays of the stack's state_dict, and of front and head; with `weights_dtype` bf16 the matrices are
    rounded to bfloat16 and computed with in float32.
    """

    name = "torch"
    step_seconds = 5e-6  # three or four operators a step
    flops_per_second = 2e10

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats], *, device: torch.device) -> None:
        self.spec = spec
        self._device = device
        tensors = {name: _rounded(torch.from_numpy(array.copy()), spec) for name, array in weights.items()}
        self._module = build_module(spec).eval()
        self._module.load_state_dict({name: tensors.pop(name) for name in spec.stack_shapes()})
        self._module.to(device).requires_grad_(requires_grad=False)
        self._module.flatten_parameters()  # cuDNN wants the weights in one piece, else each call copies them
        of_chains = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._front, self._head = (partial(run_layers, layers, of_chains) for layers in (spec.front, spec.head))
        self.nbytes = sum(array.nbytes for array in weights.values())
        if device.type == "cuda":
            self.call_seconds = inf  # to wait for a GPU is never quick enough for the event loop

    def run(self, batches: Sequence[Rows]) -> None:
        most_steps = max(1, CALL_BYTES // bytes_per_step(self.spec))
        with torch.inference_mode():
            for group in _groups(batches, most_steps):
                if any(rows.steps for rows in group):
                    self._run_packed(Packing(group))

    def predict(self, pooled: Floats) -> Floats:
        with torch.inference_mode():
            predictions: Floats = self._head(torch.from_numpy(pooled).to(self._device)).cpu().numpy()
            return predictions

    def _run_packed(self, packing: "Packing") -> None:
        batches, spec = packing.batches, self.spec
        states = [np.concatenate([rows.h for rows in batches], axis=1)]
        if spec.has_cell_state:
            states.append(np.concatenate([rows.c for rows in batches if rows.c is not None], axis=1))
        shapes: list[tuple[int, ...]] = [(len(packing.places), spec.in_features)]
        shapes += [(spec.states, len(packing.lengths), state.shape[2]) for state in states]
        sizes = [int(np.prod(shape)) for shape in shapes]
        sent = np.empty(sum(sizes), np.float32)
        inputs, *initial = _split(sent, shapes)
        inputs[packing.places] = np.concatenate([rows.inputs[steps] for rows, steps in packing.steps()])
        for packed, state in zip(initial, states, strict=True):
            packed[...] = state[:, packing.order]
        # Pieces of one contiguous tensor, in order, and so contiguous themselves, as cuDNN demands.
        pieces = torch.from_numpy(sent).to(self._device).split(sizes)
        x, *h = (piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
        outputs, final = self._forward(self._front(x), h, packing)
        results = {"outputs": outputs} if any(rows.outputs is not None for rows in batches) else {}
        if any(rows.predictions is not None for rows in batches):
            results["predictions"] = self._head(outputs)
        tensors = [*results.values(), *final]
        received = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
        arrays = _split(received, [tuple(tensor.shape) for tensor in tensors])
        for name, values in zip(results, arrays, strict=False):
            packing.deliver(values, name)
        for name, state, values in zip(("h", "c"), states, arrays[len(results) :], strict=False):
            state[:, packing.order] = values
            packing.deliver_states(state, name)

    def _forward(
        self, inputs: torch.Tensor, states: Sequence[torch.Tensor], packing: "Packing"
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Outputs (N, D·P) of inputs (N, I), both packed, and the final states."""
        initial = tuple(states) if self.spec.has_cell_state else states[0]
        count, longest = len(packing.lengths), len(packing.active)
        if packing.active[-1] == count:  # rows of one length are a plain batch
            outputs, final = self._module(inputs.view(longest, count, -1), initial)
            outputs = outputs.reshape(-1, self.spec.output_size)
        else:
            sequence = PackedSequence(inputs, torch.from_numpy(packing.active))
            (outputs, *_), final = self._module(sequence, initial)
        return outputs, final if self.spec.has_cell_state else (final,)


class Packing:
    """The rows of several batches as one packed sequence; rows of no steps are left out.

    - order, lengths (B,): numbers and lengths of its rows, longest first; numbers count through all batches
    - active (T,): how many rows have a step at each time
    - places (N,): where each step is in the sequence; steps count through all rows of all batches
    """

    def __init__(self, batches: Sequence[Rows]) -> None:
        self.batches = batches
        starts = np.concatenate([rows.starts for rows in batches])
        lengths = np.concatenate([rows.lengths for rows in batches])
        self.order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        self.lengths = lengths[self.order]
        self.active = np.ascontiguousarray(np.cumsum(np.bincount(self.lengths)[::-1])[-2::-1])
        ranks = np.zeros_like(lengths)
        ranks[self.order] = np.arange(len(self.order))
        ends = np.cumsum(lengths)
        time = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
        begin = np.cumsum(self.active) - self.active  # of each time's steps
        self.places = begin[time] + np.repeat(ranks, lengths)
        self._steps = np.repeat(starts, lengths) + time
        counts = np.cumsum([0, *(len(rows.lengths) for rows in batches)])
        self._rows = [slice(first, last) for first, last in pairwise(counts.tolist())]
        self._own = [slice(first, last) for first, last in pairwise(np.concatenate([[0], ends])[counts].tolist())]

    def steps(self) -> Iterator[tuple[Rows, Integers]]:
        """Each batch, and the places of its rows' steps in its arrays."""
        return ((rows, self._steps[own]) for rows, own in zip(self.batches, self._own, strict=True))

    def deliver(self, values: Floats, name: str) -> None:
        """Write the sequence's results (N, ·) to the batches that ask for them."""
        values = values[self.places]
        for (rows, steps), own in zip(self.steps(), self._own, strict=True):
            if (target := getattr(rows, name)) is not None:
                target[steps] = values[own]

    def deliver_states(self, states: Floats, name: str) -> None:
        for rows, own in zip(self.batches, self._rows, strict=True):
            getattr(rows, name)[...] = states[:, own]


def bytes_per_step(spec: ModelSpec) -> int:
    """What one row's time step takes in a call, roughly and rather too much, with all that torch makes on the way."""
    gates = spec.directions * GATES[spec.kind] * spec.hidden_size
    chains = sum(layer.out_features for layer in (*spec.front, *spec.head))
    widths = 2 * max(spec.in_features, spec.input_size, spec.output_size) + gates + 2 * spec.output_size + chains
    return 4 * widths


def _groups(batches: Sequence[Rows], most_steps: int) -> Iterator[list[Rows]]:
    """All rows in groups of at most most_steps steps, or of one row."""
    group: list[Rows] = []
    steps = 0
    for rows in batches:
        first = 0
        for row, length in enumerate(rows.lengths.tolist()):
            if steps and steps + length > most_steps:
                yield [*group, rows.part(first, row)]
                group, steps, first = [], 0, row
            steps += length
        group.append(rows.part(first, len(rows.lengths)))
    yield group


def _split(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    ends = np.cumsum([np.prod(shape) for shape in shapes], dtype=np.int64)
    return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def _rounded(tensor: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    # Biases stay as they are: they are few, and the native engine keeps them too.
    return tensor.to(torch.bfloat16).to(torch.float32) if spec.weights_dtype == "bf16" and tensor.ndim == 2 else tensor
