"""Every call of the service as a request and a way to read its reply; nothing here sends or waits."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_client.errors import BrokenReply, service_error
from rnn_client.models import ModelInfo
from rnn_client.results import ForwardResult, StepResult
from rnn_client.tensors import MEDIA_TYPE, Floats, decode, encode, floats

Answer = TypeVar("Answer")
Returns = str | Sequence[str] | None
"""Which arrays to send back: one name, several, or None for the service's choice."""


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request, and `read`, which makes the answer of a reply's body.

    repeatable: whether it does no harm if the request acts twice, at any later time.
    """

    method: str
    path: str
    read: Callable[[bytes], Answer]
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        """Read the reply. Raises ServiceError, or BrokenReply for what no such service answers."""
        if status >= 400:
            raise service_error(status, headers, body)
        try:
            return self.read(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{self.method} {self.path} was answered {status} with something else than expected"
            raise BrokenReply(f"{what}: {error!r:.200}") from error


@overload
def forward(
    inputs: NDArray[Any], lengths: ArrayLike | None, returns: Returns, **fields: Any
) -> Call[ForwardResult[Floats]]: ...
@overload
def forward(
    inputs: Sequence[NDArray[Any]], lengths: ArrayLike | None, returns: Returns, **fields: Any
) -> Call[ForwardResult[list[Floats]]]: ...
def forward(
    inputs: NDArray[Any] | Sequence[NDArray[Any]], lengths: ArrayLike | None, returns: Returns, **fields: Any
) -> Call[Any]:
    """POST /rnn/forward. A list of arrays travels padded, with lengths, and its results come back as lists."""
    if isinstance(inputs, np.ndarray):
        values, rows = floats(inputs), None
        counts = None if lengths is None else np.asarray(lengths, np.int64)
    elif lengths is not None:
        raise ValueError("lengths is for padded inputs; a list of arrays has its own")
    else:
        values, counts = _padded(inputs)
        rows = counts.tolist()

    def read(body: bytes) -> ForwardResult[Any]:
        arrays, texts = decode(body)
        arrays.pop("lengths", None)
        if rows is not None:
            for name in arrays.keys() & {"outputs", "predictions"}:
                arrays[name] = [values[:count] for values, count in zip(arrays[name], rows, strict=True)]
        return ForwardResult(arrays, texts["model"], texts["version"])

    document = {"inputs": values, "lengths": counts, "returns": _names(returns)}
    return _post("/rnn/forward", document | fields, MEDIA_TYPE, read)


def step(inputs: ArrayLike, returns: Returns, **fields: Any) -> Call[StepResult]:
    """POST /cell/step, with a state in the fields or a session."""

    def read(body: bytes) -> StepResult:
        arrays, texts = decode(body)
        return StepResult(arrays, texts.get("model", ""), texts.get("version", ""), int(texts.get("step", 0)))

    return _post("/cell/step", {"inputs": floats(inputs), "returns": _names(returns)} | fields, MEDIA_TYPE, read)


def models() -> Call[list[ModelInfo]]:
    """GET /models."""
    return Call("GET", "/models", lambda body: [ModelInfo.read(item) for item in json.loads(body)["models"]])


def model(name: str) -> Call[ModelInfo]:
    """GET /models/{name}."""
    return Call("GET", f"/models/{quote(name, safe='')}", lambda body: ModelInfo.read(json.loads(body)))


def open_session(fields: Mapping[str, Any], read: Callable[[bytes], Answer]) -> Call[Answer]:
    """POST /cell/sessions. One that is opened twice, as an answer was lost, ends by itself when its time has passed."""
    return _post("/cell/sessions", fields, "application/json", read)


def optional(values: ArrayLike | None) -> Floats | None:
    """A state as an array, if there is one."""
    return None if values is None else floats(values)


def _post(path: str, fields: Mapping[str, Any], accept: str, read: Callable[[bytes], Answer]) -> Call[Answer]:
    return Call("POST", path, read, encode(fields), {"content-type": MEDIA_TYPE, "accept": accept})


def _names(returns: Returns) -> list[str] | None:
    return [returns] if isinstance(returns, str) else None if returns is None else list(returns)


def _padded(rows: Sequence[NDArray[Any]]) -> tuple[Floats, NDArray[np.int64]]:
    """Rows (T_i, I) as one array (B, T, I) and their lengths. Raises ValueError for rows that do not fit together."""
    if not rows:
        raise ValueError("inputs is empty; expected at least one row")
    arrays = [floats(row) for row in rows]
    for index, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[-1]:
            raise ValueError(f"inputs[{index}] has shape {array.shape}; expected (T, {arrays[0].shape[-1]})")
    lengths = np.array([len(array) for array in arrays], np.int64)
    padded = np.zeros((len(arrays), int(lengths.max()), arrays[0].shape[1]), "<f4")
    for place, array in zip(padded, arrays, strict=True):
        place[: len(array)] = array
    return padded, lengths
