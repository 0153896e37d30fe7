"""The two ways in which steps travel in a stream: float32 values in binary frames, and lines of JSON in text frames.

Binary if one of the arrays outputs and predictions is asked for: a quarter of the bytes, nothing printed or parsed.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from rnn_client.calls import Returns
from rnn_client.errors import BrokenReply, problem_error
from rnn_client.tensors import Floats

EVERY_STEP = ("outputs", "predictions")
"""The arrays that every step adds to; h and c are those after the last step."""

Answers = Iterator[tuple[int, dict[str, Floats]]]
"""How many steps were answered together, and their arrays (k, …)."""


class Frames(ABC):
    """How the messages of a stream are written and read."""

    extras: ClassVar[Mapping[str, str]] = {}
    """What else the first message says."""

    def __init__(self, returns: Returns) -> None:
        self._returns = [returns] if isinstance(returns, str) else None if returns is None else list(returns)

    def greeting(self, session: str, step: int) -> str:
        """The first message: which session, what to send back, and the number of the first step."""
        wanted = {} if self._returns is None else {"returns": self._returns}
        return json.dumps({"session": session, "step": step, **wanted, **self.extras})

    @abstractmethod
    def check(self, inputs: Floats) -> None:
        """Raise ValueError for inputs (k,I) that cannot travel so."""

    @abstractmethod
    def cuts(self, steps: int, most: int) -> Iterator[tuple[int, int]]:
        """Which of an input's steps, from begin to end, travel together."""

    @abstractmethod
    def message(self, inputs: Floats, first: int) -> str | bytes:
        """The frame of steps (k,I), numbered from first."""

    @abstractmethod
    def answers(self, message: str | bytes, first: int) -> Answers:
        """What a message answers: steps from number first on. Raises ServiceError, or BrokenReply."""


class BinaryFrames(Frames):
    """Frames of k·I float32 values, answered by k·P of them; fewer if a step failed, and then an error follows."""

    extras: ClassVar[Mapping[str, str]] = {"non_finite": "null"}  # that is: no error; they travel as they are

    def __init__(self, returns: Returns) -> None:
        super().__init__(returns)
        self._name = str(returns)
        self._width: int | None = None
        self._first = True

    def check(self, inputs: Floats) -> None:
        """All float32 values can."""

    def cuts(self, steps: int, most: int) -> Iterator[tuple[int, int]]:
        """The first frame of all is one step: its answer says how many values the answer of a step has."""
        begin = 0
        while begin < steps:
            end = min(steps, begin + (1 if self._first else most))
            self._first = False
            yield begin, end
            begin = end

    def message(self, inputs: Floats, first: int) -> bytes:  # noqa: ARG002
        """The values; the service counts steps from the first message's number on."""
        return inputs.tobytes()

    def answers(self, message: str | bytes, first: int) -> Answers:
        """One array, or an error."""
        if isinstance(message, str):
            document = _document(message)
            raise problem_error(document["error"]) if "error" in document else _unasked(message)
        width = self._width or len(message) // 4
        if not message or not width or len(message) % (4 * width):
            raise BrokenReply(
                f"step {first} was answered with {len(message)} bytes; expected a multiple of {4 * width}"
            )
        self._width = width
        values = np.frombuffer(message, "<f4").reshape(-1, width)
        yield len(values), {self._name: values}


class TextFrames(Frames):
    """Frames of k lines `{"inputs": …, "step": n}`, answered by k lines; fewer if a step failed, and then an error."""

    def check(self, inputs: Floats) -> None:
        """JSON has no NaN and no infinity."""
        if not np.isfinite(inputs).all():
            raise ValueError(
                'an input holds NaN or infinity, which only streams with returns="outputs" or "predictions" can'
            )

    def cuts(self, steps: int, most: int) -> Iterator[tuple[int, int]]:
        """As many as go into a frame."""
        for begin in range(0, steps, most):
            yield begin, min(steps, begin + most)

    def message(self, inputs: Floats, first: int) -> str:
        """A line a step."""
        lines = ({"inputs": row, "step": step} for step, row in enumerate(inputs.tolist(), first))
        return "".join(json.dumps(line) + "\n" for line in lines)

    def answers(self, message: str | bytes, first: int) -> Answers:
        """A step a line, or an error."""
        if isinstance(message, bytes):
            raise _unasked(message)
        for step, line in enumerate(message.splitlines(), first):
            document = _document(line)
            if "error" in document:
                raise problem_error(document["error"])
            if document.get("step") != step:
                raise BrokenReply(f"step {step} was answered with step {document.get('step')}")
            arrays = {name: value for name, value in document.items() if isinstance(value, list)}
            yield 1, {name: np.array([value], "<f4") for name, value in arrays.items()}


def _document(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _unasked(line)
    return document


def _unasked(message: str | bytes) -> BrokenReply:
    return BrokenReply(f"steps were answered with {message!r:.80}, which is not what was asked for")
