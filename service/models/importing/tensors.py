"""Checkpoint files to tensors by name: safetensors, and all others through torch's restricted unpickler.

The files are untrusted: nothing in them is executed, and every error of a parser becomes a CheckpointRefused.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from service.models.importing.refusal import CheckpointRefused, refusing

MAX_ENTRIES = 100_000
_EXPORT = (
    "in the program that made it, save the weights alone: torch.save(model.state_dict(), 'weights.pt'), "
    "or safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a file by name, names of nested dicts joined by dots, and the names of all other entries."""

    by_name: Mapping[str, torch.Tensor]
    others: list[str]


def read_tensors(path: Path) -> Tensors:
    """Raises CheckpointRefused."""
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointRefused(f"the file holds a {type(loaded).__name__}, not a state_dict; {_EXPORT}")
    with refusing("the file's dicts cannot be read"):
        entries = list(islice(_flattened(loaded, "", set()), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise CheckpointRefused(f"the file has more than {MAX_ENTRIES} entries")
    by_name = {name: value.detach() for name, value in entries if isinstance(value, torch.Tensor)}
    return Tensors(by_name, [name for name, value in entries if not isinstance(value, torch.Tensor)])


def check_tensor(name: str, tensor: torch.Tensor, file_bytes: int) -> None:
    """Raises CheckpointRefused for a tensor that cannot be weights, or that claims to be larger than the file."""
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if tensor.dtype not in allowed or tensor.layout != torch.strided or tensor.device.type != "cpu":
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointRefused(f"{name} is {dtype}; expected dense float32, float16, bfloat16 or float64")
    # With strides of 0 a file can claim any shape over a few stored bytes.
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise CheckpointRefused(f"{name} claims shape {tuple(tensor.shape)}, more than the file holds")


def _load(path: Path) -> Any:
    with refusing("the file is not a safetensors file"), path.open("rb") as opened:
        if opened.read(9)[8:] == b"{":  # the length of a header in JSON stands before it
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    what = "the file is not a PyTorch checkpoint, nor safetensors, or is damaged"
    with refusing(what), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        try:
            # Only the zip format can be mapped; a mapped tensor is read when it is used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            # torch's own message advises to load the file without protection; that advice is not passed on.
            said = f"{error}{[str(warning.message) for warning in warned]}"
            if "torch.ScriptObject" in said:
                what = "the file's weights are quantized, and are needed as they were before"
            elif found := re.search(r"Unsupported (?:global: GLOBAL|class) (\S{1,120})", said):
                what = f"the file holds the Python object {found[1]}, and only tensors, numbers and text are read"
            elif found := re.search(r"Detected pickle protocol (\d+)", said):
                what = f"the file has pickle protocol {found[1]}, and only PyTorch's own, 2, is read"
            raise CheckpointRefused(f"{what}; {_EXPORT}") from None


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointRefused(
            "the file is a TorchScript archive, which holds code; load it in Python with torch.jit.load "
            "and save its state_dict: torch.save(model.state_dict(), 'weights.pt')"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointRefused("the file is a compressed zip archive; torch.save does not compress its checkpoints")


def _flattened(nested: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The entries of a dict or list, those of dicts and lists in it that may hold weights in their place, once each."""
    for key, value in nested.items() if isinstance(nested, Mapping) else enumerate(nested):
        if _holds_arrays(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _flattened(value, f"{prefix}{key}.", seen)
        else:
            yield f"{prefix}{key}", value


def _holds_arrays(value: Any) -> bool:
    """Whether it may be a state_dict or hold one; an optimizer's state, keyed by numbers, does not."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(entry, (torch.Tensor, Mapping)) for entry in value)
    entries = [entry for key, entry in value.items() if isinstance(key, str)] if isinstance(value, Mapping) else []
    return _holds_arrays(entries) or any(isinstance(entry, list) and _holds_arrays(entry) for entry in entries)
