"""The end of the process as whoever waits for a client sees it: a stream for its next line, a request for its body."""

import asyncio
from contextlib import suppress
from typing import Protocol


class Wait(Protocol):
    """What can be made due at a time of the loop; an `asyncio.Timeout` is one."""

    def reschedule(self, when: float) -> None:
        """End at that time."""


class Draining:
    """Whether the process is going down, and who waits for a client meanwhile.

    They wait inside a `Wait` of their own, registered here; starting to drain makes it due.
    """

    def __init__(self) -> None:
        self.started = False
        self.waiting: set[Wait] = set()

    def start(self) -> None:
        """Stop being ready, and wake everybody who waits."""
        self.started = True
        for wait in list(self.waiting):
            with suppress(RuntimeError):  # it is due already, in this very turn of the loop
                wait.reschedule(asyncio.get_running_loop().time())
