"""The rest of a large body, read from the socket straight to where it is wanted.

    socket ──► room
    socket ──► uvloop's buffer ──► bytes ──► parser ──► bytes ──► cycle.body ──► bytes ──► one of many pieces ──► body

uvicorn's way, the second, copies a body five times and pauses the connection at every 64 KiB. Here the connection's
protocol is exchanged for one that has the room, and the parser is left out: of a body of known length it knows nothing
that counting does not. The room grows with what arrives, to twice that at most: a head alone takes nothing.
"""

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING

from service.errors import ClientGone

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from service.server.connection import GuardedProtocol

LEAST_ROOM_BYTES = 2**20

LANDED_FROM_BYTES = 256 * 1024
"""Whoever answers before all of a smaller body has come keeps the connection, and its parser with it."""


class Rest:
    """A request of which a part of a body of known length has come, and the way to the rest of it."""

    __slots__ = ("_connection", "_cycle", "_landing", "_size")

    def __init__(self, connection: "GuardedProtocol", cycle: "RequestResponseCycle", size: int) -> None:
        self._connection = connection
        self._cycle = cycle
        self._size = size
        self._landing: Landing | None = None

    @property
    def received(self) -> int:
        """Bytes of the body that have come, once it has `begun`."""
        return self._landing.filled if self._landing else len(self._cycle.body)

    def begin(self) -> bool:
        """Let what comes go where the body is wanted; False if all of it is here, or the client has gone already."""
        cycle = self._cycle
        if not cycle.more_body or cycle.disconnected or self._connection.transport.is_closing():
            return False
        self._landing = Landing(self._connection, self._size, cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        self._connection.hand_over(self._landing)
        return True

    async def arrived(self) -> bytes:
        """The body, when it is whole. Raises ClientGone."""
        cycle = self._cycle
        await cycle.message_event.wait()
        landing, self._landing = self._landing, None
        if cycle.disconnected or landing is None or landing.filled < self._size:
            raise ClientGone
        del cycle.scope["extensions"]  # which has this: the collector need not find the circle
        return landing.body.getvalue()


class Landing(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol until its room is full."""

    def __init__(self, connection: "GuardedProtocol", size: int, came: bytearray) -> None:
        self._connection = connection
        self._size = size
        self.body = BytesIO()
        self.filled = self.body.write(came)
        self._room = self.body.getbuffer()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the contract of asyncio
        """Where the next bytes go: never beyond the body."""
        if self.filled == len(self._room):
            self._room.release()
            self.body.seek(min(self._size, max(LEAST_ROOM_BYTES, 2 * self.filled)) - 1)
            self.body.write(b"\0")
            self._room = self.body.getbuffer()
        return self._room[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Count; at the end, the connection goes on as it was."""
        self.filled += nbytes
        if self.filled == self._size:
            self._room.release()
            self._connection.take_back()

    def eof_received(self) -> None:
        """The client sends no more, and its connection is closed."""
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._connection.resume_writing()


def rest_of(connection: "GuardedProtocol", cycle: "RequestResponseCycle") -> Rest | None:
    """The rest of a request's body, if it is known to be large, and is on its way."""
    length = next((value for name, value in cycle.scope["headers"] if name == b"content-length"), b"")
    if not length.isdigit() or int(length) <= LANDED_FROM_BYTES or cycle.waiting_for_100_continue:
        return None
    return Rest(connection, cycle, int(length))
