"""How much the process takes on at once, decided before a body is read: what is refused costs nearly nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ServiceFull

HEAVY_BYTES = 64 * 1024
"""Bodies and replies from here on take a noticeable time to decode or encode."""


class Admission:
    """Requests under way, from their headers to the end of their reply, bounded in number and in bytes of their bodies.

    `heavy` is held while a large body is decoded or encoded on the event loop: one a turn of the loop, so that small
    requests and refusals come in between.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.heavy = asyncio.Lock()
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Take a request with a body of so many bytes on, for as long as the context lasts. Raises ServiceFull.

        A body that is alone is always taken: the limit on one body is another's business.
        """
        if self.requests >= self._max_requests or (self.requests and self.bytes + size > self._max_bytes):
            raise ServiceFull(f"{self.requests} requests are under way; try again in a second")
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
