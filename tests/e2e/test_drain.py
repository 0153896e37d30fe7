"""SIGTERM with `RNN_DRAIN_SECONDS`: readiness fails at once, and whatever comes is served until the drain is over."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat
from time import monotonic

import httpx
import pytest

from .problems import assert_document
from .raw import Wire, chunk, head, post, stream_head
from .running import until
from .sessions import opened

DRAIN_SECONDS = 6
FORWARD = {"model": "tanh", "inputs": [[1, 2, 3, 4]], "returns": ["last"]}
STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'
TWO = pytest.param(2, marks=pytest.mark.integration)


@pytest.fixture(params=[1, TWO])
def draining(request, launch, tmp_path):
    """Start a service of one and of two workers."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    return lambda **settings: launch(workers=request.param, session_store=store, **settings)


def until_refused(service, path, bodies, kept=0):
    """Calls one after the other, on a kept connection or each on its own; the time at which one is not taken."""
    with service.client(limits=httpx.Limits(max_keepalive_connections=kept)) as client:
        while True:
            try:
                reply = client.post(path, json=(body := next(bodies)))
            except httpx.TransportError:
                return monotonic()
            assert (reply.status_code, reply.json().get("step")) == (200, body.get("step")), reply.text


def test_drain_refuses_nothing(draining):
    service = draining(drain_seconds=DRAIN_SECONDS)
    session = opened(service, "tanh")
    steps = ({"session": session, "inputs": [1, 2, 3, 4], "step": number} for number in count(1))
    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(until_refused, service, "/rnn/forward", repeat(FORWARD), kept) for kept in (0, 1)]
        clients.append(pool.submit(until_refused, service, "/cell/step", steps))
        until(lambda: service.metric("rnn_requests_total") > 20, "all clients call")
        signalled = monotonic()
        service.signal_to_stop()
        failed = until(lambda: (reply := service.get("/health/ready")).status_code == 503 and reply, "readiness fails")
        assert monotonic() < signalled + DRAIN_SECONDS
        assert failed.json()["reasons"] == ["shutting down"]
        for client in clients:
            assert client.result() >= signalled + DRAIN_SECONDS
    service.check_ended()


def test_connections_and_streams_in_a_drain(launch):
    """A kept connection is told to close by its next reply, either entrance; a stream ends when the drain is over."""
    service = launch(drain_seconds=DRAIN_SECONDS)
    with Wire(service) as direct, Wire(service) as by_asgi, Wire(service) as idle, Wire(service) as stream:
        both = ((direct, post("/cell/step", STEP)), (by_asgi, head("GET", "/models")))
        for wire, request in (*both, (idle, head("GET", "/health/live"))):
            wire.send(request)
            reply = wire.reply()
            assert (reply.status, reply.headers.get("connection")) == (200, None)
        stream.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert stream.status_and_headers()[0] == 200
        service.signal_to_stop()
        until(lambda: service.get("/health/ready").status_code == 503, "readiness fails")
        for wire, request in both:
            wire.send(request)
            reply = wire.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert wire.is_closed()
        assert json.loads(stream.chunk())["step"] == 1
        stream.send(chunk(b"[1,2,3,4]\n"))
        assert json.loads(stream.chunk())["step"] == 2
        assert not idle.has_answer()
        assert_document(json.loads(stream.chunk())["error"], 503, "service-draining", "shutting down")
        assert idle.is_closed()
    service.check_ended()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_drain(draining, second):
    service = draining(drain_seconds=3600)
    service.signal_to_stop()
    until(lambda: service.get("/health/ready").status_code == 503, "readiness fails")
    service.process.send_signal(second)
    service.check_ended()


def test_second_signal_may_follow_at_once(draining):
    """Two of a kind could become one on their way."""
    service = draining(drain_seconds=3600)
    service.signal_to_stop()
    service.process.send_signal(signal.SIGINT)
    service.check_ended()
