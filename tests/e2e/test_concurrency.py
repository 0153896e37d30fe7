"""Many clients at once, while models come and go: everyone gets the right numbers."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.reference import TOLERANCE, numbers

from .models import SMALL, SPECS, expected
from .raw import Wire, chunk, post, stream_head
from .running import until
from .watching import others_are_served

CLIENTS = 8


def test_models_that_are_evicted_unloaded_and_reloaded_under_fire(launch):
    """The cache holds one model; none of this may show in a reply."""
    service = launch(model_cache_bytes=1, admin_keys="admin")
    inputs = {name: numbers(np.random.default_rng(1), 30, SPECS[name].input_size) for name in SMALL}
    wanted = {name: expected(name, inputs[name]) for name in SMALL}
    admin = {"authorization": "Bearer admin"}

    def call(seed):
        choice = random.Random(seed)
        with service.client() as client:
            for _ in range(60):
                name, kind = choice.choice(SMALL), choice.random()
                if kind < 0.3:
                    change = "unload" if kind < 0.15 else "reload"
                    assert client.post(f"/models/{name}/{change}", headers=admin).status_code == 200
                    continue
                reply = client.post("/rnn/forward", json={"model": name, "inputs": inputs[name].tolist()})
                assert reply.status_code == 200, reply.text
                np.testing.assert_allclose(reply.json()["outputs"], wanted[name].outputs, atol=TOLERANCE, rtol=0)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(call, range(CLIENTS)))


def test_a_burst_of_steps_that_answers_with_states_lets_others_in(service):
    """State by state is the slow way to run a block; others are answered in between."""
    lines, steps = b"[0.1,0.2,0.3,0.4]\n" * 1000, 20_000
    with others_are_served(service) as answered, ThreadPoolExecutor(1) as pool, Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh&returns=h"))
        sending = pool.submit(lambda: [wire.send(chunk(lines)) for _ in range(steps // 1000)] and wire.send(chunk(b"")))
        body = wire.reply().body
        meanwhile = answered()
        sending.result()
    assert body.count(b"\n") == steps
    assert meanwhile >= 3


def test_a_stop_in_the_middle_of_it_all(launch):
    """Whoever was let in is answered or told; the log has no error, and the exit code is 0."""
    service = launch(shutdown_seconds=15)
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
                        wire.send(chunk(b"[0.1,0.2,0.3,0.4]\n" * choice.randint(1, 300)) + chunk(b""))
                    if choice.random() < 0.8:
                        statuses.append(wire.reply().status)
        except (OSError, IndexError, ValueError):  # it has gone, perhaps in the middle of a line
            return

    with ThreadPoolExecutor(CLIENTS) as pool:
        for seed in range(CLIENTS):
            pool.submit(call, seed)
        until(lambda: len(statuses) > 100, "some work is done")
        service.signal_to_stop()
    service.check_ended()
    assert set(statuses) <= {200, 503}
