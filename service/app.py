"""The composition root: builds every part, wires them together, and closes them in reverse order."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr

from service import __version__
from service.api.accounting import Accounting, LogRequest, log_request
from service.api.administration import Administration, OtherWorkers
from service.api.application import Application
from service.api.bodies import Bodies, BodyBudget
from service.api.documents import Documents
from service.api.forward import Forward
from service.api.generate import Generate
from service.api.hosts import HostRules
from service.api.keys import Keys
from service.api.metrics import Metrics, Sampler
from service.api.models import models_router
from service.api.openapi import describe
from service.api.operations import operations_router
from service.api.paths import INFER, INFER_VERSION
from service.api.proxies import TrustedProxies
from service.api.readiness import Draining, Readiness
from service.api.routes import hot_router
from service.api.sessions import SessionHandlers, sessions_router
from service.api.shapes import Limits
from service.api.step import Step
from service.api.streams.ndjson import NdjsonStreams
from service.api.streams.opening import Opener
from service.api.streams.step_stream import IdleTimeout
from service.api.streams.websocket import serve_websocket
from service.api.traces import traces_from
from service.api.v2.infer import Infer
from service.api.v2.models import v2_models_router, v2_service_router
from service.engine.load import EngineFactory
from service.errors import ServiceError
from service.serving.inference import Admission, Inference
from service.serving.registry import Registry
from service.sessions.cache import SessionCache, SessionLimits, steady_clock
from service.sessions.exactly_once import SessionSteps
from service.sessions.lifecycle import Lifetimes, Sessions
from service.sessions.queue import SessionQueue
from service.sessions.sequences import Sequences
from service.settings import Settings
from service.stores import store_from

DESCRIPTION = """POST sequences, get outputs and final states; or send one time step at a time.
Models are `torch.nn.RNN`, `GRU` and `LSTM` from a folder of weights."""


def create_app(
    settings: Settings,
    log: LogRequest | None = log_request,
    dropped: Callable[[], int] = int,
    others: OtherWorkers | None = None,
) -> Application:
    """The whole service as an ASGI application; `log` logs requests, None where they are not logged.

    dropped counts the log's lines that were lost; others are the workers beside this one.
    Raises ModelFailed if there is no model repository, ValueError for a wrong device, session store or OTEL_* variable.
    """
    factory = EngineFactory.configure(settings.device, settings.compute_threads, settings.engine, settings.workers)
    registry = Registry(
        settings.models,
        factory,
        default_model=settings.default_model,
        cache_bytes=settings.model_cache_bytes,
        name=settings.model_name or "",
    )
    registry.scan()
    metrics, traces = Metrics(), traces_from(os.environ, __version__)
    inference = Inference(
        registry,
        workers=factory.workers,
        max_queued_requests=settings.max_queued_requests,
        max_queued_bytes=settings.max_queued_bytes,
        on_turn=metrics.count_turn,
    )
    draining, starting = Draining(), ["starting"] if settings.preload or settings.default_model else []
    limits = Limits(settings.max_input_values, settings.max_reply_values)
    bodies = Bodies(
        settings.max_body_bytes,
        settings.body_timeout_seconds,
        settings.min_bytes_per_second,
        BodyBudget(settings.max_underway_bytes),
        draining,
    )
    documents = Documents()
    store = store_from(
        settings.session_store, max_ended=settings.ended_sessions, sqlite_synchronous=settings.sqlite_synchronous
    )
    cache = SessionCache(
        store,
        SessionLimits(settings.max_sessions, settings.max_session_bytes, settings.session_eviction),
        steady_clock(),
    )
    queue = SessionQueue(settings.session_queue)
    lifetimes = Lifetimes(settings.session_ttl_seconds, settings.max_session_ttl_seconds)
    sessions = Sessions(cache, queue, registry, lifetimes)
    session_steps = SessionSteps(cache, queue, inference, settings.session_replay_bytes)
    administration = Administration(registry, others)
    generate = Generate(inference, documents, limits, sessions, session_steps, settings.max_generate_steps)
    admission = Admission(settings.max_queued_requests)
    opener = Opener(inference, sessions, session_steps)
    idle_timeout = IdleTimeout(draining, settings.stream_idle_seconds)
    infer = Infer(inference, documents, limits, Sequences(sessions, session_steps))
    session_handlers = SessionHandlers(sessions, session_steps, registry, documents)
    readiness = Readiness(draining, store, starting)
    sampler = Sampler(metrics, inference, sessions, dropped, readiness)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if is_main := threading.current_thread() is threading.main_thread():  # not in a replica of Ray Serve
            _on_signals(draining, settings.drain_seconds)
        await store.open()
        if others:
            await others.listen(administration)
        work = (_preload(registry, settings, starting), sampler.keep_sampling(), sessions.keep_sweeping())
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(one) for one in work]
        if is_main:  # a terminal that closes sends this to every process that it started
            loop.add_signal_handler(signal.SIGHUP, lambda: tasks.append(loop.create_task(administration.reload_all())))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            inference.close()
            await store.close()
            if traces is not None:
                await traces.close()

    app = FastAPIOffline(
        title="rnn-service",
        version=__version__,
        summary="Inference for recurrent networks",
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # the functions' names, which clients are generated with
        lifespan=lifespan,
    )
    for router in (
        hot_router(),
        sessions_router(session_handlers),
        models_router(registry, administration),
        v2_models_router(registry, sampler, lifetimes.default_seconds),
        v2_service_router(registry, administration, bodies, readiness),
        operations_router(sampler, readiness),
    ):
        app.include_router(router)
    app.openapi = partial(describe, app, registry)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return Application(
        app,
        posts={
            "/rnn/forward": Forward(inference, documents, limits),
            "/rnn/generate": generate,
            "/cell/step": Step(inference, documents, limits, sessions, session_steps),
            "/cell/sessions": session_handlers.open,
            INFER: infer,
            INFER_VERSION: infer,
        },
        streams={"/cell/step": NdjsonStreams(opener, idle_timeout)},
        sockets={"/cell/stream": partial(serve_websocket, opener, idle_timeout)},
        admissions=dict.fromkeys(("/rnn/forward", "/rnn/generate", INFER, INFER_VERSION), admission),
        bodies=bodies,
        proxies=TrustedProxies(settings.trusted_proxies),
        hosts=HostRules(settings),
        keys=Keys(_plain(settings.api_keys), _plain(settings.admin_keys)),
        accounting=Accounting(metrics, log, traces),
        readiness=readiness,
    )


def _plain(keys: tuple[SecretStr, ...]) -> list[str]:
    return [key.get_secret_value() for key in keys]


def _on_signals(draining: Draining, drain_seconds: float) -> None:
    """Announce the end at a signal; when it starts, do what uvicorn's handlers, which are in place, do."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        if not callable(then := signal.getsignal(number)):  # it is ignored
            continue

        def handle(number: int, frame: FrameType | None, then: Callable[..., Any] = then) -> None:
            loop.call_soon_threadsafe(draining.announce, drain_seconds, partial(then, number, frame))

        signal.signal(number, handle)


async def _preload(registry: Registry, settings: Settings, starting: list[str]) -> None:
    """Look for the default model and load the others, until it succeeds; `starting` says what it waits for."""
    preload = settings.preload if settings.preload != ("*",) else tuple(model.name for model in registry.models())
    for name in filter(None, (settings.default_model, *preload)):
        starting[:] = [f"loading model {name!r}"]
        while True:
            try:
                version = registry.resolve(name, None)
                if name in preload:
                    await registry.engine(version)
                break
            except Exception as error:  # whatever it is, it must not end in silence
                reason = str(error) if isinstance(error, ServiceError) else f"model {name!r} could not be loaded"
                if starting != [reason]:
                    structlog.get_logger().error("preload_failed", model=name, reason=str(error))
                starting[:] = [reason]
            await asyncio.sleep(1.0)
    starting.clear()
