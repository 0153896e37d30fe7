"""Named arrays and fields as bytes: safetensors.

Arrays travel as safetensors and not as JSON: a float32 takes 4 bytes and not about 12, nothing is printed or parsed,
and NaN and infinity pass.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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


def vectors(values: ArrayLike, name: str) -> NDArray[Any]:
    """Inputs as an array: float32, or int64 if they are whole numbers, which may be token ids."""
    return _array(values, _dtype(values, name), name)


def padded(rows: Sequence[ArrayLike]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Rows (T_i, I) as one array (B, T, I), or ids (T_i) as (B, T), and their lengths.

    Raises ValueError for rows that do not fit together.
    """
    arrays = [vectors(row, f"inputs[{index}]") for index, row in enumerate(rows)]
    if not arrays:
        raise ValueError("inputs is empty; expected at least one row")
    of_ids = all(array.ndim == 1 and array.dtype.kind == "i" for array in arrays)
    for index, array in enumerate(arrays):
        if not of_ids and (array.ndim != 2 or array.shape[1] != arrays[0].shape[1]):
            raise ValueError(f"inputs[{index}] has shape {array.shape}; expected (T, I), and the same I in all rows")
    lengths = np.array([len(array) for array in arrays], np.int64)
    dtype = np.result_type(*arrays)
    batch = np.zeros((len(arrays), int(lengths.max()), *arrays[0].shape[1:]), dtype if of_ids else "<f4")
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, lengths


def sequences(inputs: Any, lengths: ArrayLike | None) -> dict[str, ArrayLike | None]:
    """Inputs and their lengths; those of a list of arrays are padded."""
    if isinstance(inputs, Iterable) and not hasattr(inputs, "__array__"):  # a list; torch's tensors have it too
        if lengths is not None:
            raise ValueError("lengths is for padded inputs; a list of arrays has its own")
        inputs, lengths = padded(list(inputs))
    return {"inputs": inputs, "lengths": lengths}


def names(returns: Returns) -> list[str] | None:
    return [returns] if isinstance(returns, str) else list(returns) if isinstance(returns, Iterable) else returns


def encode(arrays: Mapping[str, ArrayLike | None], fields: Mapping[str, Any]) -> bytes:
    """A safetensors file: float32 arrays, int64 lengths and token ids, the fields in the metadata; nothing for None.

    Raises ValueError or TypeError that names the array or field that cannot be encoded.
    """
    data = {
        name: _array(values, np.int64, name) if name == "lengths" else vectors(values, name)
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


def _dtype(values: ArrayLike, name: str) -> str:
    """int64 for inputs that are whole numbers: they may be token ids. Other models take them as floats."""
    with suppress(TypeError, ValueError, RuntimeError):  # which `_array` names
        if name.startswith("inputs") and np.asarray(values).dtype.kind in "iu":
            return "<i8"
    return "<f4"


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
