"""The compose profile `scaled` without its containers: nginx with its own configuration, two replicas, one Valkey."""

import json

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.chaos.faults import MODEL, SPEC, Deployment
from tests.stores.servers import PROGRAM, Server

from .proxy import NGINX, nginx
from .running import ANSWER_SECONDS, start, until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(PROGRAM is None or NGINX is None, reason="needs nginx, and valkey-server or redis-server"),
]


@pytest.fixture
def scaled(tmp_path):
    """The address of nginx, and the replicas behind it."""
    server = Server(tmp_path)
    server.start()
    deployment = Deployment(tmp_path, session_store=server.url)
    replicas = [deployment.service, start(deployment.models, tmp_path / "second", session_store=server.url)]
    try:
        with nginx(tmp_path, replicas) as url:
            yield url, replicas
    finally:
        for replica in replicas:
            if replica.process.poll() is None:
                replica.stop()
        server.stop()


def test_any_replica_answers_any_step(scaled):
    url, replicas = scaled
    inputs = np.random.default_rng(0).standard_normal((60, SPEC.input_size)).astype(np.float32)
    whole = httpx.post(f"{url}/rnn/forward", json={"model": MODEL, "inputs": inputs.tolist()}).json()["outputs"]
    session = httpx.post(f"{url}/cell/sessions", json={"model": MODEL}).json()["session"]

    def step(number):
        body = {"session": session, "inputs": inputs[number - 1].tolist(), "step": number}
        reply = httpx.post(f"{url}/cell/step", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["outputs"] == whole[number - 1]

    for number in range(1, 31):
        step(number)
    until(lambda: all(replica.metric("rnn_steps_total") for replica in replicas), "both replicas have stepped")
    replicas[0].stop()
    for number in range(31, 51):
        step(number)
    # Streams go through as WebSockets, from where the unary steps left off.
    with connect(f"{url.replace('http', 'ws')}/cell/stream", max_size=None) as socket:
        socket.send(json.dumps({"session": session}))
        for number in range(51, 61):
            socket.send(json.dumps({"inputs": inputs[number - 1].tolist(), "step": number}))
            assert json.loads(socket.recv(timeout=ANSWER_SECONDS)) == {"outputs": whole[number - 1], "step": number}
    assert httpx.get(f"{url}/cell/sessions/{session}").json()["step"] == 60
