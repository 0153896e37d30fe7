"""Checkpoint files to tensors by name: safetensors, and files of torch.save.

The files are untrusted: nothing in them is executed, and every error of a parser becomes a CheckpointRefused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from service.models.importing.pickles import Record
from service.models.importing.refusal import CheckpointRefused, refusing
from service.models.importing.torch_files import TorchFile, read_torch_file

MAX_ENTRIES = 100_000
MAX_DEPTH = 64
_PARTS = ("_parameters", "_buffers", "_modules")  # of a module, where its arrays and its modules are
_SCRIPTED = "__torch__."  # what the classes of TorchScript's modules begin with


@dataclass(frozen=True, slots=True)
class Module:
    """What a file with a whole module says of it: its class and the numbers and texts that it was made with."""

    type: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a file by name, names of nested dicts joined by dots, and the names of all other entries.

    modules are those of a file that holds whole modules, in its order.
    """

    by_name: dict[str, torch.Tensor]
    others: list[str]
    modules: dict[str, Module] = field(default_factory=dict)


def read_tensors(path: Path) -> Tensors:
    """Raises CheckpointRefused."""
    with refusing("the file is not a safetensors file"), path.open("rb") as opened:
        if opened.read(9)[8:] == b"{":  # the length of a header in JSON stands before it
            with safe_open(path, framework="pt") as file:
                return Tensors({name: file.get_tensor(name) for name in file.keys()}, [])  # noqa: SIM118  # no mapping
    with refusing("the file is not a PyTorch checkpoint, nor safetensors, or is damaged"):
        return _tensors(read_torch_file(path))


def check_tensor(name: str, tensor: torch.Tensor, file_bytes: int) -> None:
    """Raises CheckpointRefused for a tensor that cannot be weights, or that claims to be larger than the file."""
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if tensor.dtype not in allowed or tensor.layout != torch.strided or tensor.device.type != "cpu":
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointRefused(f"{name} is {dtype}; expected dense float32, float16, bfloat16 or float64")
    # With strides of 0 a file can claim any shape over a few stored bytes.
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise CheckpointRefused(f"{name} claims shape {tuple(tensor.shape)}, more than the file holds")


def _tensors(file: TorchFile) -> Tensors:
    """What is in a file: tensors, modules, and one name for each part that has neither."""
    found = Tensors({}, [], {})
    seen: set[int] = set()
    visits = count(1)

    def visit(name: str, value: Any, depth: int) -> None:
        if next(visits) > MAX_ENTRIES:
            raise CheckpointRefused(f"the file has more than {MAX_ENTRIES} entries")
        tensor = file.tensor(value)
        if tensor is not None:
            found.by_name[name] = tensor
            return
        before, listed = (len(found.by_name), len(found.modules)), len(found.others)
        if depth and id(value) not in seen:
            seen.add(id(value))
            if module := _module(value):
                found.modules[name] = module
            for key, child in _children(value):
                visit(f"{name}.{key}" if name else str(key), child, depth - 1)
        if (len(found.by_name), len(found.modules)) == before and name:
            found.others[listed:] = [name]

    visit("", file.content, MAX_DEPTH)
    return found


def _module(value: Any) -> Module | None:
    if not isinstance(value, Record) or not isinstance(value.state, dict):
        return None
    if not value.name.startswith(_SCRIPTED) and "_modules" not in value.state:
        return None
    return Module(value.name, {key: said for key, said in value.state.items() if isinstance(said, int | float | str)})


def _children(value: Any) -> Iterable[tuple[str | int, Any]]:
    """What may hold weights; not an optimizer's state, which is keyed by numbers."""
    if isinstance(value, Record):
        state = value.state if isinstance(value.state, dict) else {}
        if "_modules" in state:
            state = {
                key: child for part in _PARTS if isinstance(state.get(part), dict) for key, child in state[part].items()
            }
        elif value.name.startswith(_SCRIPTED):
            state = {key: child for key, child in state.items() if isinstance(child, Record) and str(key)[:1] != "_"}
        value = state | value.entries
    if isinstance(value, dict):
        return [(key, child) for key, child in value.items() if isinstance(key, str)]
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (dict, list, Record)) for entry in value):
        return list(enumerate(value))
    return ()
