"""Sessions that two processes share, while weights, versions and the store change."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from .conftest import ADMIN_KEY
from .models import SPECS, write_model
from .problems import assert_problem
from .raw import Wire, post
from .running import start, until
from .sessions import ADMIN, opened, stepped, steps_done, vectors

NAMES = ("stepped-in-turn", "locked", "replaced", "replaced-elsewhere", "just-opened", "unreadable", "draining")
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
    services = []
    for number in range(2):
        (folder / f"{number}").mkdir()
        store = f"sqlite:///{folder}/sessions.db"
        services.append(start(folder / "models", folder / f"{number}", session_store=store, admin_keys=ADMIN_KEY))
    yield *services, folder / "models", folder / "sessions.db"
    for service in services:
        service.stop()


def outputs_of(service, name):
    """What the weights that serve now give."""
    return service.post("/rnn/forward", {"model": name, "inputs": INPUTS.tolist()}).json()["outputs"]


def admin(service, name, call):
    reply = service.post(f"/models/{name}/{call}", headers=ADMIN)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_processes_step_one_session_in_turn(pair):
    """Each continues from where the session stands, not from what it saw last."""
    session = opened(pair[0], "stepped-in-turn")
    request = post("/cell/step", json.dumps({"session": session, "inputs": [1, 2, 3, 4]}).encode())
    with Wire(pair[0]) as one, Wire(pair[1]) as other:
        for number, wire in enumerate((one, one, other, other, one, other), 1):
            wire.send(request)
            assert wire.reply().json()["step"] == number
        one.send(request * 8)
        assert [one.reply().json()["step"] for _ in range(8)] == list(range(7, 15))


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
        assert_problem(other.get(f"/cell/sessions/{session}"), 503, "model-failed", "cannot be served")
    file.write_bytes(whole)
    assert stepped(other, session, INPUTS[0], 1) == before


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
