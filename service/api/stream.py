"""POST /cell/step with `application/x-ndjson`: each line answered as soon as it has run, while the client still sends.

Lines that arrive together run as one block of steps: that is quicker and the numbers are the same.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from service.api.body import decompressed
from service.api.conversation import MAX_BLOCK_STEPS, Conversation
from service.api.exchange import Exchange
from service.api.lines import blocks, without_blanks
from service.api.negotiation import NDJSON, reply_format
from service.api.opening import Opener, opening_message
from service.api.patience import Patience
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
        begun = False
        try:
            async for answers in self._answers(exchange):
                if not begun:
                    await _begin(exchange)
                    begun = True
                body = b"".join(answers)
                exchange.sent_bytes += len(body)
                await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
        except ServiceError as error:
            if not begun:
                raise
            last = error_line(error, exchange)
            await exchange.send({"type": "http.response.body", "body": last, "more_body": True})
            await linger(exchange)  # closing now could cost the client what it has not read yet
        if not begun:
            await _begin(exchange)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _answers(self, exchange: Exchange) -> AsyncIterator[list[bytes]]:
        """Answers when they are ready, one or more lines at a time. Raises what the client is to be told."""
        conversation: Conversation | None = None
        number = blank = 0
        arriving = blocks(decompressed(exchange), MAX_LINE_BYTES)
        while (block := await self.patience.wait(lambda: anext(arriving, None), "line")) is not None:
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
                async for answers in conversation.answers(lines[some], places[some]):
                    yield answers


async def _begin(exchange: Exchange) -> None:
    exchange.status = 200
    headers = [*_HEADERS, (b"x-request-id", exchange.request_id.encode())]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
