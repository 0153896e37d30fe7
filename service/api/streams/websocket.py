"""WS /cell/stream: the stream of steps of POST /cell/step over a WebSocket, in text frames, binary frames, or both.

Frames that wait run together as one block of steps; each is answered by a frame of its own kind, in order. Nothing more
is read while answers are not taken.
"""

import asyncio
import re
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import structlog
from starlette.types import Message, Receive, Scope, Send

from service.api.problems import STATUS, slug
from service.api.request import Request
from service.api.shapes import invalid, steps
from service.api.streams.opening import Opener
from service.api.streams.step_stream import MAX_BLOCK_STEPS, Block, IdleTimeout, StepStream, error_line
from service.engine.interface import Floats
from service.errors import ClientGone, InvalidRequest, MalformedBody, ServiceDraining, ServiceError

SUBPROTOCOL = "rnn-service"

WAITING = "rnn.waiting"
"""Name of the ASGI extension, set by the connection, that says how many messages `receive` would give at once."""

# RFC 6455, 7.4.1, and the registry that it opened: 1012 is a restart, 1013 means to try again later.
_CODE_OF_ERROR: dict[type[Exception], int] = {ServiceDraining: 1012, InvalidRequest: 1007}
_CODE_OF_STATUS = {400: 1007, 413: 1009, 415: 1003, 500: 1011, 503: 1013}
_POLICY_VIOLATION = 1008

ANSWERS_IN_TURN = 64  # frames that are answered without a pause
_LINES = re.compile(rb"\S[^\n]*")  # lines that are not blank, without leading blanks


async def serve_websocket(
    opener: Opener, idle_timeout: IdleTimeout, request: Request, scope: Scope, receive: Receive, send: Send
) -> None:
    """Accept, answer frame by frame, close. Raises a ServiceError only before it accepts, or ClientGone.

    Each message must be complete within the idle timeout after the one before it.
    """
    connection = _Connection(opener, idle_timeout, request, scope, receive, send)
    await receive()  # websocket.connect, always
    request.status = 101
    headers = [(b"x-request-id", request.request_id.encode())]
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
    await connection.send({"type": "websocket.accept", "headers": headers, "subprotocol": subprotocol})
    try:
        await connection.answer()
    except ClientGone:
        raise
    except Exception as error:
        request.failure = type(error)
        if not isinstance(error, ServiceError):
            structlog.get_logger().exception("internal_error", request_id=request.request_id)
        await connection.write(error_line(error, request.request_id))
        await connection.send({"type": "websocket.close", "code": close_code(error), "reason": slug(type(error))})


def authorization_of(scope: Scope) -> bytes | None:
    """The Authorization header that a subprotocol stands for, if one does.

    A browser cannot set headers: it offers `bearer.<base64url of the key>` beside the subprotocol that it wants.
    """
    for offered in scope.get("subprotocols", ()):
        if offered.startswith("bearer."):
            key = offered.removeprefix("bearer.")
            with suppress(ValueError):
                return b"Bearer " + urlsafe_b64decode(key + "=" * (-len(key) % 4))
    return None


def close_code(error: Exception) -> int:
    """The code that a WebSocket is closed with after an error."""
    kind = type(error)
    return _CODE_OF_ERROR.get(kind) or _CODE_OF_STATUS.get(STATUS.get(kind, 500), _POLICY_VIOLATION)


class _Frame(NamedTuple):
    """A frame, or a part of it that one block can hold: lines, or inputs (k,I); and the steps' places."""

    text: bool
    steps: Any
    places: Sequence[int]


