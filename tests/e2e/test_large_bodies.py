"""Bodies that are read past the parser: whole however they are cut, and nothing of what follows them is lost."""

from contextlib import ExitStack

import numpy as np
import pytest
from safetensors.numpy import load, save

from .raw import Wire, head, post

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
STEPS = 24_000  # 384 KB


def body_of(seed):
    inputs = np.random.default_rng(seed).standard_normal((1, STEPS, 4), dtype=np.float32)
    return save({"inputs": inputs}, {"model": "tanh", "returns": '["h_n"]'})


@pytest.fixture(scope="module")
def bodies(service):
    """Three bodies, and the answers to them when each came alone and in small pieces that the parser saw."""
    known = {}
    for seed in range(3):
        body = body_of(seed)
        with Wire(service) as wire:
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9999], body[9999:])) + b"0\r\n\r\n"
            wire.send(head("POST", "/rnn/forward", SAFETENSORS | {"Transfer-Encoding": "chunked"}) + chunks)
            reply = wire.reply()
            assert reply.status == 200, reply.body
            known[body] = load(reply.body)["h_n"]
    return known


@pytest.mark.parametrize("first", [1, 1000, 200_000, 383_000])
def test_a_large_body_is_the_same_however_it_is_cut(service, bodies, first):
    with Wire(service) as wire:
        for body, answer in bodies.items():  # one after the other on one connection
            request = post("/rnn/forward", body, SAFETENSORS)
            begin = len(request) - len(body) + first
            for part in (request[:begin], request[begin:-1], request[-1:]):
                wire.send(part)
            np.testing.assert_array_equal(load(wire.reply().body)["h_n"], answer)


def test_requests_that_are_sent_right_after_a_large_body_are_answered_in_order(service, bodies):
    small = head("GET", "/health/live")
    with Wire(service) as wire:
        wire.send(b"".join(post("/rnn/forward", body, SAFETENSORS) + small for body in bodies))
        for answer in bodies.values():
            np.testing.assert_array_equal(load(wire.reply().body)["h_n"], answer)
            assert wire.reply().status == 200


def test_who_goes_in_the_middle_of_a_large_body_harms_nobody(service, bodies):
    body, answer = next(iter(bodies.items()))
    for part in (100_000, 300_000, len(body) - 1):
        with Wire(service) as wire:
            wire.send(head("POST", "/rnn/forward", SAFETENSORS | {"Content-Length": len(body)}) + body[:part])
    with Wire(service) as wire:
        wire.send(post("/rnn/forward", body, SAFETENSORS))
        np.testing.assert_array_equal(load(wire.reply().body)["h_n"], answer)


@pytest.mark.parametrize("path", ["/cell/step", "/rnn/forward"])
def test_a_head_alone_takes_no_memory_for_its_body(service, path):
    with ExitStack() as stack:
        before = service.process.memory_info().rss
        for _ in range(4):
            wire = stack.enter_context(Wire(service))
            wire.send(head("POST", path, SAFETENSORS | {"Content-Length": 60 * 2**20}) + bytes(1000))
            wire.send(bytes(1000))
        assert service.get("/health/live").status_code == 200
        assert service.process.memory_info().rss < before + 30 * 2**20
