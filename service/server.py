"""The process, or the processes: uvicorn around the application, from the settings to the exit code."""

import os
import tempfile
from types import FrameType

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

from service.api.gateway import Gateway
from service.app import create_app
from service.connection import GuardedProtocol
from service.errors import ModelFailed
from service.logs import configure_logging
from service.memory import share_arenas
from service.settings import Settings

WORKER_START_SECONDS = 120
"""How long a worker may be silent: importing torch on a busy machine takes a while."""


class Config(uvicorn.Config):
    """Uvicorn's configuration, from ours. It is copied to every worker, which makes its own application."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            "service.server:application",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop="uvloop",
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds,
            timeout_worker_healthcheck=WORKER_START_SECONDS,
        )
        self.header_seconds = settings.header_timeout_seconds
        self.min_bytes_per_second = settings.min_bytes_per_second


class Server(uvicorn.Server):
    """A uvicorn server that exits with 0 after a signal that it obeyed: uvicorn would raise it again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def serve(settings: Settings) -> None:
    """Run the service until a signal stops it. Raises SystemExit with a code other than 0 if it cannot start."""
    configure_logging(settings)
    _export(settings)
    if settings.workers == 1:
        Server(Config(settings)).run()
        return
    application()  # what no worker could start with is said once, by this process
    with tempfile.TemporaryDirectory(prefix="rnn-metrics-") as folder:
        # Read by prometheus-client when it is imported: the workers' numbers meet in files there.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        config = Config(settings)
        workers = Multiprocess(config, [config.bind_socket()])
        workers.run()
        if any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes):
            raise SystemExit(STARTUP_FAILURE)


def application() -> Gateway:
    """The application of this process, from its environment. Raises SystemExit if it cannot be made."""
    share_arenas()
    settings = Settings()
    configure_logging(settings)
    try:
        return create_app(settings)
    except (ModelFailed, ValueError) as error:
        structlog.get_logger().error("cannot_start", reason=str(error), models=str(settings.models))
        raise SystemExit(STARTUP_FAILURE) from None


def _export(settings: Settings) -> None:
    """Put settings that came as flags into the environment, from which `application` and all workers read them."""
    for name, value in settings.plain().items():
        os.environ[f"RNN_{name.upper()}"] = value
