"""How much the process takes on at once, decided before a body is read: what is refused costs nearly nothing."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from service.errors import ClientFull, ServiceFull

HEAVY_BYTES = 64 * 1024
"""Bodies and replies from here on take a noticeable time to decode or encode."""


CLIENT_SHARE = 0.75
"""Of all places, what one client may take: the others always find some."""


class Admission:
    """Requests under way, from their headers to the end of their reply, bounded in number and in bytes of their bodies.

    `heavy` is held while a large body is decoded or encoded on the event loop: one a turn of the loop, so that small
    requests and refusals come in between. `slicing` is held by the one document that is decoded or encoded in slices,
    to its last.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_of_client = ceil(CLIENT_SHARE * max_requests)
        self._of_client: Counter[str] = Counter()
        self._kept: Counter[tuple[str, int]] = Counter()
        self.heavy = asyncio.Lock()
        self.slicing = asyncio.Lock()
        self.requests = 0
        self.bytes = 0
        # Whether a request might be refused: while this is false, no small one is. Read at every head.
        self.crowded = False

    def check(self, client: str, size: int) -> None:
        """Say whether a client's request with a body of so many bytes would be taken on.

        A body that is alone is always taken: the limit on one body is another's business. Raises ServiceFull, or
        ClientFull if there is room, but not for this client.
        """
        if self.requests >= self._max_requests or (self.requests and self.bytes + size > self._max_bytes):
            raise ServiceFull(f"{self.requests} requests are under way; try again in a second")
        if (held := self._of_client[client]) >= self._max_of_client:
            raise ClientFull(f"{held} of this client's requests are under way; try again in a second")

    def keep(self, client: str, size: int) -> None:
        """Take a request on whose handler has begun to run, and entered, before the next turn of the event loop ends.

        Many heads may be read in one turn, before the first of their handlers runs. Raises as `check` does.
        """
        self.check(client, size)
        self._take(client, size)
        if not self._kept:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._give_up_kept)
        self._kept[client, size] += 1

    @contextmanager
    def enter(self, client: str, size: int) -> Iterator[None]:
        """Take a request on, unless its place was kept, for as long as the context lasts. Raises as `check` does."""
        if self._kept[client, size]:
            self._kept[client, size] -= 1
            if not self._kept[client, size]:
                del self._kept[client, size]  # the next one that is kept sets a new time to give up
        else:
            self.check(client, size)
            self._take(client, size)
        try:
            yield
        finally:
            self._give_back(client, size)

    def _take(self, client: str, size: int) -> None:
        self.requests += 1
        self.bytes += size
        self._of_client[client] += 1
        self._look()

    def _give_back(self, client: str, size: int) -> None:
        self.requests -= 1
        self.bytes -= size
        self._look()
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    def _look(self) -> None:
        self.crowded = self.requests >= max(1, self._max_requests // 2) or self.bytes >= self._max_bytes // 2

    def _give_up_kept(self) -> None:
        """Those whose handlers have not come by now never will: their clients are gone, say."""
        for client, size in self._kept.elements():
            self._give_back(client, size)
        self._kept.clear()
