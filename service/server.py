"""The process: uvicorn around the application, from its settings to its exit code."""

import asyncio
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.connection import guarded_protocol
from service.errors import ModelFailed
from service.logs import configure_logging
from service.settings import Settings


class Server(uvicorn.Server):
    """A uvicorn server that says when it begins to stop, and exits with 0 after a signal that it obeyed."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; the signal is not raised again afterwards, as uvicorn would."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
        asyncio.get_running_loop().call_soon_threadsafe(self._on_stop)


def serve(settings: Settings) -> None:
    """Run the service until a signal stops it. Raises SystemExit with a code other than 0 if it cannot start."""
    configure_logging(settings)
    try:
        app = create_app(settings)
    except (ModelFailed, ValueError) as error:
        structlog.get_logger().error("cannot_start", reason=str(error), models=str(settings.models))
        raise SystemExit(1) from None
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded_protocol(
            header_seconds=settings.header_timeout_seconds, min_bytes_per_second=settings.min_bytes_per_second
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    Server(config, app.draining.start).run()
