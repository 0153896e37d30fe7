"""The process, or the processes: uvicorn around the application, from the settings to the exit code.

The application and its protocols are imported by the process that serves: a supervisor of several needs no torch.
"""

import asyncio
import ctypes
import fcntl
import gc
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

from service.errors import ModelFailed
from service.server.accepting import SharingLoop
from service.server.logs import configure_logging
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.application import Application

WORKER_SILENCE_SECONDS = 30  # how long a worker may leave the supervisor without an answer before it counts as hung

_M_ARENA_MAX = -8
ARENAS = 2  # arenas of memory that all threads share: glibc gives each its own, and keeps what each had at its largest


class Config(uvicorn.Config):
    """Uvicorn's configuration, from ours. It is copied to every worker, which makes its own application."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            partial(application, settings),
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop="uvloop",
            http="service.server.http:HttpConnection",
            ws="service.server.websocket:GuardedWebSocket",
            ws_max_size=settings.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=settings.heartbeat_seconds,
            ws_ping_timeout=settings.heartbeat_seconds,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds,
            timeout_worker_healthcheck=WORKER_SILENCE_SECONDS,
        )
        self.header_seconds = settings.header_timeout_seconds
        self.min_bytes_per_second = settings.min_bytes_per_second

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Where workers share a port, the event loop that shares connections out."""
        return SharingLoop if self.workers > 1 else super().get_loop_factory()


class Server(uvicorn.Server):
    """A uvicorn server that exits with 0 after a signal that it obeyed: uvicorn would raise it again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


class Supervisor(Multiprocess):
    """Uvicorn's, with other signals.

    At SIGHUP the workers stay and read the models again, as one process does that serves alone. A second SIGTERM or
    SIGINT is passed on: it ends a drain.
    """

    def handle_hup(self) -> None:
        if all(worker.is_ready() for worker in self.processes):
            for pid in filter(None, [worker.pid for worker in self.processes]):
                os.kill(pid, signal.SIGHUP)
        else:  # one is starting: it takes no signal yet, and may have read the models already
            self.signal_queue.append(signal.SIGHUP)

    def handle_term(self) -> None:
        if self.should_exit.is_set():  # the second of two that came in one turn: join_all passes it on
            self.signal_queue.append(signal.SIGTERM)
        self.should_exit.set()

    handle_int = handle_term

    def handle_ttin(self) -> None:
        """Uvicorn adds a worker, and takes one away at SIGTTOU: their number is a setting, which each of them knows."""

    handle_ttou = handle_ttin

    def keep_subprocess_alive(self) -> None:
        for worker in self.processes:
            worker.child_conn.close()  # the worker has its own: its end is seen at once, also while it is asked
        super().keep_subprocess_alive()

    def join_all(self) -> None:
        while any(worker.exitcode is None for worker in self.processes):
            if not {signal.SIGINT, signal.SIGTERM}.isdisjoint(self.signal_queue):
                for worker in self.processes:  # each turn: one that comes before a worker has seen the first is lost
                    worker.process.terminate()
            time.sleep(0.05)


def serve(settings: Settings) -> None:
    """Run the service until a signal stops it. Raises SystemExit with a code other than 0 if it cannot start."""
    configure_logging(settings)
    if not settings.models.is_dir():  # the commonest mistake is found at once, by the supervisor itself
        _cannot_start("the model repository cannot be listed: there is no such folder (--models, or --demo)", settings)
    config = Config(settings)
    try:
        listener = config.bind_socket()  # before anything is loaded; connections are refused until a server listens
    except SystemExit:  # uvicorn has logged why
        _cannot_start(f"{settings.host}:{settings.port} cannot be listened on", settings)
    if settings.workers == 1:
        Server(config).run([listener])
        return
    with tempfile.TemporaryDirectory(prefix="rnn-workers-") as folder:
        # Read by prometheus-client when it is imported: the workers' numbers meet in files there. So do their sockets.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # A cleaner of temporary files leaves a folder alone that is locked, and all in it (systemd-tmpfiles).
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
        workers = Supervisor(config, [listener])
        workers.run()
        if any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes):
            raise SystemExit(STARTUP_FAILURE)


def application(settings: Settings) -> "Application":
    """The application of this process. Raises SystemExit if it cannot be made."""
    from service.app import create_app  # noqa: PLC0415
    from service.server.worker_sockets import WorkerSockets  # noqa: PLC0415

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)  # source: mallopt(3)
    log, log_request = configure_logging(settings)
    others = None
    if settings.workers > 1:
        others = WorkerSockets(os.environ["PROMETHEUS_MULTIPROC_DIR"], settings.workers)
        # A terminal sends it to the workers, too, and the supervisor tells them of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        app = create_app(settings, log_request, lambda: log.dropped, others)
    except (ModelFailed, ValueError) as error:
        _cannot_start(str(error), settings)
    # What is there now stays: the collector need not walk through all of torch again and again.
    gc.freeze()
    return app


def _cannot_start(reason: str, settings: Settings) -> NoReturn:
    structlog.get_logger().error("cannot_start", reason=reason, models=str(settings.models))
    raise SystemExit(STARTUP_FAILURE)
