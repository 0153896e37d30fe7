"""Requests to /rnn/generate, and what they get back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_client.errors import BrokenReply, problem_error
from rnn_client.results import Result
from rnn_client.tensors import Floats, Returns, decode, encode, names, sequences

Inputs = NDArray[Any] | Sequence[NDArray[Any]]
_ARRAYS = ("h0", "c0", "future")


class Options(TypedDict, total=False):
    """How a model goes on; what is left out is the service's choice.

    - version, lengths, h0, c0: as those of `forward`; a session has its own
    - step: number of the first of inputs in its sequence, so that one that goes on from h0 draws as in one call
    - temperature, top_k, top_p, seed, stop: of token models: how the next token is drawn, after which a row ends
    - feedback, future: of others: which input each prediction replaces; (B,steps-1,I), the inputs that are known
    - returns: some of tokens, predictions, outputs, h_n, c_n
    """

    version: str
    lengths: ArrayLike
    h0: ArrayLike
    c0: ArrayLike
    step: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | Sequence[int]
    stop: Sequence[int]
    feedback: Sequence[int | None]
    future: ArrayLike
    returns: Returns


class _GeneratedArrays(Result):
    tokens: NDArray[np.int64]
    predictions: Floats
    outputs: Floats
    lengths: NDArray[np.int64]
    h_n: Floats
    c_n: Floats


@dataclass(frozen=True)
class GenerateResult(_GeneratedArrays):
    """What a model made; of one row without B. Rows that have ended are padded with zeros: `lengths` says where.

    Of one step of a stream arrays lack the axis of steps, and are lists where rows have ended, with None for these.

    - tokens (B,steps), predictions (B,steps,O), outputs (B,steps,P), lengths (B)
    - h_n (L,B,P), c_n (L,B,H): states before the last token or prediction is consumed; in a stream of the last step
    - seed: what tokens were drawn with; step: number of the last step, in a session or stream
    """

    seed: int | list[int] | None = None
    step: int = 0

    @classmethod
    def read(cls, body: bytes) -> "GenerateResult":
        """From safetensors."""
        arrays, texts = decode(body)
        seed, step = json.loads(texts.get("seed", "null")), int(texts.get("step", 0))
        return cls(arrays, texts["model"], texts["version"], seed, step)

    @classmethod
    def of_line(cls, line: str, before: "GenerateResult | None") -> "GenerateResult":
        """From a line of a stream, whose first says what runs. Raises ServiceError, BrokenReply."""
        try:
            document = json.loads(line)
            if "error" in document:
                raise problem_error(document["error"])
            arrays = {name: _array(document[name]) for name in document.keys() & _GeneratedArrays.__annotations__}
            if before:
                return replace(before, arrays=arrays, step=document["step"])
            return cls(arrays, document["model"], document["version"], document.get("seed"), document["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenReply(f"a step was answered with {line!r:.80}") from error


def request(inputs: Any, fields: Mapping[str, Any], options: Options) -> bytes:
    """The body of a request. Raises ValueError or TypeError that names what cannot be encoded."""
    given: dict[str, Any] = {**options, "returns": names(options.get("returns"))}
    arrays = sequences(inputs, given.pop("lengths", None)) | {name: given.pop(name, None) for name in _ARRAYS}
    return encode(arrays, {**fields, **given})


def _array(value: Any) -> Any:
    if isinstance(value, list) and None in value:
        return [None if item is None else _array(item) for item in value]
    array = np.array(value)
    return array if array.dtype.kind == "i" else array.astype(np.float32)
