"""Large bodies: the same however they are cut, and nothing of what follows them is lost."""

from contextlib import ExitStack

import numpy as np
import pytest

from .formats import SAFETENSORS, safetensors
from .problems import assert_problem
from .raw import Wire, chunk, head, post

BINARY = {"Content-Type": SAFETENSORS}


@pytest.fixture(scope="module")
def bodies(service):
    """Bodies of 384 KB, and the answers to them when sent alone and chunked."""
    known = {}
    for seed in range(3):
        inputs = np.random.default_rng(seed).standard_normal((1, 24_000, 4), dtype=np.float32)
        body = safetensors({"inputs": inputs}, model="tanh", returns='["h_n"]')
        with Wire(service) as wire:
            wire.send(head("POST", "/rnn/forward", BINARY | {"Transfer-Encoding": "chunked"}))
            wire.send(b"".join(map(chunk, (body[:9999], body[9999:], b""))))
            reply = wire.reply()
        assert reply.status == 200, reply.body
        known[body] = reply.body
    return known


@pytest.mark.parametrize("first", [1, 1000, 200_000, 383_000])
def test_large_body_however_it_is_cut(service, bodies, first):
    with Wire(service) as wire:
        for body, answer in bodies.items():  # one after the other on one connection
            request = post("/rnn/forward", body, BINARY)
            begin = len(request) - len(body) + first
            for part in (request[:begin], request[begin:-1], request[-1:]):
                wire.send(part)
            assert wire.reply().body == answer


def test_requests_right_after_a_large_body(service, bodies):
    with Wire(service) as wire:
        wire.send(b"".join(post("/rnn/forward", body, BINARY) + head("GET", "/health/live") for body in bodies))
        for answer in bodies.values():
            assert wire.reply().body == answer
            assert wire.reply().status == 200


@pytest.mark.parametrize("path", ["/cell/step", "/rnn/forward"])
def test_declared_size_takes_no_memory(service, path):
    with ExitStack() as stack:
        before = service.rss_mib
        for _ in range(4):
            wire = stack.enter_context(Wire(service))
            wire.send(head("POST", path, BINARY | {"Content-Length": 60 * 2**20}) + bytes(1000))
            wire.send(bytes(1000))
        assert service.get("/health/live").status_code == 200
        assert service.rss_mib < before + 30


def test_infinity_in_a_large_reply_is_refused(service):
    """The reply is printed in pieces, and refused whole."""
    request = {"model": "explodes", "inputs": np.ones((1, 60_000, 1)).tolist(), "returns": ["outputs"]}
    assert_problem(service.post("/rnn/forward", json=request), 422, "non-finite-output", "outputs of row 0")
