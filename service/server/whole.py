"""Requests that were read whole."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from service.server.connection import GuardedProtocol

AT_ONCE_BYTES = 64 * 1024
"""Bodies up to this are handled where they were read, if they came in one read with their headers."""


class Whole:
    """A request that was read whole, and the short way for a whole reply: one write, of bytes that are ready."""

    __slots__ = ("_connection", "_cycle", "body")

    def __init__(self, connection: "GuardedProtocol", cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self.body = bytes(cycle.body)

    def reply(self, status: int, headers: bytes, body: bytes | memoryview) -> bool:
        """Send a reply, its header lines spelt out; False if it must go the long way, by ASGI's `send`.

        That is so where the connection will be closed, the client is slow, or something has been sent already.
        """
        connection, cycle = self._connection, self._cycle
        if (
            not cycle.keep_alive
            or cycle.response_started
            or cycle.disconnected
            or connection.flow.write_paused
            or cycle.waiting_for_100_continue
        ):
            return False
        connection.transport.send(  # type: ignore[attr-defined]  # JoinedWrites
            b"".join((STATUS_LINE[status], connection.default_lines(), headers, b"\r\n", body))
        )
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        del cycle.scope["extensions"]  # which has this: the collector need not find the circle
        connection.on_response_complete()
        return True
