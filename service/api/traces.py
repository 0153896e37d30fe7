"""Traces by OpenTelemetry: a span for each request, with one for each stage below it, made when the request is over.

Before that, a request only notes when its stages begin and end. No other file names OpenTelemetry, which is an extra.
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

FLUSH_SECONDS = 5  # how long the end of the process waits for the collector

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Traces:
    """Makes the spans of finished requests; the provider samples them and hands them on."""

    def __init__(self, provider: "TracerProvider") -> None:
        # Here, not above: the extra may be missing.
        from opentelemetry import context, trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("rnn-service")
        self._extract = TraceContextTextMapPropagator().extract
        self._root, self._kind = context.Context(), trace.SpanKind.SERVER
        self._failed, self._below = trace.StatusCode.ERROR, trace.set_span_in_context
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)  # its warnings are of what clients send

    def record(self, request: Request, seconds: float) -> str | None:
        """Make the spans of a request that took so long; gives the trace's id if it is sampled."""
        zero = time_ns() - int(perf_counter() * 1e9)  # of the clock of the stages
        begun = zero + int(request.begun * 1e9)
        name = "GET" if request.method == "WS" else request.method if request.method in _METHODS else "HTTP"
        attributes = {"http.request.method": name.replace("HTTP", "_OTHER")}
        if request.route != "other":
            name, attributes["http.route"] = f"{name} {request.route}", request.route
        span = self._tracer.start_span(name, self._parent(request.headers), self._kind, attributes, start_time=begun)
        if not span.is_recording():
            return None
        span.set_attributes(found := _attributes(request))
        if "error.type" in found:
            span.set_status(self._failed)
        below = self._below(span, self._root)
        for stage, begin, end in request.intervals or ():
            child = self._tracer.start_span(
                "turn" if stage == "compute" else stage, below, start_time=zero + int(begin * 1e9)
            )
            child.end(zero + int(end * 1e9))
        span.end(begun + int(seconds * 1e9))
        return format(span.get_span_context().trace_id, "032x")

    def _parent(self, headers: Mapping[bytes, bytes]) -> Any:
        """The context that a request brings, empty without a valid one."""
        parent = headers.get(b"traceparent")
        if parent is None:
            return self._root
        pairs = ("traceparent", parent), ("tracestate", headers.get(b"tracestate", b""))
        return self._extract({name: value.decode("latin-1") for name, value in pairs})

    async def close(self) -> None:
        """Send what is left; what the collector has not taken after `FLUSH_SECONDS` is lost."""
        flush = Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_SECONDS)


def traces_from(environ: Mapping[str, str], version: str) -> Traces | None:
    """Traces as the standard OTEL_* variables ask for them, None where they do not. Raises ValueError."""
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint!r:.200}; expected http(s)://host:port")
    if protocol not in (None, "", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r:.40}; traces are sent as http/protobuf")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        advice = "traces (OTEL_EXPORTER_OTLP_ENDPOINT) need pip install opentelemetry-exporter-otlp-proto-http"
        raise ValueError(advice) from error
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody named it
        resource = resource.merge(Resource({"service.name": "rnn-service"}))
    provider = TracerProvider(resource=Resource({"service.version": version}).merge(resource), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _attributes(request: Request) -> dict[str, Any]:
    problem = slug(request.failure) if request.failure else None
    # As the conventions have it: what a client did wrong is no error of the server's.
    failed = request.status >= 500 or (request.failure is not None and STATUS.get(request.failure, 500) >= 500)
    found = {
        "url.scheme": "ws" if request.method == "WS" else "http",
        "url.path": request.route,  # the path itself is not told: a session's id is a secret
        "network.protocol.version": request.http_version,
        "client.address": request.address or None,
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
