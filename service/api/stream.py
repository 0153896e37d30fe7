"""POST /cell/step with `application/x-ndjson`: each line answered as soon as it has run, while the client still sends.

Lines that arrive together run as one block of steps: that is quicker and the numbers are the same.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.api.body import decompressed
from service.api.conversation import MAX_BLOCK_STEPS, Conversation
from service.api.exchange import Exchange
from service.api.lines import blocks, without_blanks
from service.api.negotiation import NDJSON, reply_format
from service.api.opening import Opener, opening_message
from service.api.patience import Listening, Patience
from service.api.places import error_line
from service.api.reply import linger
from service.errors import MalformedBody, ServiceError

MAX_LINE_BYTES = 2**20
MAX_BLANK_LINES = 10_000

_HEADERS = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True, slots=True)
class Stream:
    """The handler, and what it needs. A line must be complete as soon after the one before it as `patience` says."""

    opener: Opener
    patience: Patience

    async def __call__(self, exchange: Exchange) -> None:
        """Answer line by line. An error before the first answer is an ordinary problem; later it is the last line."""
        reply_format(exchange.header(b"accept"), [NDJSON], NDJSON)
        reply = _Reply(exchange)
        try:
            with self.patience.listening("line") as listening:
                await self._converse(exchange, listening, reply.send)
        except ServiceError as error:
            if not reply.begun:
                raise
            await reply.send([error_line(error, exchange)])
            await linger(exchange)  # closing now could cost the client what it has not read yet
        await reply.end()

    async def _converse(
        self, exchange: Exchange, listening: Listening, send: Callable[[list[bytes]], Awaitable[None]]
    ) -> None:
        """Send answers when they are ready, one or more lines at a time. Raises what the client is to be told."""
        conversation: Conversation | None = None
        number = blank = 0
        arriving = blocks(decompressed(exchange), MAX_LINE_BYTES)

        def arrive() -> Awaitable[list[bytes] | None]:
            return anext(arriving, None)

        while (block := await listening.wait(arrive)) is not None:
            lines: Sequence[bytes] = block
            places: Sequence[int] = range(number + 1, number + 1 + len(block))
            number += len(block)
            if not all(lines) or any(map(bytes.isspace, lines)):
                lines, places = without_blanks(lines, places)
                blank += len(block) - len(lines)
                if blank > MAX_BLANK_LINES:
                    raise MalformedBody(f"line {number}: the stream has more than {MAX_BLANK_LINES} blank lines")
            if not lines:
                continue
            if conversation is None:
                message = await opening_message(lines[0], places[0])
                conversation = await self.opener.open(exchange, message or {})
                if message is not None:
                    lines, places = lines[1:], places[1:]
            for begin in range(0, len(lines), MAX_BLOCK_STEPS):
                some = slice(begin, begin + MAX_BLOCK_STEPS)
                await conversation.answer(lines[some], places[some], send)


class _Reply:
    """The lines that answer; it begins with the first of them."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.begun = False

    async def send(self, lines: list[bytes]) -> None:
        if not self.begun:
            await self._begin()
        body = lines[0] if len(lines) == 1 else b"".join(lines)
        self._exchange.sent_bytes += len(body)
        await self._exchange.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        if not self.begun:
            await self._begin()
        await self._exchange.send({"type": "http.response.body", "body": b""})

    async def _begin(self) -> None:
        self.begun = True
        self._exchange.status = 200
        headers = [*_HEADERS, (b"x-request-id", self._exchange.request_id.encode())]
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
