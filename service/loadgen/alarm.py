"""A timer of the kernel's in an event loop, whose own timers are rounded to milliseconds (uvloop's and asyncio's are).

Source: timerfd_create(2). `os.timerfd_create` came with Python 3.13.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

CLOCK_MONOTONIC = 1
NANOSECONDS = 1_000_000_000


class Alarm:
    """Calls back once after so many seconds. Not set, it sleeps; setting it again replaces the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop, self._ring = loop, ring
        loop.add_reader(self._descriptor, self._read)

    def set(self, seconds: float) -> None:
        """Ring after so many seconds; at once if they are not positive."""
        whole, rest = divmod(max(1, int(seconds * NANOSECONDS)), NANOSECONDS)
        # struct itimerspec: the interval (0: ring once), then the time to the first ring
        times = (ctypes.c_long * 4)(0, 0, whole, rest)
        self._checked(self._libc.timerfd_settime(self._descriptor, 0, times, None))

    def close(self) -> None:
        """Never ring again."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:  # it was set again in the same turn of the loop
            return
        self._ring()

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
