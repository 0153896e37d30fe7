"""Limits: sizes of bodies, compressed or not; full queues; deadlines; memory after hard work."""

import json
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from .formats import COMPRESS, NDJSON, SAFETENSORS, post_arrays, safetensors
from .problems import assert_problem
from .raw import Wire, head, post
from .running import start, until
from .sessions import opened
from .watching import dropped, memory_returns, others_are_served

BOMB_BYTES = 128 * 2**20
SMALL = b'{"model":"tanh","inputs":[[1,2,3,4]]}'
STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'


@pytest.mark.parametrize("encoding", COMPRESS)
def test_bomb_is_refused(service, encoding):
    bomb, headers = COMPRESS[encoding](bytes(BOMB_BYTES)), {"content-encoding": encoding}
    with memory_returns(service), others_are_served(service):
        before = service.rss_mib
        for path in ("/rnn/forward", "/cell/step") * 2:
            reply = service.post(path, content=bomb, headers=headers)
            assert_problem(reply, 413, "body-too-large", str(4 * 2**20))
        headers["content-type"] = NDJSON
        reply = service.post("/cell/step?model=tanh", content=bomb, headers=headers)
        assert_problem(reply, 413, "body-too-large", "line")
        assert service.rss_mib < before + 100


def test_body_at_the_limit_is_read(service):
    assert service.post("/rnn/forward", content=SMALL.ljust(4 * 2**20)).status_code == 200
    assert_problem(service.post("/rnn/forward", content=SMALL.ljust(4 * 2**20 + 1)), 413, "body-too-large")


def wide(steps, **headers):
    """A forward of about 1.7 million multiplications and additions a step."""
    body = safetensors({"inputs": np.full((steps, 64), 0.1, np.float32)}, model="wide", returns='["last"]')
    return post("/rnn/forward", body, {"Content-Type": SAFETENSORS} | headers)


def status_of(service, request):
    with Wire(service) as wire:
        wire.send(request)
        return wire.reply().status


@pytest.fixture(scope="module")
def busy(repository, tmp_path_factory):
    """One compute thread, and two requests at most that wait for it or run on it."""
    running = start(
        repository,
        tmp_path_factory.mktemp("busy"),
        compute_threads=1,
        max_queued_requests=2,
        header_timeout_seconds=1,
        body_timeout_seconds=1,
        max_sessions=3,
    )
    assert status_of(running, wide(20)) == status_of(running, post("/cell/step", STEP)) == 200  # both are loaded
    yield running
    running.stop()


def queued(service):
    return service.metric("rnn_queued_requests")


@pytest.fixture
def full(busy):
    """The same while its queue is full, of requests that run until their clients hang up."""
    long = wide(50_000)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Wire(busy)).send(long)
        until(lambda: queued(busy) == 2, "the queue is full")
        yield busy
    until(lambda: queued(busy) == 0, "requests of clients that hung up leave the queue")
    assert status_of(busy, wide(500)) == 200


def test_full_queue_refuses(full):
    reply = full.post("/rnn/forward", {"model": "tanh", "inputs": [[0.1] * 4] * 500})
    assert_problem(reply, 503, "service-full")
    assert int(reply.headers["retry-after"]) >= 1
    # A step that is small enough to run at once needs no place in the queue.
    assert status_of(full, post("/cell/step", STEP)) == 200


@pytest.mark.parametrize("size", [1, 65_536, 300_000, 3_000_000])
def test_refused_client_gets_its_answer(full, size):
    """Whatever its body's size is; no part of the body is taken as a request, and order is kept."""
    inside = post("/rnn/forward", SMALL, {"X-Request-Id": "inside"})
    body = (inside * (size // len(inside) + 1))[:size]
    requests = post("/rnn/forward", body, {"X-Request-Id": "refused"}) + post(
        "/cell/step", STEP, {"X-Request-Id": "next"}
    )
    with Wire(full) as wire:

        def send():
            with suppress(OSError):  # the service may close the connection after the answer
                wire.send(requests)

        sending = threading.Thread(target=send)
        sending.start()
        reply = wire.reply()
        assert_problem(reply, 503, "service-full")
        assert reply.headers["x-request-id"] == "refused"
        with suppress(ConnectionError):
            reply = wire.reply()
            assert (reply.headers["x-request-id"], reply.status) == ("next", 200)
        sending.join()


def test_refused_body_that_never_comes(full):
    with Wire(full) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 100_000}) + b"1" * 1000)
        assert dropped(wire).split()[1] in (b"408", b"503")


def test_refused_connection_may_stay_idle(full):
    """The clock for headers does not run between requests."""
    with Wire(full) as wire, Wire(full) as half:
        wire.send(post("/rnn/forward", SMALL))
        assert wire.reply().status == 503
        half.send(b"GET / HT")
        assert dropped(half) == b""
        wire.send(post("/cell/step", STEP))
        assert wire.reply().status == 200


def test_one_client_may_not_take_every_place(guarded):
    """It may take six of eight."""
    keys = {name: {"Authorization": f"Bearer {name}"} for name in ("one", "two")}
    assert status_of(guarded, wide(20, **keys["one"])) == 200
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(Wire(guarded)).send(wide(20_000, **keys["one"]))
        until(lambda: queued(guarded) == 6, "all its places are taken")
        refused = guarded.post("/rnn/forward", content=SMALL, headers=keys["one"])
        assert_problem(refused, 429, "client-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert status_of(guarded, wide(20, **keys["two"])) == 200


def test_full_store_refuses_a_session(busy):
    sessions = [opened(busy, "tanh") for _ in range(3)]
    full = busy.post("/cell/sessions", {"model": "tanh"})
    assert_problem(full, 503, "sessions-full", "holds 3 sessions")
    assert full.headers["retry-after"]
    assert busy.delete(f"/cell/sessions/{sessions[0]}").status_code == 204
    opened(busy, "tanh")


def test_deadline_passes_before_the_body_comes(service):
    headers = {"Content-Length": len(SMALL), "X-Request-Timeout-Ms": 50, "Expect": "100-continue"}
    with Wire(service) as wire:
        wire.send(head("POST", "/rnn/forward", headers))
        assert wire.line() == b"HTTP/1.1 100 Continue"  # the service has read the head, so its clock runs
        assert wire.line() == b""
        passed = time.monotonic() + 0.1
        until(lambda: time.monotonic() > passed, "the deadline has passed")
        wire.send(SMALL)
        assert_problem(wire.reply(), 504, "deadline-passed", "did not run")


def test_memory_returns_after_large_requests(short_timeouts):
    service, steps = short_timeouts, 300_000
    inputs = np.full((steps, 4), 0.25, np.float32)
    as_json = json.dumps({"model": "tanh", "inputs": inputs.tolist(), "returns": ["last"]}).encode()
    bad = as_json.replace(b"]]", b",null]]")
    with memory_returns(service), others_are_served(service):
        for _ in range(2):
            assert service.post("/rnn/forward", content=as_json).status_code == 200
            assert len(post_arrays(service, "/rnn/forward", {"inputs": inputs}, model="tanh").content) > steps * 6 * 4
            assert service.post("/rnn/forward", content=bad).status_code in (400, 422)


def test_memory_returns_after_bad_requests(service):
    bodies = [b"{", b"[" * 100_000, b'{"model":"tanh","inputs":[[1,2,3,null]]}', b'{"model":"nothing","inputs":[1]}']
    requests = b"".join(post("/rnn/forward", body) for body in bodies)
    with Wire(service) as wire, memory_returns(service):
        for _ in range(100):
            wire.send(requests)
            for _ in bodies:
                assert wire.reply().status in (400, 404, 422)
