"""Two replicas on a real Ray Serve, behind HAProxy or Ray's own proxy, with sessions in a real Valkey."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from service.spec import ModelSpec
from tests.reference import run_reference, weights_of
from tests.stores.servers import PROGRAM, Server

from .formats import NDJSON, post_arrays
from .models import SPECS, assert_close, expected, write_model
from .problems import assert_document
from .raw import Wire, chunk, head, stream_head
from .ray_cluster import HAS_RAY, Cluster
from .running import until
from .sessions import opened, steps_done, vectors
from .sockets import opened as socket_opened
from .step_streams import KINDS, StepStream

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_RAY or PROGRAM is None, reason="needs ray, and valkey-server or redis-server"),
]

NAME = "gru"
WIDTH = SPECS[NAME].hidden_size
SERIES = ModelSpec("lstm", 3, 6).with_linear_head(3)
CLIENTS, STEPS = 4, 60


@pytest.fixture(scope="module", params=[True, False], ids=["haproxy", "own"])
def ray(request, tmp_path_factory):
    """The cluster, whose replicas the last test stops."""
    folder = tmp_path_factory.mktemp("ray")
    write_model(folder / "models", NAME)
    write_model(folder / "models", "series", 1, SERIES)
    server = Server(folder)
    server.start()
    try:
        with Cluster(
            folder / "models", server.url, haproxy=request.param, preload=NAME, body_timeout_seconds=2
        ) as running:
            yield running
    finally:
        server.stop()


def test_both_replicas_answer_forwards(ray):
    rows = [vectors(NAME, steps, seed=steps) for steps in (3, 8)]
    wanted = [expected(NAME, row) for row in rows]

    def forward():
        reply = ray.post("/rnn/forward", {"model": NAME, "inputs": [row.tolist() for row in rows]}).json()
        for found, result in zip(reply["predictions"], wanted, strict=True):
            assert_close(found, result.predictions)
        arrays = load(post_arrays(ray, "/rnn/forward", {"inputs": rows[1]}, model=NAME).content)
        assert_close(arrays["predictions"], wanted[1].predictions)
        return all('"path":"/rnn/forward"' in ray.log_of(replica) for replica in ray.replicas())

    until(forward, "both have answered")


def test_generated_lines(ray):
    row = np.array([[0.1, 0.2, 0.3]])
    fields = {"model": "series", "inputs": row.tolist(), "steps": 9}
    reply = ray.post("/rnn/generate", fields, headers={"accept": NDJSON})
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    for line in lines:
        prediction = run_reference(SERIES, weights_of(SERIES, seed=1), row).predictions[-1]
        assert_close(line["predictions"], prediction)
        row = np.vstack([row, prediction])


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_of_a_stream_is_answered_at_once(ray, kind):
    inputs = vectors(NAME, 12)
    outputs = {}
    with StepStream(ray, kind, f"model={NAME}") as stream:
        for each in inputs:
            stream.send(each[None])
            outputs |= stream.receive_steps(1, WIDTH)
    assert_close([outputs[step] for step in range(1, 13)], expected(NAME, inputs).outputs)


BAD = {"Content-Length: 5\r\nContent-Length: 3": 400, "Transfer-Encoding: xchunked": 400}
BAD |= {f"Content-Length: {2**30}": 413, "Content-Length: 100": 408}


@pytest.mark.parametrize("framing", BAD)
def test_bad_bodies_are_refused(ray, framing):
    with Wire(ray) as wire:
        wire.send(head("POST", "/rnn/forward").replace(b"\r\n\r\n", f"\r\n{framing}\r\n\r\n".encode()) + b"[1,2]")
        assert wire.reply().status == BAD[framing]


def test_unread_answers_pause_reading(ray):
    if not ray.haproxy:
        pytest.skip("Ray's own proxy keeps what comes, however much it is")
    lines = chunk(b"[1,2,3,4]\n" * 50_000)
    with Wire(ray, seconds=10) as wire, pytest.raises(TimeoutError):
        list(map(wire.send, [stream_head(f"/cell/step?model={NAME}"), *200 * [lines]]))


def test_steps_go_on_while_a_replica_is_killed(ray):
    """Every step once: clients retry by number, one call at a time or over streams that they open anew."""
    inputs = [vectors(NAME, STEPS, seed=client) for client in range(CLIENTS)]
    sessions = [opened(ray, NAME) for _ in range(CLIENTS)]
    outputs = [{} for _ in range(CLIENTS)]

    def answer(http, body):
        with suppress(httpx.TransportError):
            reply = http.post("/cell/step", json=body)
            return reply if reply.status_code < 500 else None

    def call(client):
        with ray.client() as http:
            for number, each in enumerate(inputs[client].tolist(), 1):
                body = {"session": sessions[client], "inputs": each, "step": number, "returns": ["outputs"]}
                reply = until(partial(answer, http, body), f"step {number} is answered")
                assert reply.status_code == 200, reply.text
                outputs[client][number] = reply.json()["outputs"]

    def stream(client):
        done = outputs[client]
        while (first := len(done) + 1) <= STEPS:
            # A handshake that is refused has no key.
            with suppress(OSError, KeyError), StepStream(ray, "text", f"session={sessions[client]}", step=first) as one:
                while (number := len(done) + 1) <= STEPS:
                    one.send(inputs[client][number - 1 : number], number)
                    done |= one.receive_steps(1, WIDTH)

    victim, _ = ray.replicas()
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(call if client % 2 else stream, client) for client in range(CLIENTS)]
        until(lambda: sum(map(len, outputs)) > CLIENTS * STEPS // 4, "a quarter of the steps is done")
        victim.kill()
        for one in running:
            one.result()
    for session, steps, found in zip(sessions, inputs, outputs, strict=True):
        assert_close([found[number] for number in range(1, STEPS + 1)], expected(NAME, steps).outputs)
        assert steps_done(ray, session) == STEPS
    until(lambda: len(ray.replicas()) == 2 and victim not in ray.replicas(), "another takes its place", every=0.5)


def test_stopped_replicas_end_their_streams(ray):
    """What runs is finished, a stream is told: Ray would wait for its end, and then cut it."""
    with Wire(ray) as lines, socket_opened(ray, f"?model={NAME}", "[1,2,3,4]") as socket:
        lines.send(stream_head(f"/cell/step?model={NAME}") + chunk(b"[1,2,3,4]\n"))
        assert lines.status_and_headers()[0] == 200
        assert json.loads(lines.chunk())["step"] == json.loads(socket.recv())["step"] == 1
        ray.stop_replicas()
        assert_document(json.loads(lines.chunk())["error"], 503, "service-draining", "shutting down")
        assert_document(json.loads(socket.recv())["error"], 503, "service-draining", "shutting down")
        with pytest.raises(Exception, match="1012"):
            socket.recv()
    until(lambda: not ray.replicas(), "the replicas have ended", every=0.5)
