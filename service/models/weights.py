"""`model.safetensors` of a model version: checked by its header alone, and read into float32 arrays."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from service.errors import ModelFailed
from service.spec import ModelSpec

FILE = "model.safetensors"
PIECE_BYTES = 2**20  # read at a time; the first piece must hold the whole header
_CONVERTED = ("F16", "BF16", "F64")


@dataclass(slots=True)
class Weights:
    """A model's float32 arrays by state_dict name, what was converted, and a digest of spec and arrays."""

    arrays: Mapping[str, NDArray[np.float32]]
    fingerprint: bytes
    notes: list[str]


def header_failure(path: Path, spec: ModelSpec) -> str | None:
    """Why weights cannot serve, by their names, shapes and dtypes; the data are not read."""
    try:
        with _opened(path, spec, whole=False):
            return None
    except ModelFailed as error:
        return str(error)


def read_weights(path: Path, spec: ModelSpec) -> Weights:
    """Read and check names, shapes, dtypes, and that all values are finite. Raises ModelFailed with the reason."""
    with _opened(path, spec, whole=True) as file:
        arrays, notes = {}, []
        digest = blake2b(repr(spec).encode(), digest_size=16)
        for name in spec.weight_shapes():
            dtype = file.get_slice(name).get_dtype()
            tensor = file.get_tensor(name).to(torch.float32)
            if not torch.isfinite(tensor).all():
                raise ModelFailed(f"{name} holds NaN or infinity, or is too large for a 32-bit float")
            if dtype in _CONVERTED:
                notes.append(f"{name} was converted from {dtype} to F32")
            arrays[name] = tensor.numpy()
            digest.update(arrays[name])
    return Weights(arrays, digest.digest(), notes)


@contextmanager
def plain_file(path: Path) -> Iterator[FileIO]:
    """Open a file to read it. ModelFailed that is raised for an error of the system has that as its cause."""
    try:
        # To open a named pipe would wait for its writer.
        with FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelFailed(f"{path.name} is not a regular file")
            yield file
    except FileNotFoundError as error:
        raise ModelFailed(f"{path.name} is missing") from error
    except OSError as error:
        raise ModelFailed(f"{path.name} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(path: Path, spec: ModelSpec, *, whole: bool) -> Iterator[safe_open]:
    """A file that fits the spec; if it is not read whole, its data are zeros.

    The library maps what it opens, and a mapped file that is cut off ends the process. So it gets a copy in memory.
    """
    with plain_file(path) as file, os.fdopen(os.memfd_create(FILE), "wb") as copy:
        before = os.fstat(file.fileno())
        copy.truncate(before.st_size)
        copy.write(file.read(PIECE_BYTES))
        copy.flush()
        try:
            weights = safe_open(f"/proc/self/fd/{copy.fileno()}", framework="pt")
        except SafetensorError as error:
            raise ModelFailed(f"{FILE} is not a safetensors file: {error}") from None
        except (FileNotFoundError, RuntimeError):  # what the library makes of every error of the system
            raise OSError(0, "Too many open files") from None
        with weights:
            _verify(weights, spec)
            while whole and copy.tell() < before.st_size and (piece := file.read(PIECE_BYTES)):
                copy.write(piece)
            copy.flush()
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise OSError(0, "it was written to meanwhile")
            yield weights


def _verify(file: safe_open, spec: ModelSpec) -> None:
    expected, found = spec.weight_shapes(), set(file.keys())
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
