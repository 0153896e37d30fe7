"""`model.safetensors` of a model version: checked by its header alone, and read into float32 arrays."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import safetensors
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from service.errors import ModelFailed
from service.models.config import ModelConfig
from service.spec import ModelSpec

Floats = NDArray[np.float32]

FILE = "model.safetensors"
MAX_HEADER_BYTES = 2**20
_IGNORED = ".num_batches_tracked"  # of a batch_norm, which counts with it in training
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class _Entry(NamedTuple):
    """An array in a file: its dtype by safetensors' name, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int

    @classmethod
    def of(cls, entry: Any, data: int) -> "_Entry":
        """From a header, whose places count from `data`. Raises ValueError, TypeError or KeyError if it is none."""
        (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
        if any(type(number) is not int for number in (begin, end, *shape)) or not 0 <= begin <= end:
            raise ValueError(entry)
        return cls(str(entry["dtype"]), shape, data + begin, end - begin)


_NOTHING = _Entry("F32", (0,), 0, 0)


@dataclass(slots=True)
class Weights:
    """A model's float32 arrays by state_dict name, what was converted, and a digest of spec and arrays."""

    arrays: Mapping[str, Floats]
    fingerprint: bytes
    notes: list[str]


class InitialStates(NamedTuple):
    """What states begin as where a request brings none, (L·D, P) and (L·D, H); None: as zeros."""

    h0: Floats | None = None
    c0: Floats | None = None


def verify(path: Path, config: ModelConfig) -> tuple[ModelSpec, InitialStates]:
    """What the file is, by its header, and the initial states in it. Raises ModelFailed with the reason."""
    with plain_file(path) as file:
        header = _header(file)
        spec = config.spec({name: entry.shape for name, entry in header.items()})
        _verify(header, spec)
        states = []
        for name in InitialStates._fields:
            entry = header.get(name, _NOTHING)
            file.seek(entry.begin)
            data = bytearray(file.read(entry.size))
            states.append(_float32(data, entry, name) if data else None)
        return spec, InitialStates(*states)


def read_weights(path: Path, spec: ModelSpec) -> Weights:
    """Read and check names, shapes, dtypes, and that all values are finite. Raises ModelFailed with the reason."""
    with plain_file(path) as file:
        before = os.fstat(file.fileno())
        header = _header(file)
        _verify(header, spec)  # which bounds what is read
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
    for name in expected_shapes(spec, header):
        entry = header[name]
        arrays[name] = _float32(found.pop(name)["data"], entry, name)
        if entry.dtype != "F32":
            notes.append(f"{name} was converted from {entry.dtype} to F32")
        digest.update(arrays[name].data)
    return Weights(arrays, digest.digest(), notes)


def _float32(data: bytearray, entry: "_Entry", name: str) -> Floats:
    tensor = torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape).to(torch.float32)
    if not torch.isfinite(tensor).all():
        raise ModelFailed(f"{name} holds NaN or infinity, or is too large for a 32-bit float")
    array: Floats = tensor.numpy()
    return array


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


def _header(file: FileIO) -> dict[str, _Entry]:
    """What the file says of each array. Raises ModelFailed.

    The library maps the files that it opens, and a mapped file that is cut off ends the process. It checks what is
    read of this one later; here is checked what the reading relies on.
    """
    size = int.from_bytes(file.read(8), "little")
    try:
        header = orjson.loads(file.read(min(size, MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        entries = {name: _Entry.of(entry, 8 + size) for name, entry in header.items()}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise ModelFailed(f"{FILE} is not a safetensors file: its header cannot be read") from None
    whole = max([8 + size, *(entry.begin + entry.size for entry in entries.values())])
    if (there := os.fstat(file.fileno()).st_size) != whole:
        raise ModelFailed(f"{FILE} has {there} bytes, and its header says {whole}")
    return entries


def expected_shapes(spec: ModelSpec, there: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that a model must have, and of optional ones of front and head that are there."""
    expected = spec.weight_shapes()
    for layer in (*spec.front, *spec.head):
        for shapes in layer.optional_shapes:  # each with those before it
            if there.keys() >= shapes.keys():
                expected |= shapes
    return expected


def _verify(header: Mapping[str, _Entry], spec: ModelSpec) -> None:
    """Raise ModelFailed unless these are the dtypes and shapes that the spec calls for."""
    expected = expected_shapes(spec, header)
    found = {name for name in header if not name.endswith(_IGNORED)}
    if missing := sorted(expected.keys() - found):
        raise ModelFailed(f"{FILE} lacks {_listed(missing)}, which config.json calls for")
    expected |= {f"{name}0": shape for name, shape in spec.state_shapes.items() if f"{name}0" in found}
    if unknown := sorted(found - expected.keys()):
        raise ModelFailed(f"{FILE} has {_listed(unknown)}, which config.json does not call for")
    for name, shape in expected.items():
        entry = header[name]
        if entry.shape != shape:
            raise ModelFailed(_misshapen(name, entry.shape, shape, spec))
        if entry.dtype not in _DTYPES:
            raise ModelFailed(f"{name} is {entry.dtype}; expected one of {', '.join(_DTYPES)}")
        if entry.size != prod(shape) * _DTYPES[entry.dtype].itemsize:
            raise ModelFailed(f"{FILE} is not a safetensors file: {name} has {entry.size} bytes")


def _misshapen(name: str, came: tuple[int, ...], shape: tuple[int, ...], spec: ModelSpec) -> str:
    for part, layers in (("front", spec.front), ("head", spec.head)):
        for index, layer in enumerate(layers):
            if name.rpartition(".")[0] == layer.name:
                return f"{part}[{index}]: {layer.type} needs {name} of shape {shape}; the file has {came}"
    return f"{name} has shape {came}; config.json makes it {shape}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
