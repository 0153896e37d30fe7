"""The cells of the benchmark: seeded weights, the bodies that every server is sent, and the answers they must give.

Weights are PyTorch's default initialisation, inputs and states standard normal float32, answers `torch.nn.RNN` in
float64 on those same float32 values.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Arrays = dict[str, NDArray[Any]]

SEED = 20_240_117


@dataclass(frozen=True, slots=True)
class Cell:
    """One size of request: B sequences of T steps of I values, hidden states of H, and how many clients send it."""

    name: str
    path: str
    batch: int
    steps: int
    input_size: int
    hidden_size: int
    connections: int

    @property
    def single_step(self) -> bool:
        """Whether the request is one step of a cell rather than a sequence."""
        return self.path == "/cell/step"


CELLS = (
    Cell("step", "/cell/step", 1, 1, 16, 32, connections=16),
    Cell("step-1", "/cell/step", 1, 1, 16, 32, connections=1),
    Cell("small", "/rnn/forward", 1, 32, 16, 32, connections=16),
    Cell("batch", "/rnn/forward", 1, 64, 128, 256, connections=64),
    Cell("medium", "/rnn/forward", 8, 64, 32, 64, connections=8),
    Cell("large", "/rnn/forward", 8, 256, 128, 256, connections=4),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A cell with its values: `fields` are sent (float32), `answers` must come back (float64).

    For a sequence inputs (B, T, I) and h0 (1, B, H) give outputs (B, T, H) and h_n (1, B, H); for a step inputs (B, I)
    and h (B, H) give outputs and h, both (B, H).
    """

    cell: Cell
    fields: Arrays
    answers: Arrays


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP POST: where to, what, and how to read the arrays in its reply."""

    path: str
    content_type: str
    body: bytes
    decode: Callable[[bytes], Mapping[str, Any]]


def network(cell: Cell) -> torch.nn.RNN:
    """The cell's model, the same weights every time."""
    torch.manual_seed(SEED)
    return torch.nn.RNN(cell.input_size, cell.hidden_size, batch_first=True)


def write_models(directory: Path, cells: tuple[Cell, ...] = CELLS) -> None:
    """A model repository with one model for each cell, called as the cell is."""
    for cell in cells:
        folder = directory / cell.name
        (folder / "1").mkdir(parents=True)
        config = {"kind": "rnn", "input_size": cell.input_size, "hidden_size": cell.hidden_size}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(network(cell).state_dict(), folder / "1" / "model.safetensors")


def write_replies(directory: Path, cells: tuple[Cell, ...] = CELLS) -> None:
    """The right answer to every cell, `<cell>.json` and `<cell>.safetensors`, as large as the service's own reply."""
    directory.mkdir()
    for cell in cells:
        answers = {name: np.ascontiguousarray(array, np.float32) for name, array in case(cell).answers.items()}
        reply = {**answers, "model": cell.name, "version": "1"}
        (directory / f"{cell.name}.json").write_bytes(orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY))
        file = safetensors.numpy.save(answers, metadata={"model": cell.name, "version": "1"})
        (directory / f"{cell.name}.safetensors").write_bytes(file)


def case(cell: Cell) -> Case:
    """The values of a cell, the same every time, and the float64 answers."""
    random = np.random.default_rng(SEED)
    inputs = random.standard_normal((cell.batch, cell.steps, cell.input_size), dtype=np.float32)
    h0 = random.standard_normal((1, cell.batch, cell.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        out, last = network(cell).double()(torch.from_numpy(inputs).double(), torch.from_numpy(h0).double())
    outputs, h_n = out.numpy(), last.numpy()
    if cell.single_step:
        return Case(cell, {"inputs": inputs[:, 0], "h": h0[0]}, {"outputs": outputs[:, 0], "h": h_n[0]})
    return Case(cell, {"inputs": inputs, "h0": h0}, {"outputs": outputs, "h_n": h_n})


def json_call(case: Case) -> Call:
    """As the service and the naive endpoint take it; each number is the shortest that is its float32 (orjson)."""
    body = orjson.dumps({"model": case.cell.name, **case.fields}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Call(case.cell.path, "application/json", body, orjson.loads)


def json_double_call(case: Case) -> Call:
    """As `json_call`, each number in the 17 digits of a float64: what `json.dumps(array.tolist())` sends."""
    fields = {name: array.tolist() for name, array in case.fields.items()}
    body = json.dumps({"model": case.cell.name, **fields}, separators=(",", ":")).encode()
    return Call(case.cell.path, "application/json", body, orjson.loads)


def safetensors_call(case: Case) -> Call:
    """Arrays by name, the model's name in the metadata."""
    body = safetensors.numpy.save(case.fields, metadata={"model": case.cell.name})
    return Call(case.cell.path, "application/vnd.safetensors", body, safetensors.numpy.load)


def at(path: str, call: Callable[[Case], Call]) -> Callable[[Case], Call]:
    """The same body, sent to another path; it may use {cell}."""
    return lambda case: replace(call(case), path=path.format(cell=case.cell.name))


def listed(path: str, call: Callable[[Case], Call]) -> Callable[[Case], Call]:
    """The same JSON body as the only one of a list of `requests`, and the only reply of a list."""

    def inside(case: Case) -> Call:
        alone = call(case)
        body = b'{"requests":[' + alone.body + b"]}"
        return Call(path, alone.content_type, body, lambda reply: alone.decode(reply[1:-1]))

    return inside


def largest_error(call: Call, reply: bytes, case: Case) -> float:
    """Largest absolute difference between a reply and the answers; raises ValueError if a shape differs."""
    arrays = call.decode(reply)
    worst = 0.0
    for name, answer in case.answers.items():
        array = np.asarray(arrays[name], dtype=np.float64)
        if array.shape != answer.shape:
            raise ValueError(f"{case.cell.name}: {name} has shape {array.shape}; expected {answer.shape}")
        worst = max(worst, float(np.abs(array - answer).max()))
    return worst
