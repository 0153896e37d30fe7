"""A real Valkey (or Redis) server on a port of its own."""

import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.running import until

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")


@dataclass
class Server:
    """Keeps what it holds in an append-only file in `folder`, so that it can be ended and started again."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default=0)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        while not 0 < self.port < 55_536:  # a cluster's server takes the port 10,000 above, too
            self.port = free_port()
        assert PROGRAM
        settings = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "")
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, *settings, "--appendonly", "yes", *self.options], stdout=log, stderr=log
            )
        until(self._answers, "the key-value server answers")

    def kill(self) -> None:
        """As a crash does."""
        self._end(subprocess.Popen.kill)

    def stop(self) -> None:
        """As an operator does, if it is running."""
        self._end(subprocess.Popen.terminate)

    def _end(self, how) -> None:
        if self.process is not None:
            how(self.process)
            self.process.wait(60)
            self.process = None

    def _answers(self) -> bool:
        """Ready, and done with reading its file; or wanting a password, which is an answer, too."""
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
