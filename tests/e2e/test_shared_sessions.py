"""Sessions that two processes share, while weights, versions and the store change."""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from .conftest import ADMIN_KEY
from .models import SPECS, write_model
from .problems import assert_problem
from .running import replicas, until
from .sessions import ADMIN, opened, stepped, steps_done, vectors

NAMES = ("locked", "replaced", "replaced-elsewhere", "just-opened", "unreadable", "draining")
"""A model for each test, all with the architecture of "tanh"."""

INPUTS = vectors("tanh", 3)


def write(models, name, **changes):
    """Lay down the model, instead of what is there."""
    shutil.rmtree(models / name, ignore_errors=True)
    write_model(models, name, 1, replace(SPECS["tanh"], **changes))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two services, their repository, and their store."""
    folder = tmp_path_factory.mktemp("pair")
    for name in NAMES:
        write(folder / "models", name)
    store = f"sqlite:///{folder}/sessions.db"
    with replicas(folder / "models", folder, session_store=store, admin_keys=ADMIN_KEY) as services:
        yield *services, folder / "models", folder / "sessions.db"


def outputs_of(service, name):
    """What the weights that serve now give."""
    return service.post("/rnn/forward", {"model": name, "inputs": INPUTS.tolist()}).json()["outputs"]


def admin(service, name, call):
    reply = service.post(f"/models/{name}/{call}", headers=ADMIN)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_locked_store_loses_nothing(pair):
    service, _, _, store = pair
    session = opened(service, "locked")
    assert [stepped(service, session, INPUTS[0])["step"] for _ in range(2)] == [1, 2]
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4]})
        assert_problem(refused, 503, "store-unavailable")
        other.execute("ROLLBACK")
    assert stepped(service, session, INPUTS[0])["step"] == 3


def test_session_keeps_its_weights(pair):
    """When they are replaced, reloaded and unloaded."""
    service, _, models, _ = pair
    before, session = outputs_of(service, "replaced"), opened(service, "replaced")
    assert stepped(service, session, INPUTS[0])["outputs"] == before[0]
    write(models, "replaced", bias=False)
    view = admin(service, "replaced", "reload")
    assert [(one["replaced"], one["sessions"]) for one in view["versions"]] == [(True, 1), (False, 0)]
    assert stepped(service, session, INPUTS[1])["outputs"] == before[1]
    admin(service, "replaced", "unload")
    assert stepped(service, session, INPUTS[2])["outputs"] == before[2]
    after = outputs_of(service, "replaced")
    assert after != before
    assert stepped(service, opened(service, "replaced"), INPUTS[0])["outputs"] == after[0]


def test_shared_session_keeps_its_weights(pair):
    one, other, models, _ = pair
    name = "replaced-elsewhere"
    before, old = outputs_of(one, name), opened(one, name)
    until(lambda: other.get(f"/models/{name}").json()["state"] == "loaded", "the other has the session's weights")
    assert stepped(one, old, INPUTS[0], 1)["outputs"] == before[0]

    write(models, name, bias=False)
    assert stepped(other, old, INPUTS[1], 2)["outputs"] == before[1]
    admin(one, name, "reload")
    after = outputs_of(one, name)
    assert after != before
    new = opened(one, name)
    assert stepped(other, new, INPUTS[0], 1)["outputs"] == after[0]  # though it has not been reloaded
    admin(other, name, "reload")
    for service in (other, one):
        assert stepped(service, new, INPUTS[1], 2)["outputs"] == after[1]
        assert stepped(service, old, INPUTS[2], 3)["outputs"] == before[2]


def test_new_session_elsewhere_survives_reload(pair):
    one, other, models, _ = pair
    before, session = outputs_of(one, "just-opened"), opened(other, "just-opened")
    write(models, "just-opened", bias=False)
    admin(one, "just-opened", "reload")
    assert stepped(one, session, INPUTS[0], 1)["outputs"] == before[0]


def test_unreadable_weights_end_no_session(pair):
    one, other, models, _ = pair
    outputs_of(one, "unreadable")  # loads it
    file = models / "unreadable/1/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    session = opened(one, "unreadable")
    before = stepped(one, session, INPUTS[0], 1)
    for _ in range(2):
        assert_problem(other.get(f"/cell/sessions/{session}"), 503, "weights-unavailable", "cannot be served")
    file.write_bytes(whole)
    assert stepped(other, session, INPUTS[0], 1) == before


HARM = {
    "config-cut": lambda folder: (folder / "config.json").write_text('{"kind": "rn'),
    "version-away": lambda folder: shutil.rmtree(folder / "1"),
    "model-away": shutil.rmtree,
    "weights-cut": lambda folder: os.truncate(folder / "1/model.safetensors", 200),
}


def test_session_waits_for_its_weights(launch, tmp_path):
    """While its model's files are missing or half copied; when they are whole it goes on where it was."""
    models, store = tmp_path / "models", f"sqlite:///{tmp_path}/sessions.db"
    for name in HARM:
        write(models, name)
    shutil.copytree(models, tmp_path / "whole")
    service = launch(models, session_store=store)
    sessions, unwanted = {name: opened(service, name) for name in HARM}, opened(service, "model-away")
    before = {name: stepped(service, session, INPUTS[0], 1) for name, session in sessions.items()}
    service.stop()
    for name, harm in HARM.items():
        harm(models / name)
    service = launch(models, session_store=store)
    for session in sessions.values():
        step = {"session": session, "inputs": INPUTS[1].tolist(), "step": 2}
        for path, body in (("step", step), (f"sessions/{session}/fork", None), (f"sessions/{session}/reset", None)):
            reply = service.post(f"/cell/{path}", body)
            assert_problem(reply, 503, "weights-unavailable", "cannot be served")
            assert reply.headers["retry-after"] == "1"
    assert service.delete(f"/cell/sessions/{unwanted}").status_code == 204
    shutil.copytree(tmp_path / "whole", models, dirs_exist_ok=True)
    for name, session in sessions.items():
        assert stepped(service, session, INPUTS[0], 1) == before[name]
        stepped(service, session, INPUTS[1], 2)
    service.stop()
    write(models, "model-away", bias=False)
    gone = launch(models, session_store=store).get(f"/cell/sessions/{sessions['model-away']}")
    assert assert_problem(gone, 410, "session-gone")["reason"] == "model-replaced"


