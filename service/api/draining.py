"""The end of the process as whoever waits for a client sees it: a stream for its next line, a request for its body."""

import asyncio
from contextlib import suppress


class Draining:
    """Whether the process is going down, and who waits for a client meanwhile.

    They wait inside an `asyncio.timeout` of their own, registered here; starting to drain makes it due.
    """

    def __init__(self) -> None:
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()

    def start(self) -> None:
        """Stop being ready, and wake everybody who waits."""
        self.started = True
        for patience in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                patience.reschedule(asyncio.get_running_loop().time())
