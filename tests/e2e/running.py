"""The service as a process of its own, on a port of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 30.0

# What says that the service failed rather than that it was told something wrong.
SIGNS_OF_FAILURE = ("internal_error", "Traceback", "Exception in ASGI application", "Unclosed", "never awaited")


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0, every: float = 0.02) -> Any:
    """Wait for a condition, and give what it gave. Fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Service:
    """A running service: where it listens, its process and its log."""

    process: psutil.Popen
    log_file: Path
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def rss_mib(self) -> float:
        return self.process.memory_info().rss / 2**20

    @property
    def connections(self) -> int:
        """Connections that the process holds open, in whatever state."""
        held = self.process.net_connections("tcp")
        return sum(connection.status != psutil.CONN_LISTEN for connection in held)

    def log(self) -> str:
        return self.log_file.read_text()

    @cached_property
    def _http(self) -> httpx.Client:
        """One client for all calls, as making one takes longer than a call; it keeps no connection."""
        return self.client(limits=httpx.Limits(max_keepalive_connections=0))

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(self.url + path, **options)

    def post(self, path: str, document: Any = None, **options: Any) -> httpx.Response:
        if document is not None:
            options["json"] = document
        return self._http.post(self.url + path, **options)

    def signal_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it as an operator would; it must obey, and must not have failed meanwhile."""
        if self.process.poll() is None:
            self.signal_to_stop()
        self.check_ended()

    def check_ended(self) -> None:
        self._http.close()
        try:
            code = self.process.wait(STOP_SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        assert code == 0, f"exit code {code}\n{self.log()[-4000:]}"
        for line in self.log().splitlines():
            assert not any(sign in line for sign in SIGNS_OF_FAILURE), line[:2000]


def start(models: Path, folder: Path, **settings: Any) -> Service:
    """Start the service on a free port and wait until it is ready. Settings by their names in `Settings`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RNN_")}
    ours = {f"RNN_{name.upper()}": str(value) for name, value in settings.items()}
    log_file = folder / "service.log"
    with log_file.open("w") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", "0"],
            cwd=folder,  # no .env of the developer's
            env=clean | {"PYTHONPATH": str(ROOT)} | ours,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, log_file)
    try:
        service.port = until(lambda: _listening(service), "the service listens", START_SECONDS)
        until(lambda: service.get("/health/ready").status_code == 200, "the service is ready", START_SECONDS)
    except BaseException as error:
        process.kill()
        process.wait()
        error.add_note(service.log()[-4000:])
        raise
    return service


def _listening(service: Service) -> int:
    assert service.process.poll() is None, service.log()
    held = service.process.net_connections("tcp")
    return next((connection.laddr.port for connection in held if connection.status == psutil.CONN_LISTEN), 0)
