"""The servers: the service in its variants, the naive endpoint, the rivals, a bare echo; their start and stop."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.cases import BATCH, MEDIUM, Call, Case, call, write
from benchmarks.rivals import ROOT, python, ready

START_SECONDS, STOP_SECONDS, SETTLE_SECONDS = 90, 6, 20
# A server counts as idle when it takes less than this part of a core over so many seconds.
IDLE_CORES, LOOK_SECONDS = 0.1, 0.25
# Servers end with the benchmark, even if that is killed.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()
# The load's core in open loops; the server has the others.
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE = CORES[-1]
SERVER_CORES = ",".join(map(str, CORES[:-1] or CORES))

OURS, OTHER = "rnn-service", "other checkout"
NAIVE = ("naive sync", "naive async", "naive async, 1 thread")
ECHO, MOSEC, LITSERVE, BENTOML, RAY = "bare ASGI echo", "Mosec", "LitServe", "BentoML", "Ray Serve, HAProxy"
TRITON = "Triton"
ON_RAY = tuple(f"rnn-service, Ray Serve, {replicas}" for replicas in ("1 replica", "2 replicas"))
# Started for their turn in a round, after all others: their processes do not rest when they are idle.
SLOW_TO_START = (LITSERVE, BENTOML, RAY, *ON_RAY)
LOG, TWO, SQLITE, ONE_ROW, OWN = "request log", "2 workers", "sqlite", "one row a turn", "own cores"
ONE_ROW_A_TURN = """
from service.engine.native.engine import NativeEngine
NativeEngine.turn_rows = min(NativeEngine.turn_rows, 1)
from service.cli import main
main()
"""
QUIET = ("--no-request-log",)
DATABASE = {"RNN_SESSION_STORE": "sqlite:///{scratch}/{port}.db"}
# By variant: what `serve` is told, its environment, and what stands before the command.
VARIANTS: dict[str, tuple[Sequence[str], dict[str, str], Sequence[str]]] = {
    "": (QUIET, {}, ()),
    LOG: ((), {}, ()),
    TWO: ((*QUIET, "--workers", "2"), DATABASE, ()),
    SQLITE: (QUIET, DATABASE, ()),
    ONE_ROW: (QUIET, {}, ()),
    OWN: (QUIET, {}, ("taskset", "--cpu-list", SERVER_CORES)),
}


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started and what it is sent.

    `command` and the values of `env` may use {port}, {models}, {replies} (right answers to every case) and {scratch};
    `path` may use {path}, {case} and {format}; the case "batch" goes to `batch_path`. `ready` answers 200 once requests
    are served.
    """

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    cwd: Path = ROOT
    ready: str = "/health/ready"
    path: str = "{path}"
    batch_path: str = "/batch"

    def call(self, case: Case, form: str) -> Call:
        path = self.batch_path if case is BATCH else self.path
        return call(case, form, path.format(path=case.path, case=case.name, format=form).replace(" ", "%20"))


def interpreter(tree: Path) -> str:
    """A checkout's own Python if it has one, else this one."""
    own = tree / ".venv/bin/python"
    return str(own) if own.exists() else sys.executable


def service(tree: Path, label: str) -> Iterator[Server]:
    for variant, (options, env, before) in VARIANTS.items():
        module = ("-c", ONE_ROW_A_TURN) if variant == ONE_ROW else ("-m", "service")
        command = (*before, interpreter(tree), *module, "serve", "--port", "{port}", "--models", "{models}", *options)
        name = f"{label}, {variant}" if variant else label
        yield Server(name, command, {"PYTHONPATH": str(tree), **env}, tree, batch_path="{path}")


