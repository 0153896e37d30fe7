"""A real Valkey (or Redis) server on a port of its own."""

import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
START_SECONDS = 20.0


@dataclass
class Server:
    """Keeps what it holds in an append-only file in `folder`, so that it can be stopped and started."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default=0)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        while not 0 < self.port < 55_536:  # a cluster's server takes the port 10,000 above, too
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        assert PROGRAM
        settings = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, *settings, "--appendonly", "yes", *self.options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(START_SECONDS)
            self.process = None

    def _answers(self) -> bool:
        """Ready, and done with reading its file; or wanting a password, which is an answer, too."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
