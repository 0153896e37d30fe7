"""Checkpoint files to tensors by name: `.pt` and its kin through torch's restricted unpickler, and `.safetensors`.

The files are untrusted: nothing in them is executed, and whatever a parser makes of them ends as one sentence.
"""

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from service.models.importing.found import CheckpointRefused
from service.models.printable import printable

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAX_DEPTH = 4
MAX_ENTRIES = 100_000

_EXPORT = (
    "from Python, export the weights alone: torch.save(model.state_dict(), 'weights.pt'), "
    "or safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a file by name, names of nested dicts joined by dots, and the names of what is no tensor."""

    by_name: Mapping[str, torch.Tensor]
    others: list[str]


def read_tensors(path: Path) -> Tensors:
    """Read `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors`. Raises CheckpointRefused with the reason."""
    if path.suffix == ".safetensors":
        return Tensors(_read_safetensors(path), [])
    loaded = _load(path)
    if isinstance(loaded, torch.nn.Module) or not isinstance(loaded, Mapping):
        raise CheckpointRefused(f"the file holds a {type(loaded).__name__}, not a state_dict; {_EXPORT}")
    found, others = {}, []
    for count, (name, value) in enumerate(_flattened(loaded, "", MAX_DEPTH)):
        if count >= MAX_ENTRIES:
            raise CheckpointRefused(f"the file has more than {MAX_ENTRIES} entries")
        if isinstance(value, torch.Tensor):
            found[name] = value.detach()
        else:
            others.append(name)
    return Tensors(found, others)


def check_tensor(name: str, tensor: torch.Tensor, file_bytes: int) -> None:
    """A tensor that is about to be read is what it seems. Raises CheckpointRefused.

    A file can claim any shape over a few stored bytes, by strides of 0: none may be larger than the file.
    """
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if tensor.dtype not in allowed or tensor.layout != torch.strided or tensor.device.type != "cpu":
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointRefused(f"{printable(name)} is {kind}; expected dense float32, float16, bfloat16 or float64")
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise CheckpointRefused(f"{printable(name)} claims shape {tuple(tensor.shape)}, more than the file holds")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, has keys() alone
    except SafetensorError as error:
        raise CheckpointRefused(f"the file is not a safetensors file: {printable(error)}") from None
    except OSError as error:
        raise CheckpointRefused(f"the file cannot be read: {error.strerror or 'I/O error'}") from None


def _load(path: Path) -> Any:
    if not path.stat().st_size:
        raise CheckpointRefused("the file is empty")
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only the zip format can be mapped; what is mapped is read when it is used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointRefused(_unpickling_reason(str(error))) from None
    except OSError as error:
        raise CheckpointRefused(f"the file cannot be read: {error.strerror or 'I/O error'}") from None
    except MemoryError:
        raise CheckpointRefused("the file asks for more memory than there is") from None
    except Exception as error:  # whatever a parser makes of a file that is none
        reason = printable(str(error).partition(". ")[0] or type(error).__name__)
        raise CheckpointRefused(f"the file is not a PyTorch checkpoint, or is cut short: {reason}") from None


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointRefused(f"the file is a damaged zip archive: {printable(error)}") from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointRefused(
            "the file is a TorchScript archive, which holds code; load it in Python with torch.jit.load "
            "and save its state_dict: torch.save(model.state_dict(), 'weights.pt')"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointRefused("the file is a compressed zip archive; torch.save does not compress its checkpoints")


def _unpickling_reason(message: str) -> str:
    # torch's own message advises to load the file without protection; that advice is not passed on.
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class "):
        _, found, rest = message.partition(marker)
        if found:
            name = printable(rest.split(" ", 1)[0])
            return f"the file holds the Python object {name}, which only running its code could load; {_EXPORT}"
    return f"the file is not a PyTorch checkpoint, is damaged, or holds more than weights; {_EXPORT}"


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
