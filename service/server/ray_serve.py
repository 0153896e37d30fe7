"""The service on Ray Serve, whose proxy takes the connections: `serve run service.server.ray_serve:build`."""

import asyncio
from typing import Any

import ray
from ray import serve
from ray._private import worker
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Scope

from service.api.application import Application
from service.app import create_app
from service.server.logs import configure_logging
from service.settings import Settings

FIXED = {"host": "0.0.0.0", "port": 0, "workers": 1}  # noqa: S104  # Ray's proxy listens; see HostRules
START_SECONDS, POLL_SECONDS = 600, 0.25
FORGET_SECONDS = 30  # what Ray gives HAProxy to forget a replica


def build(arguments: dict[str, Any]) -> serve.Application:
    """Make the application of `serve run` and of a config file's `import_path`.

    Arguments are settings by their names; for others RNN_* variables count, where this runs. Raises ValueError for an
    argument that is no setting or Ray's, and for sessions that replicas do not share.
    """
    if wrong := sorted(arguments.keys() - (Settings.model_fields.keys() - FIXED.keys())):
        raise ValueError(
            f"{', '.join(wrong)}: no such setting here; for host, port and workers Ray has settings of its own"
        )
    settings = Settings(**{**arguments, **FIXED})
    scheme = settings.session_store.partition("://")[0]
    if scheme in ("memory", "sqlite"):
        raise ValueError(
            f"a session's next step may reach any replica, and session_store is {scheme}://, which they do not share: "
            "set session_store, or RNN_SESSION_STORE, to valkey://host:port/0"
        )
    return deployment.options(graceful_shutdown_timeout_s=settings.shutdown_seconds + FORGET_SECONDS).bind(settings)


class Replica:
    """One replica: the application on Ray's event loop."""

    def __init__(self, settings: Settings) -> None:
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        settings = settings.model_copy(update={"compute_threads": settings.compute_threads or max(1, int(cores))})
        log, log_request = configure_logging(settings)
        self._service = create_app(settings, log_request, lambda: log.dropped)
        self._started = False
        self._draining = asyncio.get_running_loop().create_task(self._drain_with_ray())

    def __serve_build_asgi_app__(self) -> Application:
        return self._service

    async def check_health(self) -> None:
        """Raise RuntimeError if it is not ready. The first call, which ends its start, waits for models to load."""
        try:
            async with asyncio.timeout(0 if self._started else START_SECONDS):
                while self._service.readiness.reasons():  # noqa: ASYNC110  # loading may fail and be tried again
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise RuntimeError("; ".join(self._service.readiness.reasons())) from None
        self._started = True

    async def _drain_with_ray(self) -> None:
        """End streams when Ray stops the replica: it waits for their end, and tells the application only after it."""
        actors = worker.global_worker.actors.values()  # this replica alone
        while not any(getattr(getattr(one, "_replica_impl", None), "_shutting_down", False) for one in actors):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        self._service.readiness.draining.announce()


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: behind HAProxy, reading pauses when the application has enough.

    Ray otherwise reads ahead all that a client sends, to see that it hangs up. The application sees it by itself.
    """

    def direct(app: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, *calls: Any) -> None:
            scope["headers"] = [*scope["headers"], (b"x-request-disconnect-disabled", b"?1")]
            await app(scope, *calls)

        return call

    return [Middleware(direct)]


deployment = serve.deployment(name="rnn-service", max_ongoing_requests=1024)(serve.ingress()(Replica))
