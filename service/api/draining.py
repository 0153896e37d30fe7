"""The end of the process as whoever waits for a client sees it: a stream for its next line, a request for its body."""

import asyncio
from contextlib import suppress


class Draining:
    """Whether the process is going down, and the timeouts inside which streams and bodies wait for a client.

    Starting to drain makes them due.
    """

    def __init__(self) -> None:
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()

    def start(self) -> None:
        """Stop being ready, and wake everybody who waits."""
        self.started = True
        for timeout in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                timeout.reschedule(asyncio.get_running_loop().time())
