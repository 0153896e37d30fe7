"""`model.safetensors` of a model version: checked by its header alone, and read into float32 arrays."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from service.errors import ModelFailed
from service.models.config import ModelConfig
from service.spec import ModelSpec

FILE = "model.safetensors"
_CONVERTED = ("F16", "BF16", "F64")
_IGNORED = ".num_batches_tracked"  # of a batch_norm, which counts with it in training


@dataclass(slots=True)
class Weights:
    """A model's float32 arrays by state_dict name, what was converted, and a digest of spec and arrays."""

    arrays: Mapping[str, NDArray[np.float32]]
    fingerprint: bytes
    notes: list[str]


def verify_header(path: Path, config: ModelConfig) -> ModelSpec:
    """Check names, shapes and dtypes without reading the data. Raises ModelFailed with the reason."""
    with _opened(path) as file:
        spec = config.spec({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        _verify(file, spec)
        return spec


def read_weights(path: Path, spec: ModelSpec) -> Weights:
    """Read and check names, shapes, dtypes, and that all values are finite. Raises ModelFailed with the reason."""
    with _opened(path) as file:
        _verify(file, spec)
        arrays, notes = {}, []
        digest = blake2b(repr(spec).encode(), digest_size=16)
        for name in _expected(file, spec):
            dtype = file.get_slice(name).get_dtype()
            # A copy: the file is mapped, and may be replaced while the model serves.
            tensor = file.get_tensor(name).to(torch.float32, copy=True)
            if not torch.isfinite(tensor).all():
                raise ModelFailed(f"{name} holds NaN or infinity, or is too large for a 32-bit float")
            if dtype in _CONVERTED:
                notes.append(f"{name} was converted from {dtype} to F32")
            arrays[name] = tensor.numpy()
            digest.update(arrays[name])
    return Weights(arrays, digest.digest(), notes)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelFailed(f"{FILE} is not a safetensors file: {error}") from None
    except FileNotFoundError:
        raise ModelFailed(f"{FILE} is missing") from None
    except OSError as error:
        raise ModelFailed(f"{FILE} cannot be read: {error.strerror or 'I/O error'}") from None


def _expected(file: safe_open, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that the file must have, and of those of front and head that it may have."""
    expected, found = spec.weight_shapes(), set(file.keys())
    for layer in (*spec.front, *spec.head):
        for shapes in layer.optional_shapes:  # each with those before it
            if found >= shapes.keys():
                expected |= shapes
    return expected


def _verify(file: safe_open, spec: ModelSpec) -> None:
    expected, found = _expected(file, spec), {name for name in file.keys() if not name.endswith(_IGNORED)}  # noqa: SIM118
    if missing := sorted(expected.keys() - found):
        raise ModelFailed(f"{FILE} lacks {_listed(missing)}, which config.json calls for")
    if unknown := sorted(found - expected.keys()):
        raise ModelFailed(f"{FILE} has {_listed(unknown)}, which config.json does not call for")
    for name, shape in expected.items():
        entry = file.get_slice(name)
        if tuple(entry.get_shape()) != shape:
            raise ModelFailed(f"{name} has shape {tuple(entry.get_shape())}; config.json makes it {shape}")
        if entry.get_dtype() not in ("F32", *_CONVERTED):
            raise ModelFailed(f"{name} is {entry.get_dtype()}; expected F32, or one of {', '.join(_CONVERTED)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