def servers(other: Path | None) -> dict[str, Server]:
    place = ("{models}", "{port}")
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
    # torch's default, a thread a core, collapses when the load shares the cores: its barriers spin.
    env = {"OMP_NUM_THREADS": "1", "BENCH_MODELS": "{models}", "BENTOML_HOME": "{scratch}/bentoml", **quiet}
    module = (sys.executable, "-m", "benchmarks.rivals.naive")
    echo = (sys.executable, "-m", "benchmarks.rivals.echo", "{replies}", "{port}")
    found = [*service(ROOT, OURS), *(service(other.resolve(), OTHER) if other else ())]
    found += [
        Server(NAIVE[0], (*module, "sync", *place), {}, batch_path="{path}"),
        Server(NAIVE[1], (*module, "async", *place), {}, batch_path="{path}"),
        Server(NAIVE[2], (*module, "async", *place), env, batch_path="{path}"),
        Server(ECHO, echo, {}, path="/{case}.{format}"),
    ]
    if importlib.util.find_spec("mosec"):
        options = ("--address=127.0.0.1", "--port={port}", "--timeout=120000", "--log-level=error")
        command = (sys.executable, "-m", "benchmarks.rivals.mosec_server", *options)
        found.append(Server(MOSEC, command, env, ready="/metrics"))
    if ready("litserve"):
        command = (str(python("litserve")), "-m", "benchmarks.rivals.litserve_server", *place)
        found.append(Server(LITSERVE, command, env, ready="/health", path="/predict"))
    if ready("bentoml"):
        serve = ("serve", "benchmarks.rivals.bentoml_service:Rnn", "--host=127.0.0.1", "--port={port}")
        command = (str(python("bentoml")), "-m", "bentoml", *serve)
        found.append(Server(BENTOML, command, env, ready="/readyz", batch_path="{path}"))
    if ready("triton"):
        command = (str(python("triton")), "-m", "benchmarks.rivals.triton_server", *place)
        library = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}  # of the same Python as its stub runs
        found.append(Server(TRITON, command, env | library, ready=f"/v2/models/{MEDIUM.model}/ready"))
    proxy = {"RAY_SERVE_ENABLE_HA_PROXY": "1", **env}
    if ready("ray"):
        command = (str(python("ray")), "-m", "benchmarks.rivals.ray_server", *place)
        found.append(Server(RAY, command, proxy, ready="/-/healthz"))
    if importlib.util.find_spec("ray"):
        one_loop = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", **proxy}
        one_loop["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "service.server.ray_serve:middlewares"
        for name in ON_RAY:
            command = (sys.executable, "-m", "benchmarks.ray_service", *place, name.split()[-2])
            found.append(Server(name, command, one_loop, batch_path="{path}"))
    return {server.name: server for server in found}


class Running:
    """A server's process tree on its port of 127.0.0.1. Raises RuntimeError if it does not become ready."""

    def __init__(self, server: Server, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.server = server
        self.url = f"http://127.0.0.1:{self.port}"
        self.scratch = folder / "scratch"
        self._checked: set[Call] = set()
        places = {"port": self.port, **{name: folder / name for name in ("models", "replies", "scratch")}}
        command = [*WITH_PARENT, *(part.format_map(places) for part in server.command)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **{k: v.format_map(places) for k, v in server.env.items()}}
        log = self.scratch / f"{self.port}.log"
        with log.open("wb") as output:
            self._child = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=server.cwd)
        self._process = psutil.Process(self._child.pid)
        end = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if time.monotonic() > end or self._child.poll() is not None:
                self.stop()
                raise RuntimeError(f"not ready: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        self.settle()
        self.ready_bytes = self.resident_bytes()

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(self.url + self.server.ready, timeout=5, trust_env=False).is_success
        return False

    def _each(self, ask: Callable[[psutil.Process], Any]) -> Iterator[Any]:
        """An answer of every process of the tree that is still there when it is asked."""
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                yield ask(process)

    def cpu_seconds(self) -> float:
        return sum(times.user + times.system for times in self._each(psutil.Process.cpu_times))

    def resident_bytes(self) -> int:
        """Resident memory of the tree; pages that its processes share count once for each."""
        return sum(info.rss for info in self._each(psutil.Process.memory_info))

    def call(self, case: Case, form: str) -> Call:
        """The case's request, once it was answered rightly. Raises HTTPError or ValueError if it is not."""
        request = self.server.call(case, form)
        if request not in self._checked:
            url, headers = self.url + request.path, request.headers
            reply = httpx.post(url, content=request.body, headers=headers, timeout=60, trust_env=False)
            request.check(reply.raise_for_status().content)
            self._checked.add(request)
        return request

    def settle(self) -> None:
        """Wait until the work that an ended load left behind is done, so that it does not burden the next one."""
        end, before = time.monotonic() + SETTLE_SECONDS, self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            now = self.cpu_seconds()
            if now - before <= LOOK_SECONDS * IDLE_CORES * (5 if self.server.name in SLOW_TO_START else 1):
                return
            before = now

    def stop(self) -> None:
        with suppress(psutil.NoSuchProcess):
            children = self._process.children(recursive=True)
            self._child.terminate()
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            for process in children:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


class Fleet:
    """Servers that run, by name: started when first asked for."""

    def __init__(self, folder: Path, other: Path | None) -> None:
        self.servers = servers(other)
        self._folder = folder
        self._running: dict[str, Running] = {}
        (folder / "scratch").mkdir()
        write(folder)

    def get(self, name: str) -> Running:
        if name not in self._running:
            self._running[name] = Running(self.servers[name], self._folder)
        return self._running[name]

    def fresh(self, name: str) -> Running:
        self.stop(name)
        return self.get(name)

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._running):
            if running := self._running.pop(name, None):
                running.stop()