def test_lost_store_is_noticed(launch, tmp_path):
    """Without a call of a session, too; put back, it is used again."""
    service = launch(session_store=f"sqlite:///{tmp_path}/sessions.db")
    session = opened(service, "tanh")
    (tmp_path / "sessions.db").rename(tmp_path / "away.db")
    until(lambda: "session store" in service.get("/health/ready").text, "the service is not ready")
    refused = service.post("/cell/step", {"session": session, "inputs": INPUTS[0].tolist()})
    assert_problem(refused, 503, "store-unavailable")
    assert len(outputs_of(service, "tanh")) == 3  # what needs no session goes on
    (tmp_path / "away.db").rename(tmp_path / "sessions.db")
    until(lambda: service.get("/health/ready").status_code == 200, "the service is ready again")
    stepped(service, session, INPUTS[0], 1)


def test_draining_model_opens_no_session(pair):
    service = pair[0]
    session = opened(service, "draining")
    assert service.post("/models/draining/drain").status_code == 401
    view = admin(service, "draining", "drain")
    assert [(one["draining"], one["sessions"]) for one in view["versions"]] == [(True, 1)]
    assert_problem(service.post("/cell/sessions", {"model": "draining"}), 409, "model-in-use", "drained")
    assert_problem(service.post(f"/cell/sessions/{session}/fork"), 409, "model-in-use", "drained")
    stepped(service, session, INPUTS[0])
    assert steps_done(service, session) == 1
