"""The wire formats and encodings, from the client's side."""

import gzip
import json
import sys
from collections.abc import Mapping

import httpx
import numpy as np
from safetensors.numpy import save

from .running import Service

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON = "application/json"
NDJSON = "application/x-ndjson"
SAFETENSORS = "application/vnd.safetensors"
COMPRESS = {"gzip": gzip.compress, "zstd": zstd.compress}
DECOMPRESS = {"gzip": gzip.decompress, "zstd": zstd.decompress}

__all__ = ["COMPRESS", "DECOMPRESS", "JSON", "NDJSON", "SAFETENSORS", "line", "post_arrays", "safetensors", "zstd"]


def safetensors(arrays: Mapping[str, np.ndarray], **fields: str) -> bytes:
    """A body of arrays, with the other fields as its metadata."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fields)


def post_arrays(
    service: Service, path: str, arrays: Mapping[str, np.ndarray], *, headers: Mapping[str, str] | None = None, **fields
) -> httpx.Response:
    """Post a safetensors body."""
    headers = {"content-type": SAFETENSORS} | dict(headers or {})
    return service.post(path, content=safetensors(arrays, **fields), headers=headers)


def line(value: np.ndarray | list | dict) -> bytes:
    """One line of NDJSON."""
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value).encode() + b"\n"
