"""Sessions: every call, in every format, by every kind of caller."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from safetensors.numpy import load

from .conftest import ADMIN_KEY
from .formats import JSON, NDJSON, SAFETENSORS, post_arrays
from .models import SPECS, STEPPABLE, assert_close, expected
from .problems import assert_problem
from .running import until
from .sessions import ADMIN, opened, stepped, steps_done, vectors


@pytest.mark.parametrize("name", STEPPABLE)
def test_session_step_and_forward_agree(service, name):
    inputs = vectors(name, 5)
    whole = service.post("/rnn/forward", {"model": name, "inputs": inputs.tolist()}).json()
    session = opened(service, name)
    state = {}
    for step, vector in enumerate(inputs, 1):
        kept = stepped(service, session, vector, step)
        sent = service.post("/cell/step", {"model": name, "inputs": vector.tolist(), **state}).json()
        state = {key: sent[key] for key in ("h", "c") if key in sent}
        assert kept["outputs"] == sent["outputs"] == whole["outputs"][step - 1]
        assert kept.get("predictions") == sent.get("predictions") == whole.get("predictions", [None] * 5)[step - 1]
        assert kept["step"] == step
    snapshot = service.get(f"/cell/sessions/{session}", params={"state": "true"}).json()
    assert snapshot["h"] == (whole["h_n"][0] if SPECS[name].num_layers == 1 else whole["h_n"])
    assert ("c" in snapshot) == SPECS[name].has_cell_state
    assert_close(kept["outputs"], expected(name, inputs).outputs[-1])


@pytest.mark.parametrize("name", ["gru", "lstm", "lstm-proj"])
@pytest.mark.parametrize("kind", ["json", SAFETENSORS])
def test_snapshot_and_fork_continue_alike(service, name, kind):
    session = opened(service, name)
    stepped(service, session, vectors(name, 4))
    snapshot = service.get(
        f"/cell/sessions/{session}?state=true", headers={"accept": "*/*" if kind == "json" else kind}
    )
    headers = {"content-type": snapshot.headers["content-type"]}
    restored = service.post("/cell/sessions", content=snapshot.content, headers=headers)
    assert restored.status_code == 201, restored.text
    forked = service.post(f"/cell/sessions/{session}/fork").json()
    assert restored.json()["step"] == forked["step"] == 0
    more = vectors(name, 3, seed=1)
    replies = [stepped(service, one, more) for one in (session, restored.json()["session"], forked["session"])]
    assert replies[0].pop("step") == 7
    assert [reply.pop("step") for reply in replies[1:]] == [3, 3]
    assert replies[0] == replies[1] == replies[2]


def test_retry_returns_same_bytes(service):
    session = opened(service, "lstm-proj")
    inputs = vectors("lstm-proj", 3)
    for part, first in ((inputs[0], 1), (inputs, 2)):
        fields = {"session": session, "inputs": part.tolist(), "step": first}
        replies = [service.post("/cell/step", fields).content for _ in range(3)]
        assert replies[0] == replies[1] == replies[2]
        fields = {"session": session, "step": str(first), "returns": "outputs,predictions,h,c"}
        binary = [post_arrays(service, "/cell/step", {"inputs": part}, **fields).content for _ in range(2)]
        assert binary[0] == binary[1]
        arrays = load(binary[0])
        np.testing.assert_array_equal(arrays["outputs"], np.array(json.loads(replies[0])["outputs"], np.float32))
        assert arrays["c"].shape == (8,)
    assert steps_done(service, session) == 4


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"inputs": [1, 2, 3]}, 422, "3 values"),
        ({"inputs": [[[1, 2, 3, 4]]]}, 422, "3 axes"),
        ({"inputs": []}, 422, "empty"),
        ({"inputs": [1, 2, 3, 4], "h": [0] * 6}, 422, "h is not a field"),
        ({"inputs": [1, 2, 3, 4], "model": "gru"}, 422, "model is gru"),
        ({"inputs": [1, 2, 3, 4], "version": "9"}, 422, "version is 9"),
        ({"inputs": [1, 2, 3, 4], "returns": ["c"]}, 422, "kind rnn"),
        *(({"inputs": [1, 2, 3, 4], "step": step}, 422, "step") for step in (0, -1, 1.5, "1", True)),
        ({}, 422, "inputs is required"),
    ],
)
def test_wrong_step_changes_nothing(service, fields, status, words):
    session = opened(service, "tanh")
    assert_problem(service.post("/cell/step", {"session": session, **fields}), status, "invalid-request", words)
    assert steps_done(service, session) == 0


def test_session_may_be_named_in_a_header(service):
    session = opened(service, "tanh")
    fields = {"inputs": vectors("tanh", 1)[0].tolist()}
    reply = service.post("/cell/step", fields, headers={"x-session-id": session})
    assert reply.json()["step"] == 1
    wrong = service.post("/cell/step", {"session": "another", **fields}, headers={"x-session-id": session})
    assert_problem(wrong, 422, "invalid-request", "X-Session-Id")


@pytest.mark.parametrize("named", ["[1, 2, 3]", "[1]", "[[1], [2, 3]]", '["a"]', "1", "null", "{}", '""'])
def test_session_of_body_and_header_must_agree(service, named):
    header = {"x-session-id": opened(service, "tanh")}
    for kind, body in (
        (JSON, f'{{"session": {named}, "inputs": [1, 2, 3, 4]}}'),
        (NDJSON, f'{{"session": {named}}}\n[1, 2, 3, 4]\n'),
    ):
        reply = service.post("/cell/step", content=body, headers={"content-type": kind} | header)
        assert_problem(reply, 422, "invalid-request", "session")


def test_ended_session_is_remembered(service):
    session = opened(service, "tanh")
    stepped(service, session, vectors("tanh", 2))
    last = service.delete(f"/cell/sessions/{session}?state=true")
    assert last.status_code == 200
    assert len(last.json()["h"]) == 6
    assert_problem(service.get(f"/cell/sessions/{session}"), 410, "session-gone", "deleted")
    assert_problem(service.get("/cell/sessions/never-seen"), 404, "session-not-found", "no such session")


def test_session_expires_after_its_ttl(service):
    reply = service.post("/cell/sessions", {"model": "tanh", "ttl_seconds": 0.2}).json()
    session, expires = reply["session"], datetime.fromisoformat(reply["expires_at"])
    shown = service.get(f"/cell/sessions/{opened(service, 'tanh', ttl_seconds=1000)}").json()
    assert shown["ttl_seconds"] == 1000
    lasts = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["created_at"])
    assert lasts == timedelta(seconds=1000)
    until(lambda: datetime.now(UTC) > expires, "the session's time is over")
    assert_problem(service.get(f"/cell/sessions/{session}"), 410, "session-gone", "expired")
    wrong = service.post("/cell/sessions", {"model": "tanh", "ttl_seconds": 1e9})
    assert_problem(wrong, 422, "invalid-request", "the longest is 604800")
    for seconds in (0, -1, "10", None):
        reply = service.post("/cell/sessions", {"model": "tanh", "ttl_seconds": seconds})
        assert reply.status_code == (201 if seconds is None else 422)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "both-ways"}, "bidirectional"),
        ({"model": "tanh", "h": [1, 2]}, "h has shape (2,)"),
        ({"model": "tanh", "c": [0] * 6}, "c is for LSTMs"),
        ({"model": "tanh", "inputs": [1]}, "inputs is not a field"),
    ],
)
def test_session_cannot_be_opened_with(service, fields, words):
    reply = service.post("/cell/sessions", fields)
    assert reply.status_code == 422
    assert words in reply.json()["detail"]


def test_same_step_from_many_clients_runs_once(service):
    session = opened(service, "gru")
    inputs = vectors("gru", 1)[0].tolist()

    def send(_):
        with service.client() as client:
            return client.post("/cell/step", json={"session": session, "inputs": inputs, "step": 1}).content

    with ThreadPoolExecutor(50) as pool:
        replies = set(pool.map(send, range(50)))
    assert len(replies) == 1
    assert steps_done(service, session) == 1


def test_admin_sees_short_ids_page_by_page(service):
    mine = {opened(service, "tanh") for _ in range(5)}
    assert_problem(service.get("/cell/sessions"), 401, "unauthorized", "admin")
    seen, after = [], ""
    while after is not None:
        page = service.get("/cell/sessions", params={"limit": 3, "after": after}, headers=ADMIN).json()
        seen += [one["session"] for one in page["sessions"]]
        after = page["next"]
    assert {session[:8] for session in mine} <= set(seen)
    assert len(seen) == len(set(seen))
    assert not any(session in service.log() for session in mine)


def test_session_belongs_to_its_key(guarded):
    keys = {name: {"authorization": f"Bearer {name}"} for name in ("one", "two", ADMIN_KEY)}
    session = guarded.post("/cell/sessions", {"model": "tanh"}, headers=keys["one"]).json()["session"]
    step = {"session": session, "inputs": [1, 2, 3, 4]}
    assert guarded.post("/cell/step", step, headers=keys["one"]).status_code == 200
    assert_problem(guarded.post("/cell/step", step, headers=keys["two"]), 404, "session-not-found", "another key")
    assert guarded.get(f"/cell/sessions/{session}", headers=keys["two"]).status_code == 404
    assert guarded.get(f"/cell/sessions/{session}", headers=keys[ADMIN_KEY]).json()["step"] == 1


def test_metrics_count_session_events(service):
    before = service.metrics()
    session = opened(service, "tanh")
    for _ in range(2):
        stepped(service, session, vectors("tanh", 2), 1)
    service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4], "step": 9})
    after = service.metrics()
    assert after["rnn_sessions"] >= 1
    for event, count in (("steps", 2), ("commits", 1), ("replays", 1), ("conflicts", 1)):
        name = f'rnn_session_events_total{{event="{event}"}}'
        assert after[name] - before.get(name, 0) == count, event


def test_session_request_has_a_limit_of_steps(service):
    session = opened(service, "tutorial-cell")
    most = 4 * 2**20 // (4 * (4 + 2))
    inputs = np.zeros((most + 1, 4), np.float32)
    wrong = post_arrays(service, "/cell/step", {"inputs": inputs}, session=session)
    assert_problem(wrong, 422, "invalid-request", f"takes {most} in one request")
    assert post_arrays(service, "/cell/step", {"inputs": inputs[1:]}, session=session).status_code == 200
    assert steps_done(service, session) == most
