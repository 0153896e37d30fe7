"""The end of the process, in two parts.

First it is announced: readiness fails, and everything is served as before, while load balancers look elsewhere. Then
it starts: whoever waits for a client (a stream for its next line, a request for its body) waits no longer.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Draining:
    """Whether the process is going down, and the timeouts of those who wait for a client, which starting makes due."""

    def __init__(self) -> None:
        self.announced = False
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()
        self._timer: asyncio.TimerHandle | None = None

    def announce(self, seconds: float, then: Callable[[], None]) -> None:
        """Start in `seconds`, or at once if it was announced before, and call `then`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(0 if self.announced else seconds, self._end, then)
        self.announced = True

    def _end(self, then: Callable[[], None]) -> None:
        self.start()
        then()

    def start(self) -> None:
        self.started = True
        for timeout in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                timeout.reschedule(asyncio.get_running_loop().time())
