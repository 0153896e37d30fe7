"""HTTP itself: versions, framing, pipelines, upgrades, and bytes that are no HTTP."""

import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .formats import NDJSON, SAFETENSORS, safetensors
from .problems import assert_problem
from .raw import Wire, chunk, head, post
from .sessions import opened

BODY = b'{"model":"tanh","inputs":[[1,2,3,4]]}'
WHOLE = post("/rnn/forward", BODY)
CHUNKED = {"Transfer-Encoding": "chunked"}


def send(service, data):
    with Wire(service) as wire:
        wire.send(data)
        return wire.reply()


@pytest.fixture(scope="module")
def wanted(service):
    return send(service, WHOLE).body


STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'
LONG = json.dumps({"model": "wide", "inputs": [[0.5] * 64] * 1000, "returns": ["last"]}).encode()
REQUESTS = {
    "step": ("POST", "/cell/step", STEP, {}),
    "forward": ("POST", "/rnn/forward", BODY, {}),
    "long forward": ("POST", "/rnn/forward", LONG, {}),
    "health": ("GET", "/health/live", b"", {}),
    "not JSON": ("POST", "/cell/step", b"{", {}),
    "compressed": ("POST", "/cell/step", gzip.compress(STEP), {"Content-Encoding": "gzip"}),
    "stream": ("POST", "/cell/step?model=tanh", b"[1,2,3,4]\n", {"Content-Type": NDJSON}),
    "deadline": ("POST", "/cell/step", STEP, {"X-Request-Timeout-Ms": 600_000}),
}


@pytest.mark.parametrize("seed", range(3))
def test_pipelined_replies_keep_their_order(service, seed):
    """Fast and slow requests, by every entrance."""
    names = random.Random(seed).choices(list(REQUESTS), k=40)
    requests = []
    for index, name in enumerate(names):
        method, path, body, headers = REQUESTS[name]
        sized = {"Content-Length": len(body)} if body else {}
        requests.append(head(method, path, sized | headers | {"X-Request-Id": f"n{index}"}) + body)
    with Wire(service) as wire:
        wire.send(b"".join(requests))
        replies = [wire.reply() for _ in requests]
    assert [reply.headers["x-request-id"] for reply in replies] == [f"n{index}" for index in range(40)]
    for name, reply in zip(names, replies, strict=True):
        assert reply.status == (400 if name == "not JSON" else 200), reply.body
        if name in ("step", "compressed", "deadline"):
            assert reply.body == send(service, post("/cell/step", STEP)).body


def test_pipelined_steps_follow_a_long_forward(short_timeouts):
    """The clock for headers, of 1 s, does not run while requests wait."""
    session, steps = opened(short_timeouts, "tanh"), range(1, 3001)
    inputs = safetensors({"inputs": np.full((40_000, 64), 0.5, np.float32)}, model="wide", returns='["h_n"]')
    step = f'{{"session":"{session}","inputs":[1,2,3,4],"step":%d}}'
    requests = [post("/rnn/forward", inputs, {"Content-Type": SAFETENSORS})]
    requests += [post("/cell/step", (step % number).encode()) for number in steps]
    with Wire(short_timeouts) as wire, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(wire.send, b"".join(requests))
        assert wire.reply().status == 200
        assert [wire.reply().json()["step"] for _ in steps] == list(steps)
        sending.result()


def test_trailers_are_no_headers(service, wanted):
    trailers = b"0\r\nContent-Type: text/html\r\nX-Request-Timeout-Ms: 0\r\nAccept: text/html\r\n\r\n"
    reply = send(service, head("POST", "/rnn/forward", CHUNKED) + chunk(BODY) + trailers)
    assert (reply.status, reply.body) == (200, wanted)


def test_expect_100_continue(service, wanted):
    with Wire(service) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": len(BODY), "Expect": "100-continue"}))
        assert wire.line() == b"HTTP/1.1 100 Continue"
        assert wire.line() == b""
        wire.send(BODY)
        assert wire.reply().body == wanted


@pytest.mark.parametrize("size", [4 * 2**20 + 1, 10**9])
def test_large_body_is_refused_from_its_head(service, size):
    with Wire(service) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": size, "Expect": "100-continue"}))
        reply = wire.reply()
    assert_problem(reply, 413, "body-too-large", str(size), str(4 * 2**20))
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nNul: a\x00b\r\n\r\n",
        head("CONNECT", "host:80"),
        head("POST", "/rnn/forward", {"Content-Length": -5}) + BODY,
        head("POST", "/rnn/forward", {"Content-Length": "+37"}) + BODY,
        head("POST", "/rnn/forward", {"Content-Length": "9" * 30}) + BODY,
        head("POST", "/rnn/forward", {"Content-Length": "37, 38"}) + BODY,
        head("POST", "/rnn/forward", {"Content-Length": 5, **CHUNKED}) + chunk(BODY) + chunk(b""),
        head("POST", "/rnn/forward", {"Transfer-Encoding": "identity"}) + BODY,
        head("POST", "/rnn/forward", CHUNKED) + b"zz\r\n",
        head("POST", "/rnn/forward", CHUNKED) + chunk(BODY[:5]) + b"-1\r\n",
        head("POST", "/rnn/forward", CHUNKED) + b"f" * 20 + b"\r\n",
        head("POST", "/rnn/forward", CHUNKED) + b"5\r\nabcdefg\r\n",
    ],
)
def test_bytes_that_are_no_http_are_refused(service, data):
    with Wire(service) as wire:
        wire.send(data)
        assert wire.reply().status == 400
        assert wire.is_closed()


def test_many_or_large_headers(service):
    for headers in ({f"x{index}": "v" for index in range(5000)}, {"X": "y" * 60_000}):
        assert send(service, head("GET", "/health/live", headers)).status in (200, 400)


SEEDS = [
    WHOLE,
    head("POST", "/cell/step?model=tanh&returns=h", {"Content-Type": NDJSON, **CHUNKED})
    + chunk(b'[1,2,3,4]\n{"inputs":[1,2,3,4],"step":2}\n')
    + chunk(b""),
    head("POST", "/rnn/forward", {"Accept": "application/vnd.safetensors", "X-Request-Timeout-Ms": 1000, **CHUNKED})
    + chunk(BODY)
    + chunk(b""),
    head("GET", "/models/tanh?x=%41#y", {"Accept-Encoding": "zstd;q=0.5, gzip"}),
]


@st.composite
def mutated(draw):
    """A good request with a few bytes deleted, inserted or replaced, or cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"[" * 9, b"0", b":", b"null", b"9" * 25])
        )
    return bytes(data[: draw(st.integers(1, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=mutated())
def test_mutated_requests_cause_no_failure(service, data):
    """Every reply is whole and no 500; the log is searched for errors when the service ends."""
    with Wire(service, seconds=0.02) as wire:
        wire.send(data)
        try:
            while True:
                reply = wire.reply()
                assert reply.status < 500 or reply.status == 504, reply
        except (ConnectionError, TimeoutError):
            pass
