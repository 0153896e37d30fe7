"""The pace of a connection: what is read of a pipeline, and whether a client reads what it is sent."""

import asyncio
import fcntl
import termios
from array import array
from collections.abc import Callable, Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

CHECK_SECONDS = 5.0


class Timer:
    """A call that is due some seconds after each start, unless it is cancelled before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._handle is not None

    def start(self) -> None:
        self.cancel()
        self._handle = self._loop.call_later(self._seconds, self._due)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()


class PipelineFlow(FlowControl):
    """Reads no further while pipelined requests wait for the one before them; uvicorn reads on after every reply."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class ReaderWatch:
    """Calls `stalled` if a client takes less than `min_bytes_per_second` of what is written, over `CHECK_SECONDS`.

    What the kernel holds counts as not taken, which may be megabytes.
    """

    def __init__(
        self, transport: Any, loop: asyncio.AbstractEventLoop, min_bytes_per_second: float, stalled: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._min_bytes = min_bytes_per_second * CHECK_SECONDS
        self._stalled = stalled
        self._timer = Timer(loop, CHECK_SECONDS, self._check)
        self._before = 0
        self._caught_up = False

    def start(self) -> None:
        """Check in a while, if more was written than the client takes."""
        if self._transport.get_write_buffer_size() and not self._timer.runs:
            self._caught_up = False
            self._before = self._unread()
            self._timer.start()

    def caught_up(self) -> None:
        """The client has taken nearly all of it."""
        self._caught_up = True

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        unread = self._unread()
        if not unread:
            return
        if self._caught_up or self._before - unread >= self._min_bytes:
            self.start()
        else:
            self._stalled()

    def _unread(self) -> int:
        waiting = array("i", [0])
        try:
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
        except OSError:  # closed meanwhile
            waiting[0] = 0
        return int(self._transport.get_write_buffer_size()) + waiting[0]
