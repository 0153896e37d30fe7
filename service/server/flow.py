"""The pace of a connection: how much is parsed in one turn and read, and whether a client reads what it is sent."""

import asyncio
import fcntl
import termios
from array import array
from collections.abc import Callable, Sized
from functools import partial
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

CHECK_SECONDS = 5.0

TURN_SECONDS = 1e-3  # of parsing, and of what is done in it, before other connections have their turn
SLICE_BYTES = 1024  # parsed between two looks at the clock: some fifty requests, or 170 frames


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
    """Pauses while a pipelined request waits for the one before it, or a body for the application.

    uvicorn wants to resume after every reply.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized, go_on: Callable[[], None]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self._go_on = go_on

    def pause_reading(self) -> None:
        self.read_paused = True

    def resume_reading(self) -> None:
        if self.read_paused and not self._pipeline:
            self.read_paused = False
            self._go_on()


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


class Paced(asyncio.Protocol):
    """A connection that is parsed in turns, and whose client must read.

    What was read is parsed slice by slice. Nothing more is read before all of it is parsed.
    """

    config: Any  # `server.process.Config`
    flow: Any
    transport: Any
    loop: asyncio.AbstractEventLoop
    _parse: Callable[[memoryview], int]  # a slice; gives how many bytes of a body still come, which need no slices
    _drop: Callable[[str], None]  # cuts the connection for a reason

    _unparsed = memoryview(b"")
    _turn: asyncio.Handle | None = None
    _reads = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        stalled = partial(self._drop, "reader_too_slow")
        self._watch = ReaderWatch(transport, self.loop, self.config.min_bytes_per_second, stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.stop()
        self._unparsed = memoryview(b"")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch.caught_up()

    def data_received(self, data: bytes) -> None:
        """Parse for a turn, and the rest in later ones."""
        # Something is unparsed only if this was read before reading was paused.
        self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        if self._turn is None:
            self._run()

    def _has_room(self) -> bool:
        """Whether to parse on."""
        return not self.flow.read_paused

    def _wants_more(self) -> bool:
        """Whether to read on, once all is parsed."""
        return self._has_room()

    def _go_on(self) -> None:
        """There may be room again."""
        if self._unparsed and self._turn is None and self._has_room():
            self._turn = self.loop.call_soon(self._run)
        self._pace()

    def _run(self) -> None:
        self._turn = None
        end = perf_counter() + TURN_SECONDS
        size = SLICE_BYTES
        while self._unparsed and self._has_room() and not self.transport.is_closing():
            data, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            size = max(SLICE_BYTES, self._parse(data))
            if self._unparsed and perf_counter() > end:
                self._turn = self.loop.call_soon(self._run)
                break
        self._pace()

    def _pace(self) -> None:
        """Pause or resume reading if need be: each is a system call."""
        reads = not self._unparsed and self._wants_more()
        if reads != self._reads and not self.transport.is_closing():
            self._reads = reads
            (self.transport.resume_reading if reads else self.transport.pause_reading)()
