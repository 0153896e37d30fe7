"""A TCP relay between a client and the service, whose connections a test can cut, or that cuts them by itself."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_RESET = struct.pack("ii", 1, 0)  # linger for no time: what is on its way is dropped


class Relay:
    """Listens on a port of its own and passes bytes both ways until it is told to cut.

    With `lives` each connection is cut after so many bytes, both ways counted, wherever in a message that is; the last
    ones live on.
    """

    def __init__(self, to_port: int, lives: Iterator[int] | None = None) -> None:
        self._to = ("127.0.0.1", to_port)
        self._lives = lives or iter(())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut
            while True:
                client, _ = self._listener.accept()
                pair = (client, socket.create_connection(self._to))
                self._pairs.append(pair)
                left = [next(self._lives, 2**62)]
                for ends in (pair, pair[::-1]):
                    self._threads.append(threading.Thread(target=self._pass_on, args=(*ends, left)))
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                through = data[: max(0, left[0])]
                left[0] -= len(data)
                target.sendall(through)
                if left[0] <= 0:
                    self.cut()
                    return
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset every connection, whatever is on its way."""
        pairs, self._pairs = self._pairs, []
        self.cuts += bool(pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):  # it has ended by itself
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        """Accept nothing more, and cut what there is."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
