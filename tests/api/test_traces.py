"""The spans of a request: their tree, their true times, their parent; and when there are none."""

import asyncio
import json
import sys
from itertools import pairwise
from time import sleep, time_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import service.app
from service.api.request import MAX_INTERVALS, Request
from service.api.traces import Traces, traces_from
from service.errors import StoreUnavailable
from service.serving.scheduler import Timings
from service.settings import Settings
from service.stores.memory import MemoryStore
from tests.e2e.models import write_repository

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}


def in_memory(sampler=sampling.DEFAULT_ON):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider), exporter


class App:
    """The application without a server; a call gives the reply, the root span, others by name, and the log entry."""

    def __init__(self, repository, monkeypatch, sampler=sampling.DEFAULT_ON):
        self.entries = []
        traces, self.exporter = in_memory(sampler)
        monkeypatch.setattr(service.app, "traces_from", lambda *_: traces)
        settings = Settings(models=repository, compute_threads=1)
        self.application = service.app.create_app(settings, self.entries.append)

    async def call(self, path, document, *headers):
        body = json.dumps(document).encode()
        named = [(b"content-type", b"application/json"), (b"host", b"localhost"), *headers]
        self.exporter.clear()
        request = self.application.request("POST", path, b"", named, ("192.0.2.7", 1))
        request.body = body
        reply = await self.application.answer(request)
        request.status = reply.status
        self.application.finish(request)
        spans = {span.name: span for span in self.exporter.get_finished_spans()}
        root = spans.pop(f"POST {path}", None)
        return json.loads(reply.body), root, spans, self.entries[-1]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def app(repository, monkeypatch):
    return App(repository, monkeypatch)


def test_turn_begins_when_the_queue_ends(app):
    """The compute thread is taken for 50 ms; until then the request waits."""

    async def call():
        wide = {"model": "wide", "inputs": [[[0.5] * 64] * 100], "returns": ["h_n"]}
        await app.call("/rnn/forward", wide)  # the model is loaded
        pool = app.application.posts["/rnn/forward"].inference._pool
        for _ in range(pool._max_workers):
            pool.submit(sleep, 0.05)
        begun = time_ns()
        return begun, *await app.call("/rnn/forward", wide), time_ns()

    begun, _, root, spans, entry, ended = asyncio.run(call())
    assert list(spans) == ["decode", "queue", "turn", "encode"]
    assert {span.parent.span_id for span in spans.values()} == {root.context.span_id}
    edges = [edge for span in spans.values() for edge in (span.start_time, span.end_time)]
    whole = [begun, root.start_time, *edges, root.end_time, ended]
    assert all(before <= after + 1000 for before, after in pairwise(whole))  # ns, as clocks are read one by one
    queue, turn = spans["queue"], spans["turn"]
    assert queue.end_time - queue.start_time >= 40e6
    assert turn.start_time == pytest.approx(queue.end_time, abs=1000)
    assert turn.end_time - turn.start_time >= root.attributes["rnn.seconds.compute"] * 1e9 - 1000
    assert entry["ms"]["queue"] == pytest.approx((queue.end_time - queue.start_time) / 1e6, abs=0.01)


def test_server_span_says_what_the_log_says(app):
    two = {"model": "tanh", "inputs": [[[1, 2, 3, 4]] * 3, [[1, 2, 3, 4]] * 2]}
    parent = (b"traceparent", PARENT), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")
    reply, root, _, entry = asyncio.run(app.call("/rnn/forward", two, *parent))
    assert root.kind == SpanKind.SERVER
    assert root.status.status_code == StatusCode.UNSET
    assert (f"{root.parent.trace_id:032x}", f"{root.parent.span_id:016x}", root.parent.is_remote) == (TRACE, SPAN, True)
    assert dict(root.context.trace_state) == {"a": "1", "b": "2"}
    assert entry["trace_id"] == TRACE
    wanted = {
        "http.request.method": "POST",
        "http.route": "/rnn/forward",
        "url.path": "/rnn/forward",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "192.0.2.7",
        "rnn.request_id": entry["request_id"],
        "rnn.model": reply["model"],
        "rnn.model_version": reply["version"],
        "rnn.rows": 2,
        "rnn.steps": 5,
    }
    assert wanted.items() <= root.attributes.items()
    assert not {"error.type", "rnn.problem"} & root.attributes.keys()


