"""POST /cell/step with `application/x-ndjson`: each line is answered as soon as it has run, while the client sends.

Lines that arrive together run as one block of steps: that is quicker and the numbers are the same.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial

from service.api.bodies import Incoming
from service.api.negotiation import NDJSON, reply_format
from service.api.request import Reply, Request
from service.api.streams.opening import Opener
from service.api.streams.step_stream import MAX_BLOCK_STEPS, IdleTimeout, StepStream
from service.errors import BodyTooLarge, MalformedBody

MAX_LINE_BYTES = 2**20
MAX_BLANK_LINES = 10_000


@dataclass(frozen=True, slots=True)
class NdjsonStreams:
    """The handler. Each line must be complete within the idle timeout after the one before it."""

    opener: Opener
    idle_timeout: IdleTimeout

    async def __call__(self, request: Request, incoming: Incoming) -> Reply:
        """The answers, line by line, while the body comes. Raises NotAcceptable."""
        reply_format(request.headers.get(b"accept", b""), NDJSON, (NDJSON,))
        return Reply(200, NDJSON.encode(), self._answers(request, lines_of(incoming.pieces(), MAX_LINE_BYTES)))

    async def _answers(self, request: Request, arriving: AsyncIterator[list[bytes]]) -> AsyncGenerator[bytes, None]:
        stream: StepStream | None = None
        count = blank = 0
        while arrived := await self.idle_timeout.wait(partial(anext, arriving, []), "line"):
            for begin in range(0, len(arrived), MAX_BLOCK_STEPS):
                lines = arrived[begin : begin + MAX_BLOCK_STEPS]
                placed = [(line, place) for place, line in enumerate(lines, count + 1) if line.strip()]
                count += len(lines)
                blank += len(lines) - len(placed)
                if blank > MAX_BLANK_LINES:
                    raise MalformedBody(f"line {count}: the stream has more than {MAX_BLANK_LINES} blank lines")
                if placed and stream is None:
                    stream, opens = await self.opener.open_by_line(request, *placed[0])
                    placed = placed[opens:]
                if placed and stream is not None:
                    block = await stream.decode(*zip(*placed, strict=True))
                    async for ran in stream.run(block):
                        yield b"".join(stream.lines(ran))


async def lines_of(body: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[list[bytes]]:
    """The complete lines of a body that arrive together. The last line may lack its newline.

    Raises BodyTooLarge as soon as a line has more than max_bytes, and what the body raises.
    """
    rest = bytearray()
    async for piece in body:
        lines: list[bytes] = []
        if b"\n" in piece:
            *lines, last = (bytes(rest) + piece if rest else piece).split(b"\n")
            rest = bytearray(last)
        else:
            rest += piece
        if max(len(rest), *map(len, lines), 0) > max_bytes:
            raise BodyTooLarge(f"a line has more than {max_bytes} bytes, which is the limit")
        if lines:
            yield lines
    if rest.strip():
        yield [bytes(rest)]
