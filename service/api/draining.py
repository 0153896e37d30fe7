"""The end of the process as its streams see it: they are told, answer what they can, and stop."""

import asyncio


class Draining:
    """Whether the process is going down, and the streams that wait for their clients meanwhile.

    A stream waits inside an `asyncio.timeout` of its own, registered here; starting to drain makes it due.
    """

    def __init__(self) -> None:
        self.started = False
        self.waiting: set[asyncio.Timeout] = set()

    def start(self) -> None:
        """Stop being ready, and wake every stream that waits."""
        self.started = True
        for patience in list(self.waiting):
            patience.reschedule(asyncio.get_running_loop().time())
