"""A stream of a session's steps over connections that may break, without the connections.

    inputs ─ take ─► pending ─ to_send ─► flight ─ receive ─► results, in order
                        ▲                    │
                        └──── connected ◄────┘   a new connection: what was not answered goes again, with its numbers

Inputs of one step (I) give one result, inputs (k,I) give one result of k steps. They travel in frames: binary, if one
array is asked for, else as lines of JSON, one step each. Nothing runs twice, as a frame keeps its step number; nothing
is lost, as no more steps are unanswered than the service can answer again.
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rnn_client.calls import Returns
from rnn_client.errors import BrokenReply, problem_error
from rnn_client.progress import Progress
from rnn_client.results import StepResult
from rnn_client.tensors import Floats, floats


@dataclass
class _Item:
    """Inputs as they were given, and what was answered of them."""

    batched: bool
    steps: int
    answered: int = 0
    parts: list[dict[str, Floats]] = field(default_factory=list)


@dataclass
class _Frame:
    """Steps that travel together: the number of the first, inputs (k,I), and whose they are."""

    first: int
    inputs: Floats
    item: _Item

    @property
    def last(self) -> int:
        return self.first + len(self.inputs) - 1


class Stream:
    """Which messages to send, and what the answers mean.

    ahead: how many inputs may be taken before the first of them is answered.
    """

    def __init__(self, progress: Progress, returns: Returns, ahead: int) -> None:
        if ahead < 1:
            raise ValueError(f"ahead is {ahead}; expected at least 1")
        progress.refuse_while_streaming()
        self._progress = progress
        self._returns = [returns] if isinstance(returns, str) else None if returns is None else list(returns)
        self._binary = self._returns is not None and len(self._returns) == 1
        self._ahead = ahead
        self._items = 0
        self._taken = progress.done
        self._pending: deque[_Frame] = deque()
        self._flight: deque[_Frame] = deque()
        self._greeting = False

    @property
    def room(self) -> bool:
        """Whether the next input may be taken."""
        return self._items < self._ahead

    @property
    def idle(self) -> bool:
        """Whether all that was taken is answered."""
        return not self._pending and not self._flight

    def take(self, inputs: ArrayLike) -> None:
        """Take the inputs of one step (I), or of k steps (k,I). Raises ValueError for anything else."""
        values = floats(inputs)
        if values.ndim not in (1, 2) or values.size == 0:
            raise ValueError(f"an input has shape {values.shape}; expected (I), or (k, I) for k steps")
        if not self._binary and not np.isfinite(values).all():
            raise ValueError(
                "an input holds NaN or infinity, which JSON cannot; ask for one array, and frames are binary"
            )
        rows = values.reshape(-1, values.shape[-1])
        item = _Item(values.ndim == 2, len(rows))
        size = 1 if not self._binary else self._progress.replay_steps or len(rows)
        for start in range(0, len(rows), size):
            self._pending.append(_Frame(self._taken + start + 1, rows[start : start + size], item))
        self._taken += len(rows)
        self._items += 1

    def connected(self) -> None:
        """A new connection: the first message is due, and then everything that is not answered."""
        self._pending.extendleft(reversed(self._flight))
        self._flight.clear()
        self._greeting = True

    def to_send(self) -> Iterator[str | bytes]:
        """Messages that may leave now, in order; each counts as sent when it is given."""
        if self._greeting:
            self._greeting = False
            first: dict[str, Any] = {"session": self._progress.session}
            if self._returns is not None:
                first["returns"] = self._returns
            yield json.dumps(first | {"step": self._progress.done + 1})
        while self._pending and self._fits(self._pending[0]):
            frame = self._pending.popleft()
            self._flight.append(frame)
            self._progress.streaming = True
            if self._binary:
                yield frame.inputs.tobytes()
            else:
                yield json.dumps({"inputs": frame.inputs[0].tolist(), "step": frame.first})

    def receive(self, message: str | bytes) -> list[StepResult]:
        """Results that are whole with this message, in order. Raises ServiceError, or BrokenReply."""
        answers = [message] if isinstance(message, bytes) else message.splitlines()
        results = [result for answer in answers for result in self._answer(answer)]
        self._progress.streaming = bool(self._flight)
        return results

    def leave(self) -> None:
        """Nothing more is to be sent; what is under way will be answered."""
        self._pending.clear()

    def give_up(self) -> None:
        """The stream ends here, whatever was under way."""
        self._pending.clear()
        self._flight.clear()
        self._progress.streaming = False

    def _fits(self, frame: _Frame) -> bool:
        under_way = frame.last - self._progress.done
        return not self._flight or under_way <= (self._progress.replay_steps or 0)

    def _answer(self, answer: str | bytes) -> list[StepResult]:
        document = None if isinstance(answer, bytes) else _document(answer)
        if document is not None and "error" in document:
            raise problem_error(document["error"])
        if not self._flight or isinstance(answer, bytes) != self._binary:
            raise BrokenReply("the service answered a step of this stream that was not sent, or in another format")
        frame = self._flight[0]
        arrays = self._floats(answer, frame) if isinstance(answer, bytes) else _arrays(document or {}, frame)
        self._flight.popleft()
        self._progress.done = frame.last
        item = frame.item
        item.parts.append(arrays)
        item.answered += len(frame.inputs)
        if item.answered < item.steps:
            return []
        self._items -= 1
        return [StepResult(_joined(item), self._progress.model, self._progress.version, frame.last)]

    def _floats(self, answer: bytes, frame: _Frame) -> dict[str, Floats]:
        steps = len(frame.inputs)
        if not answer or len(answer) % (4 * steps):
            raise BrokenReply(f"a frame of {steps} steps was answered with {len(answer)} bytes")
        name = (self._returns or ["outputs"])[0]
        return {name: np.frombuffer(answer, "<f4").reshape(steps, -1)}


def _document(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BrokenReply(f"a step was answered with {line!r:.80}; expected a JSON object")
    return document


def _arrays(document: dict[str, Any], frame: _Frame) -> dict[str, Floats]:
    """The arrays of one step (1, ·)."""
    if document.get("step") != frame.last:
        raise BrokenReply(f"step {frame.last} was answered with step {document.get('step')}")
    return {name: floats(value)[None] for name, value in document.items() if isinstance(value, list)}


def _joined(item: _Item) -> dict[str, Floats]:
    """What the frames of one input gave, as one: results of every step, and the state after the last."""
    joined = {}
    for name in item.parts[0]:
        values = [part[name] for part in item.parts]
        of_every_step = name in ("outputs", "predictions")
        if item.batched and of_every_step:
            joined[name] = np.concatenate(values)
        else:
            joined[name] = values[-1][-1]
    return joined
