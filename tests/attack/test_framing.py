"""Differential fuzz of framing: what is answered is exactly what was asked, directly and through nginx."""

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from tests.e2e.proxy import NGINX, nginx
from tests.e2e.raw import Wire, post

from .pipelines import INSIDE, STEPS, cuts, pipeline

PIPELINES = int(os.environ.get("RNN_TEST_PIPELINES", "150"))
"""For each seed."""


@pytest.fixture(scope="module")
def outputs(service):
    """The reply to each step, asked alone and plainly."""
    with Wire(service) as wire:
        replies = []
        for step in STEPS:
            wire.send(post("/cell/step", step))
            replies.append(wire.reply().body)
    assert len({*replies}) == len(STEPS)
    return replies


def check(server, outputs, requests, rng):
    """Send a pipeline in pieces; each request gets its reply, in order, up to the one that is broken."""
    with Wire(server) as wire:
        for piece in cuts(rng, b"".join(asked.data for asked in requests)):
            wire.send(piece)
            time.sleep(0.001)  # what is right does not depend on whether the pieces come apart
        for asked in requests:
            reply = wire.reply()
            assert reply.status == asked.status, (asked, reply)
            closes = reply.headers.get("connection") == "close"
            if asked.status == 400:
                assert (closes, asked.id in str(reply)) == (True, False)
            else:
                assert reply.headers["x-request-id"] == asked.id
            if asked.step is not None:
                assert reply.body == outputs[asked.step]
            if closes:
                break
        with suppress(OSError):  # closed already, over requests that come too late
            wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""


def check_all(server, outputs, seed, *, broken, early=True):
    rng = random.Random(seed)
    for index in range(PIPELINES):
        requests = pipeline(rng, f"{seed}-{index}", broken=broken and index % 3 == 0, early=early)
        try:
            check(server, outputs, requests, rng)
        except BaseException as error:
            error.add_note(repr([asked.data for asked in requests]))
            raise


def test_what_is_answered_is_what_was_asked(service, outputs):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check_all, service, outputs, seed, broken=True) for seed in range(4)]:
            done.result()
    assert not service.logged(f'"request_id":"{INSIDE}')


@pytest.mark.integration
@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_no_client_gets_the_answer_of_another(launch, outputs, tmp_path):
    """Through nginx, which sends the requests of all clients over the same connections."""
    replicas = [launch(), launch()]
    with nginx(tmp_path, replicas) as url, ThreadPoolExecutor(6) as pool:
        proxy = SimpleNamespace(port=int(url.rpartition(":")[2]))
        attacks = [pool.submit(attack, proxy, f"attack-{seed}") for seed in range(3)]
        for done in [
            pool.submit(check_all, proxy, outputs, f"sound-{seed}", broken=False, early=False) for seed in range(3)
        ]:
            done.result()
        for done in attacks:
            done.result()
    for replica in replicas:
        assert replica.logged('"request_id":"attack-')
        assert not replica.logged(f'"request_id":"{INSIDE}')


def attack(server, name):
    """Broken requests, which nginx may refuse itself: only their own ids come back, in order."""
    rng = random.Random(name)
    for index in range(PIPELINES):
        requests = pipeline(rng, f"{name}-{index}", broken=True)
        asked = iter([asked.id for asked in requests])
        with Wire(server) as wire, suppress(ConnectionError):
            for piece in cuts(rng, b"".join(asked.data for asked in requests)):
                wire.send(piece)
            wire.socket.shutdown(socket.SHUT_WR)
            while True:
                answered = wire.reply().headers.get("x-request-id")
                assert answered is None or answered in asked
