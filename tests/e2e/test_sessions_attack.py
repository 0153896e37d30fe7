"""What was tried to break sessions with, and once did."""

import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from service.spec import ModelSpec

from .models import write_model
from .problems import assert_problem
from .raw import post
from .running import until
from .test_sessions import ADMIN, opened, stepped, vectors

NDJSON = {"content-type": "application/x-ndjson"}


def replace_weights(models):
    shutil.rmtree(models / "tanh")
    write_model(models, "tanh", 1, ModelSpec("rnn", 4, 6, bias=False))


@pytest.mark.parametrize("named", ["[1, 2, 3]", "[1]", "[[1], [2, 3]]", '["a"]', "1", "null", "{}", '""'])
def test_a_session_in_the_body_that_is_not_the_one_of_the_header(service, named):
    header = {"x-session-id": opened(service, "tanh")}
    body = f'{{"session": {named}, "inputs": [1, 2, 3, 4]}}'
    reply = service.post("/cell/step", content=body, headers={"content-type": "application/json"} | header)
    assert_problem(reply, 422, "invalid-request", "session")
    reply = service.post("/cell/step", content=f'{{"session": {named}}}\n[1, 2, 3, 4]\n', headers=NDJSON | header)
    assert_problem(reply, 422, "invalid-request", "session")


def test_sessions_of_another_process_outlive_new_weights(launch, tmp_path):
    models = tmp_path / "models"
    write_model(models, "tanh", 1, ModelSpec("rnn", 4, 6))
    shared = {"session_store": f"sqlite:///{tmp_path}/sessions.db", "admin_keys": "the-admin-key"}
    one, other = launch(models, **shared), launch(models, **shared)
    inputs = vectors("tanh", 3)
    before = one.post("/rnn/forward", {"inputs": inputs.tolist()}).json()["outputs"]
    old = opened(one, "tanh")
    until(lambda: other.get("/models/tanh").json()["state"] == "loaded", "the other has what the session runs on")
    assert stepped(one, old, inputs[0], 1)["outputs"] == before[0]

    replace_weights(models)
    assert stepped(other, old, inputs[1], 2)["outputs"] == before[1]
    assert one.post("/models/tanh/reload", headers=ADMIN).status_code == 200
    after = one.post("/rnn/forward", {"inputs": inputs.tolist()}).json()["outputs"]
    assert after != before
    new = opened(one, "tanh")
    assert stepped(other, new, inputs[0], 1)["outputs"] == after[0]  # though it has not been reloaded
    assert other.post("/models/tanh/reload", headers=ADMIN).status_code == 200
    for service in (other, one):
        assert stepped(service, new, inputs[1], 2)["outputs"] == after[1]
        assert stepped(service, old, inputs[2], 3)["outputs"] == before[2]


def test_a_session_opened_elsewhere_a_moment_ago_outlives_a_reload(launch, tmp_path):
    models = tmp_path / "models"
    write_model(models, "tanh", 1, ModelSpec("rnn", 4, 6))
    shared = {"session_store": f"sqlite:///{tmp_path}/sessions.db", "admin_keys": "the-admin-key"}
    one, other = launch(models, **shared), launch(models, **shared)
    inputs = vectors("tanh", 1)
    before = one.post("/rnn/forward", {"inputs": inputs.tolist()}).json()["outputs"]
    session = opened(other, "tanh")
    replace_weights(models)
    one.post("/models/tanh/reload", headers=ADMIN)
    assert stepped(one, session, inputs[0], 1)["outputs"] == before[0]


def test_weights_that_cannot_be_read_end_no_session(launch, tmp_path):
    models = tmp_path / "models"
    write_model(models, "tanh")
    service = launch(models, admin_keys="the-admin-key", session_store=f"sqlite:///{tmp_path}/sessions.db")
    session = opened(service, "tanh")
    before = stepped(service, session, vectors("tanh", 1)[0], 1)
    service.stop()
    file = models / "tanh/1/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    again = launch(models, session_store=f"sqlite:///{tmp_path}/sessions.db")
    for _ in range(2):
        assert_problem(again.get(f"/cell/sessions/{session}"), 503, "model-failed", "cannot be served")
    file.write_bytes(whole)
    assert stepped(again, session, vectors("tanh", 1)[0], 1) == before


def test_a_client_that_pipelines_and_does_not_read_is_not_read_either(launch):
    service = launch()
    session = opened(service, "tanh")
    many = post("/cell/step", json.dumps({"session": session, "inputs": [1, 2, 3, 4]}).encode()) * 1000
    before, sent = service.rss_mib, 0
    with socket.create_connection(("127.0.0.1", service.port), timeout=1) as client:
        with suppress(TimeoutError):
            while sent < 64 * 2**20:
                sent += client.send(many)
        assert sent < 64 * 2**20
        assert service.rss_mib < before + 64
    until(lambda: service.connections == 0, "the hung up connection is gone")
    assert service.get(f"/cell/sessions/{session}").status_code == 200


def test_a_client_that_pipelines_and_reads_gets_every_answer_in_order(launch):
    service = launch(header_timeout_seconds=0.5)
    session = opened(service, "tanh")
    count = 4000
    steps = [{"session": session, "inputs": [1, 2, 3, 4], "step": number} for number in range(1, count + 1)]
    slow = {"model": "wide", "inputs": [[[0.5] * 64] * 3000] * 4, "returns": ["h_n"]}
    requests = [
        post("/rnn/forward", json.dumps(slow).encode()),
        *(post("/cell/step", json.dumps(one).encode()) for one in steps),
    ]
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, b"".join(requests))
        got = b""
        while got.count(b'"step":') < count and (data := client.recv(2**20)):
            got += data
        sending.result()
    assert [int(number) for number in re.findall(rb'"step":(\d+)', got)] == list(range(1, count + 1))
