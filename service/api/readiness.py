"""Whether requests should come here; and the end of the process, in two parts.

First the end is announced: readiness fails, and everything is served as before, while load balancers look elsewhere.
Then it starts: whoever waits for a client (a stream for its next line, a request for its body) waits no longer.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from service.stores.interface import SessionStore


class Draining:
    """Whether the process is going down, and the timeouts of those who wait for a client, which starting makes due."""

    def __init__(self) -> None:
        self.announced = False
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()
        self._timer: asyncio.TimerHandle | None = None

    def announce(self, seconds: float = 0, then: Callable[[], object] | None = None) -> None:
        """Start in `seconds`, or at once if it was announced before, and call `then`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(0 if self.announced else seconds, self._start, then)
        self.announced = True

    def _start(self, then: Callable[[], object] | None) -> None:
        self.started = True
        for timeout in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                timeout.reschedule(asyncio.get_running_loop().time())
        if then is not None:
            then()


@dataclass(frozen=True, slots=True)
class Readiness:
    """`starting` says what the start waits for, empty once it is over."""

    draining: Draining
    store: SessionStore
    starting: list[str]

    def reasons(self) -> list[str]:
        """Why the process is not ready; empty if it is."""
        lost = ["the file of the session store was removed, replaced or emptied"] if self.store.lost else []
        return ["shutting down"] * self.draining.announced + lost + self.starting
