"""The end of the process as whoever waits for a client sees it: a stream for its next line, a request for its body."""

import asyncio
from contextlib import suppress


class Draining:
    """Whether the process is going down, and the timeouts of those who wait for a client, which starting makes due."""

    def __init__(self) -> None:
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()

    def start(self) -> None:
        self.started = True
        for timeout in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                timeout.reschedule(asyncio.get_running_loop().time())
