"""The service as a process with a port of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("RNN_TEST_TREE", ROOT))
"""The checkout whose service is tested; tests and their expectations are always this checkout's."""

# Limits for a machine that is busy with other work: only a test that fails waits so long.
START_SECONDS = 120.0
STOP_SECONDS = 60.0
ANSWER_SECONDS = 60.0

# What the log holds only if the service itself has failed.
SIGNS_OF_FAILURE = ("internal_error", "Traceback", "Exception in ASGI application", "Unclosed", "never awaited")


def until(condition: Callable[[], Any], what: str, seconds: float = ANSWER_SECONDS, every: float = 0.02) -> Any:
    """Poll a condition until it is true and return its value. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Service:
    """A running service: its port, process and log."""

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

    def holds(self, port: int) -> bool:
        """Whether the process still holds the connection of a client's port."""
        return any(held.raddr and held.raddr.port == port for held in self.process.net_connections("tcp"))

    def log(self) -> str:
        return self.log_file.read_text()

    def logged(self, text: str) -> list[dict[str, Any]]:
        """Entries of the JSON log whose line contains a text."""
        return [json.loads(line) for line in self.log().splitlines() if text in line]

    def metrics(self) -> dict[str, float]:
        """Values by name and labels, as in `rnn_steps_total{model="tanh"}`."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if it has no sample yet."""
        return sum(value for sample, value in self.metrics().items() if sample.split("{")[0] == name)

    @cached_property
    def _http(self) -> httpx.Client:
        """Shared, as making a client takes longer than a call; it keeps no connection."""
        return self.client(limits=httpx.Limits(max_keepalive_connections=0))

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS, trust_env=False, verify=False, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(self.url + path, **options)

    def post(self, path: str, document: Any = None, **options: Any) -> httpx.Response:
        if document is not None:
            options["json"] = document
        return self._http.post(self.url + path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self._http.delete(self.url + path, **options)

    def signal_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop by SIGTERM; check the exit code and the log."""
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


def start(models: Path, folder: Path, *, stdout: int | None = None, wait: bool = True, **settings: Any) -> Service:
    """Start the service on a free port and wait until it is ready. Settings by their names in `Settings`.

    stdout: a descriptor in place of the log's file. wait False: until it listens.
    """
    command = [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", "0"]
    return start_command(command, folder, environment(**settings), stdout=stdout, wait=wait)


@contextmanager
def replicas(models: Path, folder: Path, *, count: int = 2, **settings: Any) -> Iterator[list[Service]]:
    """Services with the same settings, each with its log in a folder of its own."""
    with ExitStack() as stack:
        started: list[Service] = []
        for number in range(count):
            started.append(start(models, folder / f"service-{number}", **settings))
            stack.callback(started[-1].stop)
        yield started


def start_command(
    command: list[str], folder: Path, variables: dict[str, str], *, stdout: int | None = None, wait: bool = True
) -> Service:
    """Start a service by a command that has it listen on a free port; otherwise as `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "service.log"
    with log_file.open("w") as log:
        process = psutil.Popen(
            command,
            cwd=folder,  # no .env of the developer's
            env=variables,
            stdout=log if stdout is None else stdout,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, log_file)
    try:
        service.port = until(lambda: _listening(service), "the service listens", START_SECONDS)
        until(lambda: not wait or service.get("/health/ready").status_code == 200, "it is ready", START_SECONDS)
    except BaseException as error:
        process.kill()
        process.wait()
        error.add_note(service.log()[-4000:])
        raise
    return service


def environment(**settings: Any) -> dict[str, str]:
    """Variables of a service process with these settings and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RNN_")}
    given = {f"RNN_{name.upper()}": str(value) for name, value in settings.items()}
    return clean | {"PYTHONPATH": str(TREE)} | given


def serve(folder: Path, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `rnn-service serve` to its end, as for a start that fails."""
    command = [sys.executable, "-m", "service", "serve", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**{"port": 0} | settings),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def _listening(service: Service) -> int:
    assert service.process.poll() is None, service.log()
    held = service.process.net_connections("tcp")
    return next((connection.laddr.port for connection in held if connection.status == psutil.CONN_LISTEN), 0)
