"""Taking connections from a listening socket that several workers share, so that each gets about as many.

The kernel wakes every worker that waits, and the event loop's own server takes at once all connections that have
arrived: of a few that come together, one worker often gets all. Here a worker takes one at a time, and rests the longer
the more it has. The socket is the supervisor's: a worker that is replaced resets nothing that waits in it.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import structlog
import uvloop

from service.repeats import OnceAMinute

REST_SECONDS = 0.0005
MAX_REST_SECONDS = 0.005
"""For each connection that a worker has, it rests so long before it takes another; at most so long in all."""

MANY = 16
"""For each so many connections that it has, a worker takes one more at a time: then they are shared out anyway."""

RETRY_SECONDS = 0.1  # until the next try where a connection cannot be taken: no file descriptor is free


class SharingLoop(uvloop.Loop):
    """An event loop whose servers share their sockets with those of other processes."""

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        sock = options.get("sock")
        if sock is None:
            return await super().create_server(protocol_factory, *args, **options)
        return Acceptor(self, sock, protocol_factory, options.get("backlog", 100))


class Acceptor:
    """A server on a shared socket, for uvicorn's protocols."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, factory: Callable[[], Any], backlog: int
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._factory = factory
        # uvicorn's protocols have the server's state, which the loop is not given.
        self._connections = factory().server_state.connections
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._failing = OnceAMinute()
        listener.setblocking(False)
        listener.listen(backlog)
        loop.add_reader(listener, self._take)

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for: uvicorn waits for the connections itself."""

    def _take(self) -> None:
        self._loop.remove_reader(self._listener)
        count = len(self._connections) + len(self._tasks)
        rest = min(MAX_REST_SECONDS, REST_SECONDS * (1 + count))
        try:
            for _ in range(1 + count // MANY):
                connection, _address = self._listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = self._loop.create_task(self._loop.connect_accepted_socket(self._factory, connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass  # another worker was quicker, or the client has gone
        except OSError as error:
            if self._failing.is_due():
                structlog.get_logger().error("connection_not_taken", reason=str(error))
            rest = RETRY_SECONDS
        self._timer = self._loop.call_later(rest, self._loop.add_reader, self._listener, self._take)
