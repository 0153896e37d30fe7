"""Checkpoint files to tensors by name: `.pt` and its kin through torch's restricted unpickler, and `.safetensors`.

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

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAX_DEPTH = 4
MAX_ENTRIES = 100_000
_EXPORT = (
    "from Python, export the weights alone: torch.save(model.state_dict(), 'weights.pt'), "
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
    entries = list(islice(_flattened(loaded, "", MAX_DEPTH), MAX_ENTRIES + 1))
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
    if path.suffix == ".safetensors":
        with refusing("the file is not a safetensors file"), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    with refusing("the file is not a PyTorch checkpoint, or is cut short"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        try:
            # Only the zip format can be mapped; a mapped tensor is read when it is used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            # torch's own message advises to load the file without protection; that advice is not passed on.
            found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S{1,120})", str(error))
            raise CheckpointRefused(
                f"the file holds the Python object {found[1]}, which only running its code could load; {_EXPORT}"
                if found
                else f"the file is not a PyTorch checkpoint, is damaged, or holds more than weights; {_EXPORT}"
            ) from None


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


def _flattened(nested: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if depth > 1 and isinstance(value, Mapping) and _holds_arrays(value):
            yield from _flattened(value, f"{name}.", depth - 1)
        else:
            yield name, value


def _holds_arrays(nested: Mapping[Any, Any]) -> bool:
    """Whether a dict may be a state_dict or hold one; an optimizer's state, keyed by numbers, does not."""
    return any(isinstance(key, str) and isinstance(value, (torch.Tensor, Mapping)) for key, value in nested.items())