def test_mistake_of_a_client_is_no_error_of_the_server(app, monkeypatch):
    async def no_commit(*_):
        await asyncio.sleep(0.05)
        raise StoreUnavailable("the store is gone")

    async def calls():
        opened, *_ = await app.call("/cell/sessions", {"model": "tanh"})
        wrong = await app.call("/cell/step", {"model": "nothing"})
        return wrong, await app.call("/cell/step", {"session": opened["session"], "inputs": [1, 2, 3, 4]})

    monkeypatch.setattr(MemoryStore, "commit", no_commit)
    (_, wrong, below, _), (_, lost, stages, entry) = asyncio.run(calls())
    assert (wrong.status.status_code, lost.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert (wrong.attributes["rnn.problem"], lost.attributes["rnn.problem"]) == ("model-not-found", "store-unavailable")
    assert wrong.attributes["http.response.status_code"] == 404
    assert "error.type" not in wrong.attributes
    assert lost.attributes["error.type"] == "store-unavailable"
    assert list(below) == ["decode"]
    commit = stages["commit"]
    assert 50e6 <= commit.end_time - commit.start_time < 1e9
    assert entry["ms"]["commit"] >= 50


ZEROS = [PARENT.replace(TRACE.encode(), b"0" * 32), PARENT.replace(SPAN.encode(), b"0" * 16)]
STRANGE = [b"", b"00", PARENT.upper(), b"ff" + PARENT[2:], PARENT + b"-more", b"0" * 60_000, b"\xff\x00", *ZEROS]


@pytest.mark.parametrize("parents", [*([one] for one in STRANGE), [PARENT, PARENT]])
def test_invalid_parent_is_ignored(app, parents, caplog):
    """As W3C Trace Context has it: the request begins a trace of its own; and the log does not fill."""
    _, root, _, entry = asyncio.run(app.call("/cell/step", STEP, *[(b"traceparent", parent) for parent in parents]))
    assert root.parent is None
    assert entry["trace_id"] not in (TRACE, "0" * 32)
    assert not caplog.records


@given(parent=st.binary() | st.just(PARENT), state=st.binary() | st.text("a=,@1 \t").map(str.encode))
def test_no_header_breaks_a_trace(parent, state):
    traces, exporter = in_memory()
    request = Request("POST", "/", b"", {b"traceparent": parent, b"tracestate": state}, "", "r")
    assert len(traces.record(request, 0.001)) == 32
    assert len(exporter.get_finished_spans()) == 1


@pytest.mark.parametrize("headers", [[], [(b"traceparent", PARENT[:-1] + b"0")]])
def test_unsampled_request_has_no_spans(repository, monkeypatch, headers):
    """By ratio, or by its caller's decision."""
    app = App(repository, monkeypatch, sampling.ParentBased(sampling.TraceIdRatioBased(0)))
    _, root, spans, entry = asyncio.run(app.call("/cell/step", STEP, *headers))
    assert (root, spans) == (None, {})
    assert "trace_id" not in entry


def test_intervals_are_bounded_and_pieces_are_one():
    request = Request("POST", "/", b"", {}, "", "r", intervals=[])
    for _ in range(1000):
        request.mark("decode", 1.0)
    assert len(request.intervals) == 1
    for start in range(1000):
        request.book(Timings(start, start + 0.25, start + 0.75, 0.5))
    assert len(request.intervals) == MAX_INTERVALS
    assert request.stages["compute"] == pytest.approx(500)


def test_off_unless_an_endpoint_is_set(repository):
    application = service.app.create_app(Settings(models=repository))
    assert application.request("POST", "/cell/step", b"", [], None).intervals is None
    off = ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}
    for variables in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, *off):
        assert traces_from(variables, "1") is None


def test_what_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    for variables, named in (
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "'collector:4318'; expected http"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "http/protobuf"),
        (ENDPOINT, "pip install opentelemetry-exporter-otlp-proto-http"),
    ):
        with pytest.raises(ValueError, match=named):
            traces_from(variables, "1")
