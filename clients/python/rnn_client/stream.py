"""A stream of a session's steps over connections that may break, without the connections.

    inputs ─ take ─► pending ─ to_send ─► in flight ─ receive ─► results, in order
                        ▲                    │
                        └──── connected ◄────┘   on a new connection, unanswered steps go again, with their numbers

Every step keeps its number, so nothing runs twice. No more steps are unanswered than the service can answer again, so
nothing is lost.
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_client.errors import BrokenReply
from rnn_client.frames import EVERY_STEP, frames_for
from rnn_client.results import StepResult
from rnn_client.tensors import Floats, Returns, floats, vectors

FRAME_STEPS = 1024
"""Most steps in a frame. The service runs so many at a time, and keeps the answers of the last that it ran."""


@dataclass
class Progress:
    """A session and the last step of it that was answered.

    replay_steps: how many of its latest steps the service can answer again to a stream; None if it did not say.
    input_size: I, likewise. num_embeddings: how many token ids there are; None for vectors.
    streaming: whether a stream has steps in flight, so that the number of the next step is unknown.
    """

    session: str
    model: str
    version: str
    done: int
    replay_steps: int | None = None
    input_size: int | None = None
    num_embeddings: int | None = None
    streaming: bool = False

    @classmethod
    def read(cls, body: bytes) -> "Progress":
        """From the service's description of a session."""
        session: dict[str, Any] = json.loads(body)
        more: dict[str, Any] = {name: session.get(name) for name in ("replay_steps", "input_size", "num_embeddings")}
        return cls(session["session"], session["model"], session["version"], session["step"], **more)

    def refuse_while_streaming(self) -> None:
        """Raise RuntimeError if a stream has steps in flight."""
        if self.streaming:
            raise RuntimeError("a stream of this session has steps in flight: close it first (contextlib.aclosing)")


@dataclass
class _Item:
    """The inputs of one `take`, and the answers to them so far."""

    batched: bool
    unanswered: int
    parts: list[dict[str, Floats]] = field(default_factory=list)

    def joined(self) -> dict[str, Floats]:
        """The results of every step, and the state after the last."""
        arrays = {}
        for name in self.parts[0]:
            values = np.concatenate([part[name] for part in self.parts])
            arrays[name] = values if self.batched and name in EVERY_STEP else values[-1]
        return arrays


@dataclass
class _Frame:
    """Steps that travel together: the number of the first, inputs (k,I) or ids (k), and the item they belong to."""

    first: int
    inputs: NDArray[Any]
    item: _Item


class Stream:
    """Which messages to send, and what the answers mean.

    ahead: how many inputs may be taken before the first of them is answered.
    """

    def __init__(self, progress: Progress, returns: Returns, ahead: int) -> None:
        if not isinstance(ahead, SupportsIndex) or ahead < 1:
            raise ValueError(f"ahead is {ahead!r:.80}; expected at least 1")
        progress.refuse_while_streaming()
        self._progress = progress
        self._frames = frames_for(returns)
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
        """Take the inputs of one step (I), or of k steps (k,I), or one token id or k. Raises ValueError for others."""
        if self._progress.num_embeddings is not None:
            ids = vectors(inputs, "inputs")
            if ids.dtype.kind != "i" or ids.ndim > 1 or not ids.size:
                raise ValueError(f"inputs have shape {ids.shape}, {ids.dtype}; expected one token id, or k of them")
            self._take(ids.reshape(-1).astype("<i4"), batched=ids.ndim == 1)
            return
        values = floats(inputs, "inputs")
        size = self._progress.input_size or "I"
        if values.ndim not in (1, 2) or values.size == 0 or size not in ("I", values.shape[-1]):
            raise ValueError(f"inputs have shape {values.shape}; expected ({size}), or (k, {size}) for k steps")
        self._take(values.reshape(-1, values.shape[-1]), batched=values.ndim == 2)

    def _take(self, rows: NDArray[Any], *, batched: bool) -> None:
        item = _Item(batched, len(rows))
        for part in self._frames.split(rows, FRAME_STEPS):
            self._pending.append(_Frame(self._taken + 1, part, item))
            self._taken += len(part)
        self._items += 1

    def connected(self) -> None:
        """On a new connection, the first message is due, and then everything that is not answered."""
        self._pending.extendleft(reversed(self._flight))
        self._flight.clear()
        self._greeting = True

    def to_send(self) -> Iterator[str | bytes]:
        """Messages that may be sent now, in order; each counts as sent when it is given."""
        if self._greeting:
            self._greeting = False
            first = {"session": self._progress.session, "step": self._progress.done + 1}
            yield json.dumps(first | self._frames.options)
        while self._pending and self._fits(self._pending[0]):
            frame = self._pending.popleft()
            self._flight.append(frame)
            self._progress.streaming = True
            yield self._frames.message(frame.inputs, frame.first)

    def receive(self, message: str | bytes) -> list[StepResult]:
        """Results that are complete with this message, in order. Raises ServiceError, or BrokenReply."""
        answers = self._frames.answers(message, self._progress.done + 1)
        results = [result for steps, arrays in answers for result in self._answered(steps, arrays)]
        self._progress.streaming = bool(self._flight)
        return results

    def leave(self) -> None:
        """Send nothing more; what is in flight will be answered."""
        self._pending.clear()

    def give_up(self) -> None:
        """End the stream, whatever is in flight."""
        self._pending.clear()
        self._flight.clear()
        self._progress.streaming = False

    def _fits(self, frame: _Frame) -> bool:
        """Whether a frame may follow those in flight. Alone it always may: the service keeps its last answer whole."""
        unanswered = frame.first + len(frame.inputs) - 1 - self._progress.done
        return not self._flight or unanswered <= (self._progress.replay_steps or 0)

    def _answered(self, steps: int, arrays: dict[str, Floats]) -> Iterator[StepResult]:
        """So many steps of the first frame are answered: all of it, or its beginning if the rest failed."""
        frame = self._flight[0] if self._flight else None
        if frame is None or steps > len(frame.inputs):
            raise BrokenReply("the service answered steps of this stream that were not sent")
        item = frame.item
        item.parts.append(arrays)
        item.unanswered -= steps
        frame.first, frame.inputs = frame.first + steps, frame.inputs[steps:]
        self._progress.done = frame.first - 1
        if not len(frame.inputs):
            self._flight.popleft()
        if item.unanswered == 0:
            self._items -= 1
            yield StepResult(item.joined(), self._progress.model, self._progress.version, self._progress.done)
