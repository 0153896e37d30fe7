"""Named arrays and fields as bytes: safetensors.

Arrays travel as safetensors and not as JSON: a float32 takes 4 bytes and not about 12, nothing is printed or parsed,
and NaN and infinity pass.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Floats = NDArray[np.float32]

Returns = str | Sequence[str] | None
"""Which arrays to send back: one name, several, or None for the service's choice."""

MEDIA_TYPE = "application/vnd.safetensors"


def floats(values: ArrayLike, name: str) -> Floats:
    """Numbers as a little-endian float32 array; name is the argument that they were given as."""
    return _array(values, "<f4", name)


def padded(rows: Sequence[ArrayLike]) -> tuple[Floats, NDArray[np.int64]]:
    """Rows (T_i, I) as one array (B, T, I) and their lengths. Raises ValueError for rows that do not fit together."""
    arrays = [floats(row, f"inputs[{index}]") for index, row in enumerate(rows)]
    if not arrays:
        raise ValueError("inputs is empty; expected at least one row")
    for index, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[1]:
            raise ValueError(f"inputs[{index}] has shape {array.shape}; expected (T, I), and the same I in all rows")
    lengths = np.array([len(array) for array in arrays], np.int64)
    batch = np.zeros((len(arrays), int(lengths.max()), arrays[0].shape[1]), "<f4")
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, lengths


def names(returns: Returns) -> list[str] | None:
    return [returns] if isinstance(returns, str) else list(returns) if isinstance(returns, Iterable) else returns


def encode(arrays: Mapping[str, ArrayLike | None], fields: Mapping[str, Any]) -> bytes:
    """A safetensors file: float32 arrays, int64 lengths, the fields in the metadata. What is None is left out.

    Raises ValueError or TypeError that names the array or field that cannot be encoded.
    """
    data = {
        name: _array(values, np.int64 if name == "lengths" else "<f4", name)
        for name, values in arrays.items()
        if values is not None
    }
    return save(data, {name: _text(value, name) for name, value in fields.items() if value is not None})


def decode(body: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays by name, and the metadata. Raises ValueError for what is no safetensors file."""
    try:
        arrays = load(body)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from None
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def _array(values: ArrayLike, dtype: DTypeLike, name: str) -> NDArray[Any]:
    try:
        given = np.asarray(values)
        if given.dtype.kind in "cmMSU" or given.dtype.names:
            raise TypeError(f"values of dtype {given.dtype} have no float32 value")
        array = np.asarray(given, dtype, order="C")
        if name == "lengths" and (array != given).any():
            raise ValueError("lengths are whole numbers")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor with a gradient
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be read as an array of numbers: {error}") from error
    return array


def _text(value: Any, name: str) -> str:
    try:
        return (value if isinstance(value, str) else json.dumps(value)).encode().decode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {value!r:.80}, which is no Unicode text") from None
    except TypeError:
        raise TypeError(f"{name} is of type {type(value).__name__}; expected text, numbers or names") from None
