"""Traces by OpenTelemetry: a span for each request, with one for each stage below it, made when the request is over.

Nothing happens before that but that a request notes when its stages begin and end. No other file names OpenTelemetry,
which is an optional extra (`otel`).
"""

import asyncio
import logging
from collections.abc import Mapping
from threading import Thread
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from service.api.problems import STATUS, slug
from service.api.request import Request

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_SECONDS = 5
"""How long the end of the process waits for the collector."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_SPANS = {"compute": "turn"}
"""Names of the stages' spans where they are not the stages'."""


class Traces:
    """Makes the spans of finished requests; the provider samples them and hands them on."""

    def __init__(self, provider: "TracerProvider") -> None:
        # Here, not above: the extra may be missing.
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("rnn-service")
        self._extract = TraceContextTextMapPropagator().extract
        self._root, self._kind = Context(), SpanKind.SERVER
        self._failed, self._below, self._hex = Status(StatusCode.ERROR), set_span_in_context, format_trace_id
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)  # its warnings are of what clients send

    def record(self, request: Request, path: str, seconds: float) -> str | None:
        """Make the spans of a request that took so long; gives the trace's id if it is sampled. path is a route's."""
        zero = time_ns() - int(perf_counter() * 1e9)  # of the clock of the stages
        begun = zero + int(request.begun * 1e9)
        known = "GET" if request.method == "WS" else request.method if request.method in _METHODS else "_OTHER"
        attributes: dict[str, Any] = {"http.request.method": known}
        name = "HTTP" if known == "_OTHER" else known
        if path != "other":
            name = f"{name} {path}"
            attributes["http.route"] = path
        span = self._tracer.start_span(name, self._parent(request.headers), self._kind, attributes, start_time=begun)
        if not span.is_recording():
            return None
        span.set_attributes(found := _attributes(request, path))
        if "error.type" in found:
            span.set_status(self._failed)
        below = self._below(span, self._root)
        for stage, begin, end in request.intervals or ():
            child = self._tracer.start_span(_SPANS.get(stage, stage), below, start_time=zero + int(begin * 1e9))
            child.end(zero + int(end * 1e9))
        span.end(begun + int(seconds * 1e9))
        return self._hex(span.get_span_context().trace_id)

    def _parent(self, headers: Mapping[bytes, bytes]) -> Any:
        """The context that a request brings, empty without a valid one."""
        parent = headers.get(b"traceparent")
        if parent is None:
            return self._root
        state = headers.get(b"tracestate", b"")
        return self._extract({"traceparent": parent.decode("latin-1"), "tracestate": state.decode("latin-1")})

    async def close(self) -> None:
        """Send what is left; what the collector has not taken after `FLUSH_SECONDS` is lost."""
        flush = Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_SECONDS)


def traces_from(environ: Mapping[str, str], version: str) -> Traces | None:
    """Traces as the standard OTEL_* variables ask for them, None where they do not.

    Raises ValueError if they cannot be had.
    """
    endpoint = _first(environ, _ENDPOINTS)
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"the endpoint of traces is {endpoint!r:.200}; expected http://host:port or https://host:port")
    if (protocol := _first(environ, _PROTOCOLS) or "http/protobuf") != "http/protobuf":
        raise ValueError(f"traces are sent as http/protobuf, not {protocol!r:.40} ({' or '.join(_PROTOCOLS)})")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        text = f"traces are on ({' or '.join(_ENDPOINTS)}), and OpenTelemetry is not installed"
        raise ValueError(f"{text}: pip install 'rnn-service[otel]'") from error
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # what nobody named
        resource = resource.merge(Resource({"service.name": "rnn-service"}))
    resource = Resource({"service.version": version}).merge(resource)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _attributes(request: Request, path: str) -> dict[str, Any]:
    """What is known of a request; no text of its client's, and of its path the route: a session's id is a secret."""
    problem = slug(request.failure) if request.failure else None
    # As the conventions have it: what a client did wrong is no error of the server's.
    failed = request.status >= 500 or (request.failure is not None and STATUS.get(request.failure, 500) >= 500)
    found = {
        "http.request.method_original": None if request.method in _METHODS else request.method,
        "url.scheme": "ws" if request.method == "WS" else "http",
        "url.path": path,
        "network.protocol.version": request.http_version,
        "client.address": request.peer or None,
        "http.response.status_code": request.status,
        "http.request.body.size": request.received_bytes,
        "http.response.body.size": request.sent_bytes,
        "error.type": (problem or str(request.status)) if failed else None,
        "rnn.problem": problem,
        "rnn.request_id": request.request_id,
        "rnn.model": request.model,
        "rnn.model_version": request.version,
        "rnn.rows": request.rows,
        "rnn.steps": request.steps,
        **{f"rnn.seconds.{stage}": spent for stage, spent in request.stages.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := environ.get(name, "").strip())), "")
