"""Traces from outside: a collector over OTLP/HTTP, and the service with the standard variables."""

import gzip
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, time_ns

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .formats import NDJSON
from .running import until
from .sockets import opened

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}


@contextmanager
def collector():
    """A collector's URL, and the spans that came, each with its attributes and its resource's as a dictionary."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            for group in ExportTraceServiceRequest.FromString(body).resource_spans if self.path == "/v1/traces" else ():
                for scope in group.scope_spans:
                    spans.extend((span, values(span) | values(group.resource)) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def values(holder):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


def test_spans_reach_a_collector(launch, monkeypatch):
    """All of them, in the end; streams have one each, probes and scrapes none."""
    with collector() as (url, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # none but the last flush sends them
        service = launch()
        service.post("/cell/step", STEP)
        begun = time_ns()
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "traced"}
        session = service.post("/cell/sessions", {"model": "tanh"}).json()["session"]
        service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4]}, headers=headers)
        ended = time_ns()
        service.get(f"/cell/sessions/{session}")
        service.get("/nothing/at/all")
        service.post("/cell/step?model=tanh", content=b"[1,2,3,4]\n[1,2,3,4]\n", headers={"content-type": NDJSON})
        with opened(service, "?model=tanh", "[1,2,3,4]") as stream:
            stream.recv()
        service.metrics()
        (entry,) = until(lambda: service.logged("traced"), "the log line")
        assert entry["trace_id"] == TRACE
        assert not spans
        service.stop()
    ours = [(span, found) for span, found in spans if span.trace_id.hex() == TRACE]
    (root,) = [span for span, _ in ours if span.parent_span_id.hex() == SPAN]
    assert root.kind == root.SPAN_KIND_SERVER
    stages = sorted((span for span, _ in ours if span is not root), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in stages] == ["decode", "turn", "commit", "encode"]
    assert {span.parent_span_id for span in stages} == {root.span_id}
    assert begun <= root.start_time_unix_nano <= stages[0].start_time_unix_nano + 1000
    # The client may have the reply before the service has written it off.
    assert stages[-1].end_time_unix_nano - 1000 <= root.end_time_unix_nano <= ended + 10**9
    servers = {span.name: found for span, found in spans if span.kind == span.SPAN_KIND_SERVER}
    names = {"POST /cell/step", "POST /cell/sessions", "GET /cell/sessions/{session}", "GET", "GET /cell/stream"}
    assert servers.keys() == names
    assert servers["GET /cell/stream"]["http.response.status_code"] == 101
    assert sum(span.kind == span.SPAN_KIND_SERVER for span, _ in spans) == 7
    assert sum(span.name == "turn" for span, _ in spans) == 2
    assert not any(session in str(spans_value) for spans_value in spans)
    assert {found["service.name"] for _, found in spans} == {"rnn-service"}


@pytest.mark.integration
def test_each_worker_sends_its_own(launch, monkeypatch, tmp_path):
    with collector() as (url, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{url}/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        service = launch(workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
        steps = 0

        def instances():
            nonlocal steps
            steps += service.post("/cell/step", STEP, headers={"connection": "close"}).status_code == 200
            return {found["service.instance.id"] for _, found in spans}

        until(lambda: len(instances()) == 2, "spans of either worker")
        service.stop()
    servers = [found for span, found in spans if span.name == "POST /cell/step"]
    assert len(servers) == steps
    assert {found["service.name"] for found in servers} == {"mine"}


def test_collector_that_hangs_holds_up_nobody(launch, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        service = launch()
        for _ in range(30):
            assert service.post("/cell/step", STEP).elapsed.total_seconds() < 5
        begun = monotonic()
        service.stop()
        assert monotonic() - begun < 20
