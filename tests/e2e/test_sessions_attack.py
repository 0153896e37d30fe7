"""What once broke sessions: new weights, other processes, a locked store, and clients that pipeline."""

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from service.spec import ModelSpec

from .formats import NDJSON
from .models import write_model
from .problems import assert_problem
from .raw import Wire, post
from .running import until
from .sessions import ADMIN, opened, stepped, vectors
from .watching import connections_close


def step_of(session, **fields):
    return post("/cell/step", json.dumps({"session": session, "inputs": [1, 2, 3, 4]} | fields).encode())


def replace_weights(models):
    shutil.rmtree(models / "tanh")
    write_model(models, "tanh", 1, ModelSpec("rnn", 4, 6, bias=False))


@pytest.mark.parametrize("named", ["[1, 2, 3]", "[1]", "[[1], [2, 3]]", '["a"]', "1", "null", "{}", '""'])
def test_session_of_body_and_header_must_agree(service, named):
    header = {"x-session-id": opened(service, "tanh")}
    body = f'{{"session": {named}, "inputs": [1, 2, 3, 4]}}'
    reply = service.post("/cell/step", content=body, headers={"content-type": "application/json"} | header)
    assert_problem(reply, 422, "invalid-request", "session")
    reply = service.post(
        "/cell/step", content=f'{{"session": {named}}}\n[1, 2, 3, 4]\n', headers={"content-type": NDJSON} | header
    )
    assert_problem(reply, 422, "invalid-request", "session")


def test_session_of_another_process_keeps_weights(launch, tmp_path):
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


def test_new_session_elsewhere_survives_reload(launch, tmp_path):
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


def test_unreadable_weights_end_no_session(launch, tmp_path):
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


def test_processes_step_one_session_in_turn(launch, tmp_path):
    """Each continues from where the session stands, not from what it saw last."""
    services = [launch(session_store=f"sqlite:///{tmp_path}/sessions.db") for _ in range(2)]
    session = opened(services[0], "tanh")
    with Wire(services[0]) as one, Wire(services[1]) as other:
        for number, wire in enumerate((one, one, other, other, one, other), 1):
            wire.send(step_of(session))
            assert wire.reply().json()["step"] == number
        one.send(step_of(session) * 8)
        assert [one.reply().json()["step"] for _ in range(8)] == list(range(7, 15))


def test_locked_store_is_unavailable_and_loses_nothing(launch, tmp_path):
    path = tmp_path / "sessions.db"
    service = launch(session_store=f"sqlite:///{path}")
    session = opened(service, "tanh")
    assert [stepped(service, session, [1, 2, 3, 4])["step"] for _ in range(2)] == [1, 2]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4]})
        assert_problem(refused, 503, "store-unavailable")
        other.execute("ROLLBACK")
    assert stepped(service, session, [1, 2, 3, 4])["step"] == 3


def test_client_that_does_not_read_is_not_read(service):
    session = opened(service, "tanh")
    many = step_of(session) * 1000
    before, sent = service.rss_mib, 0
    with Wire(service, seconds=1) as wire:
        with suppress(TimeoutError):
            while sent < 64 * 2**20:
                sent += wire.socket.send(many)
        assert sent < 64 * 2**20
        assert service.rss_mib < before + 64
    connections_close(service)
    assert service.get(f"/cell/sessions/{session}").status_code == 200


def test_pipelined_steps_are_answered_in_order(launch):
    """Although the clock for headers has run out meanwhile."""
    service = launch(header_timeout_seconds=0.5)
    session = opened(service, "tanh")
    count = 4000
    steps = range(1, count + 1)
    slow = {"model": "wide", "inputs": [[[0.5] * 64] * 3000] * 4, "returns": ["h_n"]}
    requests = [post("/rnn/forward", json.dumps(slow).encode()), *(step_of(session, step=step) for step in steps)]
    with Wire(service) as wire, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(wire.send, b"".join(requests))
        assert wire.reply().status == 200
        assert [wire.reply().json()["step"] for _ in steps] == list(steps)
        sending.result()
