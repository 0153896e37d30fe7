"""The messages of a stream: float32 values in binary frames, or lines of JSON in text frames.

Binary if one of the arrays outputs and predictions is asked for: a quarter of the bytes, nothing printed or parsed.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_client.errors import BrokenReply, problem_error
from rnn_client.tensors import Floats, Returns, names

EVERY_STEP = ("outputs", "predictions")
"""The arrays that every step adds to; h and c are those after the last step."""

Answers = Iterator[tuple[int, dict[str, Floats]]]
"""How many steps were answered together, and their arrays (k, …)."""


def frames_for(returns: Returns) -> "BinaryFrames | TextFrames":
    if isinstance(returns, str) and returns in EVERY_STEP:
        return BinaryFrames(returns)
    return TextFrames(names(returns))


class BinaryFrames:
    """Frames of k·I float32 values or k token ids (int32), answered by k·P values; fewer if a step failed."""

    def __init__(self, name: str) -> None:
        # "null": NaN and infinity are no error; in binary frames they travel as they are.
        self.options = {"returns": [name], "non_finite": "null"}
        self._name = name
        self._width: int | None = None
        self._first = True

    def split(self, inputs: NDArray[Any], most: int) -> list[NDArray[Any]]:
        """Inputs (k,I) as frames of at most so many steps.

        The first frame of all is one step: its answer says how many values the answer of a step has.
        """
        head = 1 if self._first else 0
        self._first = False
        return _pieces(inputs[:head], most) + _pieces(inputs[head:], most)

    def message(self, inputs: NDArray[Any], first: int) -> bytes:  # noqa: ARG002  # the service counts from the greeting on
        return inputs.tobytes()

    def answers(self, message: str | bytes, first: int) -> Answers:
        """What a message answers: steps from number first on. Raises ServiceError, or BrokenReply."""
        if isinstance(message, str):
            _document(message)
            raise _unexpected(message)
        width = self._width or len(message) // 4
        if not width or not message or len(message) % (4 * width):
            raise BrokenReply(f"step {first} was answered with {len(message)} bytes; expected {4 * width} a step")
        self._width = width
        values = np.frombuffer(message, "<f4").reshape(-1, width)
        yield len(values), {self._name: values}


class TextFrames:
    """Frames of k lines `{"inputs": …, "step": n}`, answered by k lines; fewer if a step failed, and then an error."""

    def __init__(self, returns: list[str] | None) -> None:
        self.options: dict[str, Any] = {} if returns is None else {"returns": returns}

    def split(self, inputs: NDArray[Any], most: int) -> list[NDArray[Any]]:
        """Inputs (k,I) as frames of at most so many steps. Raises ValueError for NaN and infinity, which JSON lacks."""
        if not np.isfinite(inputs).all():
            raise ValueError('inputs hold NaN or infinity; that takes returns="outputs" or returns="predictions"')
        return _pieces(inputs, most)

    def message(self, inputs: NDArray[Any], first: int) -> str:
        lines = ({"inputs": row, "step": step} for step, row in enumerate(inputs.tolist(), first))
        return "".join(json.dumps(line) + "\n" for line in lines)

    def answers(self, message: str | bytes, first: int) -> Answers:
        """What a message answers: steps from number first on. Raises ServiceError, or BrokenReply."""
        if isinstance(message, bytes):
            raise _unexpected(message)
        for step, line in enumerate(message.splitlines(), first):
            document = _document(line)
            if document.get("step") != step:
                raise BrokenReply(f"step {step} was answered with step {document.get('step')}")
            arrays = {name: value for name, value in document.items() if isinstance(value, list)}
            yield 1, {name: np.array([value], "<f4") for name, value in arrays.items()}


def _pieces(inputs: NDArray[Any], most: int) -> list[NDArray[Any]]:
    return [inputs[begin : begin + most] for begin in range(0, len(inputs), most)]


def _document(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _unexpected(line)
    if isinstance(document.get("error"), dict):
        raise problem_error(document["error"])
    return document


def _unexpected(message: str | bytes) -> BrokenReply:
    return BrokenReply(f"steps were answered with {message!r:.80}, which is not what was asked for")
