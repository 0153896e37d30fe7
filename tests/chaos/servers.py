"""Valkey, or Redis, as a process that can be killed and started again with its data."""

import shutil
import socket
import subprocess
from pathlib import Path

from tests.e2e.running import until

NAME = shutil.which("valkey-server") or shutil.which("redis-server")
CLI = shutil.which("valkey-cli") or shutil.which("redis-cli")


class KeyValueServer:
    """A server on a fixed port, with an append-only file."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["--port", str(self.port), "--dir", str(self._folder), "--save", "", "--appendonly", "yes"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([str(NAME), *options], stdout=log, stderr=log)
        until(self._answers, "the key-value server answers")

    def kill(self) -> None:
        """As a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As an operator does, if it is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def _answers(self) -> bool:
        done = subprocess.run([str(CLI), "-p", str(self.port), "ping"], capture_output=True, check=False)
        return b"PONG" in done.stdout


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