@dataclass(eq=False, slots=True)
class _Connection:
    """One WebSocket: its stream once that is open, and the frames of one kind that wait to run as one block."""

    _opener: Opener
    _idle_timeout: IdleTimeout
    _request: Request
    _scope: Scope
    _receive: Receive
    _send: Send
    _stream: StepStream | None = None
    _frame_count: int = 0
    _line_count: int = 0
    _waiting: list[_Frame] = field(default_factory=list)
    _waiting_steps: int = 0

    async def answer(self) -> None:
        """Answer until the client closes. Raises a ServiceError that the client must be told, or ClientGone."""
        closed = False
        while not closed:
            messages, closed = await self._arrived()
            try:
                for message in messages:
                    await self._add(message)
            except ServiceError:
                await self._run()
                raise
            await self._run()

    async def write(self, data: bytes, *, text: bool = True) -> None:
        self._request.sent_bytes += len(data)
        content = {"text": data.decode("utf-8", "replace")} if text else {"bytes": data}
        await self.send({"type": "websocket.send", **content})

    async def send(self, message: Message) -> None:
        """Send a message of ASGI. Raises ClientGone."""
        try:
            await self._send(message)
        except OSError:  # what ASGI servers raise once the client is gone
            raise ClientGone from None

    async def _arrived(self) -> tuple[list[Message], bool]:
        """The next message and all that wait behind it, and whether the client has closed then."""
        messages = [await self._idle_timeout.wait(self._receive, "message")]
        for _ in range(self._scope.get("extensions", {}).get(WAITING, int)()):  # int() is 0
            messages.append(await self._receive())  # noqa: PERF401  # each await gives one that is there
        for index, message in enumerate(messages):
            if message["type"] == "websocket.disconnect":
                return messages[:index], True
            self._request.received_bytes += len(message.get("text") or message.get("bytes") or b"")
        return messages, False

    async def _add(self, message: Message) -> None:
        """Let a message's steps wait; the first message may open the stream. Raises a ServiceError."""
        self._frame_count += 1
        text = message.get("text")
        if text is None:
            self._stream = self._stream or await self._opener.open(self._request, {})
            inputs = self._inputs(message["bytes"], self._stream)
            await self._add_frame(_Frame(False, inputs, [self._frame_count] * len(inputs)), self._stream.block_steps)
            return
        found = (line[0] for line in _LINES.finditer(text.encode()))
        # So many at a time: half a million may stand in a message.
        while lines := list(islice(found, MAX_BLOCK_STEPS)):
            places = range(self._line_count + 1, self._line_count + 1 + len(lines))
            self._line_count += len(lines)
            if self._stream is None:
                self._stream, opens = await self._opener.open_by_line(self._request, lines[0], places[0])
                lines, places = lines[opens:], places[opens:]
            await self._add_frame(_Frame(True, lines, places), self._stream.block_steps)

    def _inputs(self, data: bytes, stream: StepStream) -> Floats:
        """The steps (k,I) of a binary frame. Raises MalformedBody, InvalidRequest."""
        model = stream.stepper.model
        width, takes_ids = model.spec.in_features, model.spec.num_embeddings is not None
        if not data or len(data) % (4 * width):
            what = "int32 token ids" if takes_ids else "float32 values"
            expected = f"k·{width} little-endian {what}, {4 * width} bytes for each of k steps, k ≥ 1"
            raise MalformedBody(f"frame {self._frame_count} has {len(data)} bytes; expected {expected}")
        if stream.binary is None:
            named = ", ".join(sorted(stream.returns)) or "nothing"
            raise invalid(f"returns is {named}; a binary frame holds one array: name one in returns", "returns")
        if takes_ids:
            return steps(np.frombuffer(data, "<i4"), model)[0]
        return np.frombuffer(data, "<f4").reshape(-1, width).astype(np.float32, copy=False)

    async def _add_frame(self, frame: _Frame, most: int) -> None:
        """Let a frame wait, in parts of `most` steps; what waits already runs first if a block cannot hold both."""
        for begin in range(0, len(frame.places), most):
            end = begin + most
            part = _Frame(frame.text, frame.steps[begin:end], frame.places[begin:end])
            fits = self._waiting_steps + len(part.places) <= most
            if self._waiting and not (fits and self._waiting[0].text == frame.text):
                await self._run()
                await asyncio.sleep(0)  # give other tasks a turn
            self._waiting.append(part)
            self._waiting_steps += len(part.places)

    async def _run(self) -> None:
        """Run the frames that wait as one block, and answer each once all of its steps have run."""
        frames, self._waiting, self._waiting_steps = self._waiting, [], 0
        stream = self._stream
        if not frames or stream is None:
            return
        text = frames[0].text
        places = [place for frame in frames for place in frame.places]
        if text:
            block = await stream.decode([line for frame in frames for line in frame.steps], places)
        else:
            inputs = np.concatenate([frame.steps for frame in frames])
            block = Block(inputs, [None] * len(places), places, "frame")
        sizes = (len(frame.places) for frame in frames)
        missing = next(sizes)
        answer: list[bytes] = []  # what has run of one frame
        answered = 0
        try:
            async for ran in stream.run(block):
                answers: Any = stream.lines(ran) if text else stream.array(ran)
                begin = 0
                while begin < ran.count:
                    part = answers[begin : begin + missing]
                    answer.append(b"".join(part) if text else part.tobytes())
                    begin, missing = begin + len(part), missing - len(part)
                    if not missing:
                        await self.write(b"".join(answer), text=text)
                        answer, missing = [], next(sizes, 0)
                        answered += 1
                        if not answered % ANSWERS_IN_TURN:
                            await asyncio.sleep(0)  # give other tasks a turn
        except ServiceError:
            if answer:
                await self.write(b"".join(answer), text=text)
            raise
