"""Many clients at once, while models come and go: every reply has the right numbers."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.reference import numbers

from .formats import line
from .models import SMALL, SPECS, assert_close, expected
from .raw import Wire, chunk, post, stream_head
from .running import until
from .watching import others_are_served

CLIENTS = 8


def test_models_change_under_load(launch):
    """The cache holds one model; that models are evicted, unloaded and reloaded shows in no reply."""
    service = launch(model_cache_bytes=1, admin_keys="admin")
    inputs = {name: numbers(np.random.default_rng(1), 30, SPECS[name].input_size) for name in SMALL}
    wanted = {name: expected(name, inputs[name]) for name in SMALL}
    admin = {"authorization": "Bearer admin"}

    def call(seed):
        choice = random.Random(seed)
        with service.client() as client:
            for _ in range(20):
                name, kind = choice.choice(SMALL), choice.random()
                if kind < 0.3:
                    change = "unload" if kind < 0.15 else "reload"
                    assert client.post(f"/models/{name}/{change}", headers=admin).status_code == 200
                    continue
                reply = client.post("/rnn/forward", json={"model": name, "inputs": inputs[name].tolist()})
                assert reply.status_code == 200, reply.text
                assert_close(reply.json()["outputs"], wanted[name].outputs)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(call, range(CLIENTS)))


def test_burst_of_steps_lets_others_in(service):
    """Replies with states run step by step; the burst goes on until others were served three times."""
    lines, sent = line([0.1, 0.2, 0.3, 0.4]) * 1000, 0
    with others_are_served(service) as answered, Wire(service) as wire, ThreadPoolExecutor(1) as pool:
        wire.send(stream_head("/cell/step?model=tanh&returns=h"))
        reading = pool.submit(wire.reply)
        while sent < 20 or answered() < 3:
            wire.send(chunk(lines))
            sent += 1
        wire.send(chunk(b""))
        assert reading.result().body.count(b"\n") == 1000 * sent


def test_stop_under_load_answers_or_refuses(launch):
    """The log has no error, and the exit code is 0."""
    service = launch(shutdown_seconds=60)
    body = b'{"model":"gru","inputs":[' + b",".join([b"[0.1,0.2,0.3,0.4]"] * 200) + b"]}"
    statuses = []

    def call(seed):
        choice = random.Random(seed)
        try:
            while True:
                with Wire(service) as wire:
                    if choice.random() < 0.5:
                        wire.send(post("/rnn/forward", body))
                    else:
                        wire.send(stream_head("/cell/step?model=gru"))
                        wire.send(chunk(line([0.1, 0.2, 0.3, 0.4]) * choice.randint(1, 300)) + chunk(b""))
                    if choice.random() < 0.8:
                        statuses.append(wire.reply().status)
        except (OSError, IndexError, ValueError):  # the service has gone, perhaps in the middle of a line
            return

    with ThreadPoolExecutor(CLIENTS) as pool:
        for seed in range(CLIENTS):
            pool.submit(call, seed)
        until(lambda: len(statuses) > 100, "some work is done")
        service.signal_to_stop()
    service.check_ended()
    assert set(statuses) <= {200, 503}
