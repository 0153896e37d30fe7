"""Files of torch.save, in its zip format and the one before it, and TorchScript's archives: a pickle and storages."""

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from service.models.importing.pickles import MAX_BYTES, STORED, Record, Unpickler
from service.models.importing.refusal import CheckpointRefused

Bytes = NDArray[np.uint8]

_MAGIC = 0x1950A86A20F9469CFC6C
_POLICY = "policy.pth"  # of Stable-Baselines3
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a file's pickle holds, and its storages by key."""

    content: Any
    storage: Callable[[str], Bytes]

    def tensor(self, value: Any) -> torch.Tensor | None:
        """The tensor that a Record stands for. Raises anything where that is damaged."""
        if isinstance(value, Record) and value.name in _PARAMETERS and value.arguments:
            value = value.arguments[0]
        if not isinstance(value, Record) or value.name not in _TENSORS or value.arguments is None:
            return None
        stored, offset, size, stride = value.arguments[:4]
        _, kind, key, _, count = stored.arguments[:5]
        dtype = _DTYPES.get(kind.name.rpartition(".")[2])
        if stored.name != STORED or dtype is None:
            return None
        data = self.storage(key)[: count * dtype.itemsize]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not writable, as nobody writes to it
            whole = torch.frombuffer(data, dtype=dtype) if data.size else torch.empty(0, dtype=dtype)
        return whole.as_strided(size, stride, offset)  # which refuses to read beyond it


def read_torch_file(path: Path) -> TorchFile:
    """Raises CheckpointRefused, or what a parser raises for a file that is damaged."""
    data: Bytes = np.memmap(path, np.uint8, mode="r")
    with path.open("rb") as file:
        zipped = zipfile.is_zipfile(file)
        file.seek(0)
        return _read_zip(file, data) if zipped else _read_stream(file, data)


def _read_zip(file: BinaryIO, data: Bytes) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        outermost = isinstance(data, np.memmap)  # archives inside each other could go on forever
        name = _POLICY if _POLICY in entries and outermost else pickles[0] if pickles else None
        if name is None:
            raise CheckpointRefused("the file is a zip archive without data.pkl: neither of torch.save nor TorchScript")
        if _check(entries[name]).file_size > MAX_BYTES:
            raise CheckpointRefused(f"the file's {name} has more than {MAX_BYTES >> 20} MiB")
        content = archive.read(name)
        if name == _POLICY:
            return _read_zip(io.BytesIO(content), np.frombuffer(content, np.uint8))
        root = name.removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder")[:3] == b"big":
            raise CheckpointRefused("the file's numbers are big-endian: save it on another machine")

    def storage(key: str) -> Bytes:
        entry = _check(entries[f"{root}data/{key}"])
        # Its own header stands before it; the lengths of name and extra field end that.
        lengths = data[entry.header_offset + 26 : entry.header_offset + 30].view("<u2")
        begin = entry.header_offset + 30 + int(lengths.sum())
        return data[begin : begin + entry.file_size]

    return TorchFile(Unpickler(io.BytesIO(content)).load(), storage)


def _check(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointRefused("the file is a compressed zip archive; torch.save does not compress its checkpoints")
    return entry


def _read_stream(file: BinaryIO, data: Bytes) -> TorchFile:
    reader = Unpickler(file)
    if reader.load() != _MAGIC:
        raise CheckpointRefused("the file is a pickle, but not of torch.save")
    _protocol, _system, content, keys = (reader.load() for _ in range(4))
    sizes = {key: _DTYPES[kind.name.rpartition(".")[2]].itemsize for _, kind, key, *_ in reader.persistent}
    places: dict[str, Bytes] = {}
    at = file.tell()
    for key in keys:  # in the order in which they were written, each after its length
        size = int(data[at : at + 8].view("<i8")[0]) * sizes[key]
        places[key] = data[at + 8 : at + 8 + size]
        at += 8 + size
    return TorchFile(content, places.__getitem__)
