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
import orjson
import safetensors
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from service.errors import ModelFailed
from service.spec import ModelSpec

FILE = "model.safetensors"
MAX_HEADER_BYTES = 2**20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(slots=True)
class Weights:
    """A model's float32 arrays by state_dict name, what was converted, and a digest of spec and arrays."""

    arrays: Mapping[str, NDArray[np.float32]]
    fingerprint: bytes
    notes: list[str]


def header_failure(path: Path, spec: ModelSpec) -> str | None:
    """Why weights cannot serve, by their names, shapes and dtypes; the data are not read."""
    try:
        with plain_file(path) as file:
            _verify(_header(file), spec)
    except ModelFailed as error:
        return str(error)
    return None


def read_weights(path: Path, spec: ModelSpec) -> Weights:
    """Read and check names, shapes, dtypes, and that all values are finite. Raises ModelFailed with the reason."""
    with plain_file(path) as file:
        before = os.fstat(file.fileno())
        _verify(_header(file), spec)  # which bounds what is read
        file.seek(0)
        body = file.readall()
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ModelFailed(f"{FILE} cannot be read: it was written to meanwhile") from BlockingIOError()
    try:
        found = dict(safetensors.deserialize(body))
    except SafetensorError as error:
        raise ModelFailed(f"{FILE} is not a safetensors file: {error}") from None
    del body
    arrays, notes = {}, []
    digest = blake2b(repr(spec).encode(), digest_size=16)
    for name, shape in spec.weight_shapes().items():
        entry = found.pop(name)
        dtype = entry["dtype"]
        tensor = torch.frombuffer(entry["data"], dtype=_DTYPES[dtype]).reshape(shape).to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise ModelFailed(f"{name} holds NaN or infinity, or is too large for a 32-bit float")
        if dtype != "F32":
            notes.append(f"{name} was converted from {dtype} to F32")
        arrays[name] = values = tensor.numpy()
        digest.update(values.data)
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


def _header(file: FileIO) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each array. Raises ModelFailed.

    The library maps the files that it opens, and a mapped file that is cut off ends the process. It checks what is
    read of this one later; here is checked what the reading relies on.
    """
    size = int.from_bytes(file.read(8), "little")
    try:
        header = orjson.loads(file.read(min(size, MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        shapes = [tuple(entry["shape"]) for entry in header.values()]
        whole = 8 + size + max(ends, default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        raise ModelFailed(f"{FILE} is not a safetensors file: its header cannot be read") from None
    if (there := os.fstat(file.fileno()).st_size) != whole:
        raise ModelFailed(f"{FILE} has {there} bytes, and its header says {whole}")
    return {name: (entry.get("dtype"), shape) for (name, entry), shape in zip(header.items(), shapes, strict=True)}


def _verify(found: Mapping[str, tuple[str, tuple[int, ...]]], spec: ModelSpec) -> None:
    """Raise ModelFailed unless these dtypes and shapes are what the spec calls for."""
    expected = spec.weight_shapes()
    if missing := sorted(expected.keys() - found.keys()):
        raise ModelFailed(f"{FILE} lacks {_listed(missing)}, which config.json calls for")
    if unknown := sorted(found.keys() - expected.keys()):
        raise ModelFailed(f"{FILE} has {_listed(unknown)}, which config.json does not call for")
    for name, shape in expected.items():
        dtype, came = found[name]
        if came != shape:
            raise ModelFailed(f"{name} has shape {came}; config.json makes it {shape}")
        if dtype not in _DTYPES:
            raise ModelFailed(f"{name} is {dtype}; expected one of {', '.join(_DTYPES)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
