"""Taking connections from a listening socket that several workers share, so that each gets about as many.

The kernel wakes whoever waits, and the event loop's own server takes at once all that have arrived: of a few
connections that come together, one worker often gets all. Here a worker takes one at a time, and leaves it to the
others for a while if one of them has fewer.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvloop

from service.server.board import Board

LOOK_SECONDS = 0.001
"""Until a worker that left a connection to others looks whether it is still there."""

PATIENCE_SECONDS = 0.05
"""How long it does that; a worker that is parsing a large body takes nothing meanwhile."""

MANY = 16
"""For each so many connections that it has, a worker takes one more at a time: then they are shared out anyway."""

RETRY_SECONDS = 0.1
"""Until the next try where a connection cannot be taken: no file descriptor is free."""


class SharingLoop(uvloop.Loop):
    """An event loop whose servers share their sockets with those of other processes, which have the same `board`."""

    def __init__(self, board: Path) -> None:
        super().__init__()
        self._board = board

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """As in asyncio; a server on a socket that is there already takes few connections at a time."""
        sock, backlog = options.get("sock"), options.get("backlog", 100)
        if sock is None or options.get("ssl") is not None:
            return await super().create_server(protocol_factory, *args, **options)
        return Acceptor(self, sock, protocol_factory, backlog, Board(self._board))


class Connections(set[Any]):
    """The open connections of this process, whose number the others are shown."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def add(self, connection: Any) -> None:
        """One is open."""
        super().add(connection)
        self._board.show(len(self))

    def discard(self, connection: Any) -> None:
        """One is closed."""
        super().discard(connection)
        self._board.show(len(self))


class Acceptor:
    """A server on a shared socket, for uvicorn's protocols."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], Any],
        backlog: int,
        board: Board,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._factory = factory
        self._board = board
        self._connections = Connections(board)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(backlog)
        board.show(0)
        # uvicorn's protocols have the server's state, which the loop is not given.
        factory().server_state.connections = self._connections
        self._wait()

    def close(self) -> None:
        """Take no more connections."""
        if self._timer is None:
            self._loop.remove_reader(self._listener)
        else:
            self._timer.cancel()
        self._board.leave()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for: uvicorn waits for the connections itself."""

    def _wait(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._arrived)

    def _arrived(self) -> None:
        self._loop.remove_reader(self._listener)
        self._take_or_leave(round(PATIENCE_SECONDS / LOOK_SECONDS))

    def _take_or_leave(self, looks: int) -> None:
        """Take a connection; while another worker has fewer, leave it to that one, and look again so many times."""
        count = self._count()
        fewest = self._board.fewest()
        if looks and fewest is not None and fewest < count:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._take_or_leave, looks - 1)
            return
        if not looks:
            self._board.strike()
        self._take()

    def _take(self) -> None:
        for _ in range(1 + self._count() // MANY):
            try:
                connection, _address = self._listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another was quicker; it has gone
                break
            except OSError as error:
                structlog.get_logger().error("connection_not_taken", reason=str(error))
                self._timer = self._loop.call_later(RETRY_SECONDS, self._wait)
                return
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._factory, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._board.show(self._count())
        self._wait()

    def _count(self) -> int:
        """Connections of this worker, and those that are about to be."""
        return len(self._connections) + len(self._tasks)
