"""Replicas of the service on Ray Serve: `serve run service.server.ray_serve:build models=/models session_store=valkey://…`.

Ray's proxy takes the connections, and each replica runs the ASGI application on its event loop: docs/ray-serve.md.
"""

import asyncio
import gc
from typing import Any

import ray
from ray import serve
from ray._private import worker
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.application import Application
from service.app import create_app
from service.server.logs import configure_logging
from service.settings import Settings

OF_RAY = {"host": "0.0.0.0", "port": 0, "workers": 1}  # noqa: S104  # Ray's proxy listens; see HostRules
START_SECONDS = 600
LEAVE_SECONDS = 30
"""How long Ray keeps a replica behind HAProxy, after it has been taken from HAProxy's list."""
LOOK_SECONDS = 0.25


def build(arguments: dict[str, Any]) -> serve.Application:
    """Make the application of `serve run` and of a config file's `import_path`.

    Arguments are settings by their names; for others RNN_* variables count, where this runs. Raises ValueError for
    an argument that is no setting, for one that is Ray's, and for sessions that replicas do not share.
    """
    if unknown := sorted(arguments.keys() - Settings.model_fields.keys()):
        raise ValueError(f"{', '.join(unknown)}: no such setting; arguments have the names of RNN_* variables")
    if given := sorted(arguments.keys() & OF_RAY.keys()):
        raise ValueError(f"{', '.join(given)}: Ray has its own settings for this, http_options and num_replicas")
    settings = Settings(**{**arguments, **OF_RAY})
    scheme = settings.session_store.partition("://")[0]
    if scheme in ("memory", "sqlite"):
        raise ValueError(
            f"a session's next step may reach any replica, and session_store is {scheme}://, which they do not share: "
            "set session_store, or RNN_SESSION_STORE, to valkey://host:port/0"
        )
    return deployment.options(graceful_shutdown_timeout_s=settings.shutdown_seconds + LEAVE_SECONDS).bind(settings)


class Replica:
    """One replica: the application on Ray's event loop."""

    def __init__(self, settings: Settings) -> None:
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        settings = settings.model_copy(update={"compute_threads": settings.compute_threads or max(1, int(cores))})
        log, log_request = configure_logging(settings)
        self._service = create_app(settings, log_request, lambda: log.dropped)
        self._started = False
        self._draining = asyncio.get_running_loop().create_task(self._drain_with_ray())
        gc.freeze()  # as in `service.server.process`

    def __serve_build_asgi_app__(self) -> Application:
        return self._service

    async def check_health(self) -> None:
        """Raise RuntimeError if it is not ready. The first call, which ends its start, waits for models to load."""
        try:
            async with asyncio.timeout(0 if self._started else START_SECONDS):
                while self._service.unready():  # noqa: ASYNC110  # loading may fail and be tried again
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise RuntimeError("; ".join(self._service.unready())) from None
        self._started = True

    async def _drain_with_ray(self) -> None:
        """End streams when Ray stops the replica: it waits for their end, and tells the application only after it."""
        while not _is_stopping():  # noqa: ASYNC110  # as it does not tell
            await asyncio.sleep(LOOK_SECONDS)
        self._service.draining.start()


class Direct:
    """Gives the application the connection's own `receive` behind HAProxy, so that reading pauses when it has enough.

    Ray reads ahead all that a client sends, to see that it hangs up; it leaves that out where this header says so. The
    application sees it by itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"] = [*scope["headers"], (b"x-request-disconnect-disabled", b"?1")]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names."""
    return [Middleware(Direct)]


def _is_stopping() -> bool:
    actors = worker.global_worker.actors.values()
    return any(getattr(getattr(actor, "_replica_impl", None), "_shutting_down", False) for actor in actors)


# A stream is a request that is under way as long as it lasts.
deployment = serve.deployment(name="rnn-service", max_ongoing_requests=1024)(serve.ingress()(Replica))
