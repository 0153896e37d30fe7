"""Reading request bodies: decompressed, and bounded in size, in time, and in the bytes of all bodies together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from io import BytesIO
from math import inf

from starlette.types import Receive

from service.api.encodings import decompressed
from service.api.readiness import Draining
from service.api.request import Request
from service.errors import BodyTimeout, BodyTooLarge, ClientGone, ServiceDraining, ServiceFull
from service.serving.inference import CLIENT_SHARE

LINGER_SECONDS = 2.0
LINGER_BYTES = 8 * 2**20
"""How long, and for how many bytes, a body is read on after its request was refused: a client that is still sending
would otherwise lose the reply that says why."""

LONGEST_GRACES = 60  # a body may take so many times the grace, however quickly it comes


class Incoming:
    """A request's body as ASGI brings it; `complete` once all of it has come or the client has gone."""

    def __init__(self, request: Request, receive: Receive) -> None:
        self.request = request
        self._receive = receive
        self.complete = False

    async def chunks(self, limit: float = inf) -> AsyncIterator[bytes]:
        """What arrives, as it was sent. Raises ClientGone, and BodyTooLarge beyond `limit` bytes."""
        request = self.request
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.complete = True
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            request.received_bytes += len(chunk)
            self.complete = not message.get("more_body", False)
            if request.received_bytes > limit:
                raise BodyTooLarge(f"the body has more than {limit} bytes, which is the limit")
            if chunk:
                yield chunk

    def pieces(self, limit: float = inf) -> AsyncIterator[bytes]:
        """What arrives, decompressed; limit is of the bytes before that. Raises also what `decompressed` does."""
        encoding = self.request.header(b"content-encoding").strip().lower()
        chunks = self.chunks(limit)
        return chunks if encoding in ("", "identity") else decompressed(encoding, chunks)

    async def hung_up(self) -> None:
        """Return when the client has gone. For a body that is complete."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def linger(self) -> None:
        """Read on for a moment and throw away what comes."""
        last = self.request.received_bytes + LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                async for _ in self.chunks(last):
                    pass
        except (TimeoutError, ClientGone, BodyTooLarge):
            pass


class BodyBudget:
    """The bytes of all bodies in the process, from their arrival to the end of their replies.

    At the bound, only the body that began first among the unfinished ones is read on: it always gets to its end. While
    one waits for room, no more bodies are begun; where only its client's share is full, no more of that client.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_of_client = CLIENT_SHARE * max_bytes
        self._held: dict[Request, int] = {}
        self._of_client: Counter[str] = Counter()
        self._unfinished: dict[Request, None] = {}
        self._changed = asyncio.Event()
        self._waiting: Counter[str | None] = Counter()  # by client; None: for room in what all share
        self.bytes = 0

    def begin(self, request: Request) -> None:
        """A body is about to be read; `finish` and `release` come later. Raises ServiceFull."""
        if self._waiting[None] or self._waiting[request.client]:
            raise _full()
        self._held[request] = 0
        self._unfinished[request] = None

    def has_room(self, request: Request, size: int) -> bool:
        """Whether so much more of this body may be held now."""
        held = self._of_client[request.client]
        fits = self.bytes + size <= self._max_bytes and held + size <= self._max_of_client
        return fits or next(iter(self._unfinished)) is request

    async def grow(self, request: Request, size: int) -> None:
        """Hold so much more of a body, when there is room."""
        while not self.has_room(request, size):
            full = None if self.bytes + size > self._max_bytes else request.client
            self._waiting[full] += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= Counter((full,))
        self.bytes += size
        self._held[request] += size
        self._of_client[request.client] += size

    def finish(self, request: Request) -> None:
        """All of a body has come, or no more is waited for."""
        self._unfinished.pop(request, None)
        self._changed.set()
        self._changed.clear()

    def release(self, request: Request) -> None:
        """The request is over, and its body need not be held any more."""
        if (size := self._held.pop(request, None)) is not None:
            self.bytes -= size
            self._of_client[request.client] -= size
            if not self._of_client[request.client]:
                del self._of_client[request.client]
            self.finish(request)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Reads whole bodies: a body may take `grace_seconds`, and beyond that its bytes at `min_bytes_per_second`.

    It may wait `grace_seconds` for room, and all of it comes within `LONGEST_GRACES` times that.
    """

    max_bytes: int
    grace_seconds: float
    min_bytes_per_second: float
    budget: BodyBudget
    draining: Draining = field(default_factory=Draining)

    def refuse_too_large(self, request: Request) -> None:
        """Raise BodyTooLarge by what the head says, or what has come already."""
        size = max(request.declared_bytes, len(request.body))
        if size > self.max_bytes:
            raise BodyTooLarge(f"the body has {size} bytes; the limit is {self.max_bytes}")

    async def read(self, request: Request, incoming: Incoming) -> bytes:
        """The whole body, decompressed; it counts in the budget until that is told to release it.

        Raises BodyTooLarge, BodyTimeout, ServiceFull, ServiceDraining, or as `Incoming.pieces` does.
        """
        body = BytesIO()  # one block of memory, which grows, and no copy at the end
        total = 0
        waiting = False
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.budget.begin(request)
        try:
            async with asyncio.timeout_at(begun + self.grace_seconds) as deadline:
                self.draining.waiting.add(deadline)
                async for piece in incoming.pieces(self.max_bytes):
                    total += len(piece)
                    if total > self.max_bytes:
                        raise BodyTooLarge(f"the body has more than {self.max_bytes} bytes, which is the limit")
                    if waiting := not self.budget.has_room(request, len(piece)):
                        deadline.reschedule(loop.time() + self.grace_seconds)
                    await self.budget.grow(request, len(piece))
                    waiting = False
                    body.write(piece)
                    if not incoming.complete:
                        allowed = self.grace_seconds + request.received_bytes / self.min_bytes_per_second
                        deadline.reschedule(begun + min(allowed, LONGEST_GRACES * self.grace_seconds))
        except TimeoutError:
            if self.draining.started:
                message = "the service is shutting down and does not wait for the rest of this body"
                raise ServiceDraining(message) from None
            if waiting or incoming.complete:
                raise _full() from None
            rate = f"{self.grace_seconds:g} s and {self.min_bytes_per_second:g} bytes/s"
            message = f"the body came more slowly than {rate}; {request.received_bytes} bytes had arrived"
            raise BodyTimeout(message) from None
        finally:
            self.draining.waiting.discard(deadline)
            self.budget.finish(request)
        return body.getvalue()


def _full() -> ServiceFull:
    return ServiceFull("bodies of the service, or of this client, fill their memory; try again in a second")
