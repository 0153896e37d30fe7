"""A server: how it is started, what it is sent, and the process while it runs."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from benchmarks.bodies import Call, Case

START_SECONDS = 90
STOP_SECONDS = 6
# Some rivals wait for their proxies' clients, of which there are none.
ALONE_STOP_SECONDS = 2
# A server that its own start keeps busy is given so long to come to rest.
REST_SECONDS = 6
LOOK_SECONDS, RESTING_CORES = 0.25, 0.08
# What a server that does not do its part may end in.
FAILURES = (RuntimeError, ValueError, OSError, httpx.HTTPError, psutil.Error, subprocess.SubprocessError)
# Servers end with the benchmark, even if that is killed.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to send a case to a server, and the cells that are measured with it (all, if none are named)."""

    name: str
    call: Callable[[Case], Call]
    cells: tuple[str, ...] = ()

    def speaks(self, cell: str) -> bool:
        """Whether the cell is measured in this dialect."""
        return not self.cells or cell in self.cells


@dataclass(frozen=True, slots=True)
class Server:
    """A line of the table.

    `command` and the values of `env` may use {port}, {models} (the model repository), {replies} (right answers to
    every cell) and {root} (this repository). `ready` answers 200 once requests are served. A server that is `alone` is
    started for its turn only, so that what its processes do when idle burdens no other. One that is `on_request` is
    measured only if it is named: another variant of it does better.
    """

    name: str
    command: tuple[str, ...]
    dialects: tuple[Dialect, ...]
    env: tuple[tuple[str, str], ...] = ()
    ready: str = "/health/ready"
    alone: bool = False
    on_request: bool = False


class Running:
    """A server's process tree on its port."""

    def __init__(self, server: Server, port: int, process: psutil.Process) -> None:
        self.server = server
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._idle_cores = 0.0

    def tree(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time that the tree has used so far."""
        return sum(sum(times[:2]) for times in self._each(psutil.Process.cpu_times))

    def resident_bytes(self) -> int:
        """Resident memory of the tree; pages that its processes share count once for each."""
        return sum(info.rss for info in self._each(psutil.Process.memory_info))

    def _each(self, ask: Callable[[psutil.Process], Any]) -> Iterator[Any]:
        """An answer of every process of the tree that is still there when it is asked."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                yield ask(process)

    def post(self, call: Call) -> bytes:
        """One request; raises on any status but 2xx."""
        headers = {"Content-Type": call.content_type}
        reply = httpx.post(self.url + call.path, content=call.body, headers=headers, timeout=120, trust_env=False)
        if not reply.is_success:
            raise RuntimeError(f"{self.server.name} answered {reply.status_code}: {reply.text[:500]}")
        return reply.content

    def settle(self, deadline: float = 30) -> None:
        """Wait until the work that an ended load left behind is done, so that it does not burden the next one."""
        end = time.monotonic() + deadline
        before = self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            now = self.cpu_seconds()
            if now - before <= LOOK_SECONDS * (RESTING_CORES + 1.5 * self._idle_cores):
                return
            before = now

    def come_to_rest(self) -> None:
        """Wait until the start is over, or learn how many cores it takes when it has nothing to do."""
        self.settle(REST_SECONDS)
        before = self.cpu_seconds()
        time.sleep(1)
        self._idle_cores = self.cpu_seconds() - before


@contextmanager
def running(server: Server, models: Path, logs: Path) -> Iterator[Running]:
    """Start a server on a free port of 127.0.0.1, wait until it is ready, and stop it in the end.

    Raises RuntimeError with the end of its output if it does not become ready.
    """
    port = free_port()
    places = {"port": port, "models": models, "replies": models.parent / "replies", "root": Path.cwd()}
    command = [*WITH_PARENT, *(part.format(**places) for part in server.command)]
    env = {**os.environ, **{name: value.format(**places) for name, value in server.env}}
    log = logs / f"{server.name.replace(' ', '-').replace(',', '')}-{port}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    started = Running(server, port, psutil.Process(child.pid))
    try:
        wait_until_ready(started, child, log)
        if server.alone:
            started.come_to_rest()
        yield started
    finally:
        stop(started, child)


def wait_until_ready(server: Running, child: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and child.poll() is None:
        try:
            if httpx.get(server.url + server.server.ready, timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"{server.server.name} did not become ready:\n{log.read_text(errors='replace')[-2000:]}")


def stop(server: Running, child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    descendants = server.tree()[1:]
    child.terminate()
    try:
        child.wait(ALONE_STOP_SECONDS if server.server.alone else STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for process in descendants:
        if process.is_running():
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
