"""WS /cell/stream: the stream of steps of POST /cell/step over a WebSocket, in text frames, binary frames, or both.

Frames that wait run together as blocks of steps; each is answered by a frame of its own kind, in order. Reading stops
while answers are not taken, so that what is held is a block's answers and what one read of the socket brought.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import structlog
from starlette.types import Message

from service.api.conversation import MAX_BLOCK_STEPS, Conversation
from service.api.exchange import Exchange
from service.api.opening import Opener, opening_message
from service.api.patience import Listening, Patience
from service.api.places import error_line
from service.api.problems import STATUS, internal_problem, slug
from service.api.shapes import wrong
from service.engine.interface import Floats
from service.errors import ClientGone, Forbidden, InvalidRequest, MalformedBody, ServiceDraining, ServiceError
from service.sessions.stepper import Steps
from service.wire import json

SUBPROTOCOL = "rnn-service"
WAITING = "rnn.waiting"
"""Name of the ASGI extension, set by the connection, that says how many messages `receive` would give at once."""

SWITCHING_PROTOCOLS = 101

# RFC 6455, 7.4.1, and the registry that it opened: 1012 is a restart, 1013 means to try again later.
_CODES = {400: 1007, 413: 1009, 415: 1003, 503: 1013, 500: 1011}
_DRAINING, _INVALID, _POLICY, _INTERNAL = 1012, 1007, 1008, 1011


@dataclass(slots=True)
class Frame:
    """A frame, or a part of up to `MAX_BLOCK_STEPS` of a longer one: its lines, or its inputs (k,I); and the places."""

    places: Sequence[int]
    lines: Sequence[bytes] | None = None
    inputs: Floats | None = None


@dataclass(frozen=True, slots=True)
class WebSocketStream:
    """The handler, and what it needs. Pages of other hosts may connect if their origin is in `origins`, or that has *.

    A complete message must come as soon after the one before it as `patience` says.
    """

    opener: Opener
    patience: Patience
    origins: frozenset[str]

    async def __call__(self, exchange: Exchange) -> None:
        """Accept, answer frame by frame, close. Until it is accepted an error is an ordinary reply."""
        self._check_origin(exchange)
        await exchange.receive()  # websocket.connect, always
        await _accept(exchange)
        try:
            with self.patience.listening("message") as listening:
                await _Talk(exchange, self.opener, listening).hold()
        except ServiceError as error:
            await _send(exchange, {"text": error_line(error, exchange).decode("utf-8", "replace")})
            await _close(exchange, close_code(error), slug(type(error)))
        except ClientGone:
            raise
        except Exception:
            structlog.get_logger().exception("internal_error", request_id=exchange.request_id)
            await _send(exchange, {"text": json.encode({"error": internal_problem(exchange.request_id)}).decode()})
            await _close(exchange, _INTERNAL, "internal-error")

    def _check_origin(self, exchange: Exchange) -> None:
        """Browsers send Origin, and let any page open a WebSocket anywhere. Raises Forbidden."""
        origin = exchange.header(b"origin")
        if not origin or "*" in self.origins or origin.lower() in self.origins:
            return
        if urlsplit(origin).netloc.lower() != exchange.header(b"host").lower():
            raise Forbidden(f"Origin is {origin!r:.80}, which is not this host; RNN_ALLOWED_ORIGINS lists others")


def close_code(error: ServiceError) -> int:
    """The code that a WebSocket is closed with after an error."""
    if isinstance(error, ServiceDraining):
        return _DRAINING
    if isinstance(error, InvalidRequest):
        return _INVALID
    return _CODES.get(STATUS[type(error)], _POLICY)


class _Talk:
    """One open connection: its conversation once it is opened, and how far its frames and lines are counted."""

    def __init__(self, exchange: Exchange, opener: Opener, listening: Listening) -> None:
        self._exchange = exchange
        self._opener = opener
        self._listening = listening
        self._conversation: Conversation | None = None
        self._lines = 0
        self._frames = 0
        self._waiting = exchange.scope.get("extensions", {}).get(WAITING, int)  # int() is 0

    async def hold(self) -> None:
        """Answer until the client closes. Raises what it is to be told, or ClientGone."""
        while (messages := await self._arrived()) is not None:
            block: list[Frame] = []
            steps = 0
            failure = None
            for message in messages:
                try:
                    frames = await self._understood(message)
                except ServiceError as error:
                    failure = error
                    break
                for frame in frames:
                    # A block is of one kind, and no frame is cut by its end: it is answered by one frame.
                    alike = not block or (block[0].lines is None) == (frame.lines is None)
                    if not alike or steps + len(frame.places) > MAX_BLOCK_STEPS:
                        await self._answer(block)
                        await asyncio.sleep(0)  # let the others have their turn
                        block, steps = [], 0
                    block.append(frame)
                    steps += len(frame.places)
            await self._answer(block)
            if failure:
                raise failure

    async def _arrived(self) -> list[Message] | None:
        """The next message and all that wait behind it; None once the client has closed."""
        messages = [await self._listening.wait(self._exchange.receive)]
        for _ in range(self._waiting()):
            messages.append(await self._exchange.receive())  # noqa: PERF401  # each await gives one that is there
        for index, message in enumerate(messages):
            if message["type"] == "websocket.disconnect":
                return None if index == 0 else messages[:index]
            self._exchange.received_bytes += len(message.get("text") or message.get("bytes") or b"")
        return messages

    async def _understood(self, message: Message) -> list[Frame]:
        """The frames of steps in a message; the first message may open the stream. Raises what is wrong with it."""
        text = message.get("text")
        self._frames += 1
        if text is None:
            return self._binary(message["bytes"], self._conversation or await self._open({}))
        lines = [line for line in text.encode().split(b"\n") if line.strip()]
        places = range(self._lines + 1, self._lines + 1 + len(lines))
        self._lines += len(lines)
        if not lines:
            return []
        if self._conversation is None:
            opening = await opening_message(lines[0], places[0])
            await self._open(opening or {})
            if opening is not None:
                lines, places = lines[1:], places[1:]
        parts = range(0, len(lines), MAX_BLOCK_STEPS)
        return [Frame(places[b : b + MAX_BLOCK_STEPS], lines[b : b + MAX_BLOCK_STEPS]) for b in parts]

    def _binary(self, data: bytes, conversation: Conversation) -> list[Frame]:
        width = conversation.target.spec.input_size
        if not data or len(data) % (4 * width):
            expected = f"k·{width} little-endian float32 values, {4 * width} bytes for each of k steps, k ≥ 1"
            raise MalformedBody(f"frame {self._frames} has {len(data)} bytes; expected {expected}")
        if conversation.binary is None:
            named = ", ".join(sorted(conversation.returns)) or "nothing"
            raise wrong(f"returns is {named}; a binary frame holds one array: name one in returns", "returns")
        inputs = np.frombuffer(data, "<f4").reshape(-1, width).astype(np.float32, copy=False)
        parts = range(0, len(inputs), MAX_BLOCK_STEPS)
        blocks = [inputs[begin : begin + MAX_BLOCK_STEPS] for begin in parts]
        return [Frame([self._frames] * len(block), inputs=block) for block in blocks]

    async def _open(self, message: Mapping[str, Any]) -> Conversation:
        self._conversation = await self._opener.open(self._exchange, message)
        return self._conversation

    async def _answer(self, block: list[Frame]) -> None:
        """Run frames of one kind together, and answer each by one frame once all of its steps have run."""
        conversation = self._conversation
        if not block or conversation is None:
            return
        sizes = deque(len(frame.places) for frame in block)
        if block[0].lines is not None:
            await self._answer_lines(block, conversation, sizes)
        else:
            await self._answer_arrays(block, conversation, sizes)

    async def _answer_lines(self, block: list[Frame], conversation: Conversation, sizes: deque[int]) -> None:
        lines = [line for frame in block for line in frame.lines or ()]
        places = [place for frame in block for place in frame.places]
        ready: list[bytes] = []

        async def send(answers: list[bytes]) -> None:
            ready.extend(answers)
            taken = 0
            while sizes and len(ready) - taken >= sizes[0]:
                begin, taken = taken, taken + sizes.popleft()
                await _send(self._exchange, {"text": b"".join(ready[begin:taken]).decode()})
            del ready[:taken]

        try:
            await conversation.answer(lines, places, send)
        except ServiceError:
            if ready:  # the steps of the same frame before the one that failed
                await _send(self._exchange, {"text": b"".join(ready).decode()})
            raise

    async def _answer_arrays(self, block: list[Frame], conversation: Conversation, sizes: deque[int]) -> None:
        inputs = [frame.inputs for frame in block if frame.inputs is not None]
        together = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        frames = [place for frame in block for place in frame.places]
        ready = b""

        async def take(ran: Steps) -> None:
            nonlocal ready
            values = conversation.array(ran)
            width = values.nbytes // ran.count
            ready += values.tobytes()
            taken = 0
            while sizes and len(ready) - taken >= sizes[0] * width:
                begin, taken = taken, taken + sizes.popleft() * width
                await _send(self._exchange, {"bytes": ready[begin:taken]})
            ready = ready[taken:]

        numbers: list[int | None] = [None] * len(frames)
        try:
            await conversation.run(together, numbers, lambda step: f"frame {frames[step]}", take, finite=False)
        except ServiceError:
            if ready:
                await _send(self._exchange, {"bytes": ready})
            raise


async def _accept(exchange: Exchange) -> None:
    accept: Message = {
        "type": "websocket.accept",
        "headers": [(b"x-request-id", exchange.request_id.encode())],
        "subprotocol": SUBPROTOCOL if SUBPROTOCOL in exchange.scope.get("subprotocols", ()) else None,
    }
    exchange.status = SWITCHING_PROTOCOLS
    await exchange.send(accept)


async def _send(exchange: Exchange, frame: dict[str, Any]) -> None:
    """Send a frame. Raises ClientGone."""
    exchange.sent_bytes += len(frame.get("text") or frame.get("bytes") or b"")
    try:
        await exchange.send({"type": "websocket.send"} | frame)
    except OSError:  # what ASGI servers raise once the client is gone
        raise ClientGone from None


async def _close(exchange: Exchange, code: int, reason: str) -> None:
    try:
        await exchange.send({"type": "websocket.close", "code": code, "reason": reason})
    except OSError:
        raise ClientGone from None
