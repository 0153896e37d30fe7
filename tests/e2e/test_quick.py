"""Steps get the same bytes the short way and the long way."""

import json
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import both_ways
from .both_ways import FAR, ID, NUMBERS, PLAIN, arrays, spelt
from .models import SPECS, STEPPABLE
from .raw import Wire, head, post


@st.composite
def documents(draw):
    """A step of any model, in any of the forms of the contract, sometimes with something wrong."""
    name = draw(st.sampled_from([*STEPPABLE, "explodes", "both-ways", "nobody"]))
    spec = SPECS.get(name, SPECS["tanh"])
    batch = draw(st.sampled_from([None, 1, 1, 2]))
    rows = (batch,) * (batch is not None)
    wrong = draw(st.sampled_from([0, 0, 0, 1]))
    numbers = draw(st.sampled_from([PLAIN, PLAIN, NUMBERS]))
    fields = {"model": name, "inputs": draw(arrays((*rows, spec.input_size + wrong), numbers))}
    for state, width in (("h", spec.state_size), ("c", spec.hidden_size)):
        if not draw(st.booleans()) or (state == "c" and not spec.has_cell_state and draw(st.integers(0, 5))):
            continue
        layers = spec.num_layers
        shapes = [(layers, batch or 1, width), (batch or 1, width), (width,), (layers, width), (layers, 1, width + 1)]
        fields[state] = draw(arrays(draw(st.sampled_from(shapes)), numbers))
    for key, values in (
        ("returns", [["outputs"], ["h", "predictions"], ["c"], [], None]),
        ("non_finite", ["error", "null", "nonsense"]),
        ("version", ["1", "7", None]),
        ("other", [1, "x"]),
    ):
        if not draw(st.integers(0, 4)):
            fields[key] = draw(st.sampled_from(values))
    return fields


def exchanged(wire, body, headers):
    return both_ways.exchanged(wire, "/cell/step", body, headers)


@pytest.fixture(scope="module")
def wire(service):
    with Wire(service) as wire:
        for name in STEPPABLE:  # what is not loaded takes the long way
            wire.send(
                post("/cell/step", json.dumps({"model": name, "inputs": [0.0] * SPECS[name].input_size}).encode())
            )
            assert wire.reply().status == 200
        yield wire


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(spelt(documents()).map(str.encode))
def test_both_ways_answer_alike(wire, body):
    assert exchanged(wire, body, {}) == exchanged(wire, body, FAR)


@pytest.mark.parametrize("headers", [{"Accept-Encoding": "gzip"}, {"Accept": "*/*"}, {"Content-Type": "text/plain"}])
def test_headers_mean_the_same(wire, headers):
    body = json.dumps({"model": "tanh", "inputs": [1.0, 2.0, 3.0, 4.0]}).encode()
    assert exchanged(wire, body, headers) == exchanged(wire, body, headers | FAR)


@pytest.fixture(params=["memory", "sqlite"])
def any_store(request, service, wire, launch, repository, tmp_path):
    """A service and a connection to it, with its sessions in memory and in a store that takes its time."""
    if request.param == "memory":
        yield service, wire
        return
    durable = launch(models=repository, session_store=f"sqlite:///{tmp_path}/sessions.db")
    with Wire(durable) as to_it:
        yield durable, to_it


def opened(service, name):
    return service.post("/cell/sessions", {"model": name}).json()["session"]


@pytest.mark.parametrize("name", STEPPABLE)
def test_sessions_are_stepped_alike(any_store, name):
    service, wire = any_store
    quick, slow = opened(service, name), opened(service, name)
    random = np.random.default_rng(0)
    for step in range(1, 6):
        x = random.standard_normal(SPECS[name].input_size).tolist()
        inputs = [x] if step == 4 else x
        numbered = {"step": step} if step % 2 else {}
        answers = []
        for session, headers in ((quick, {}), (slow, FAR)):
            body = json.dumps({"session": session, "inputs": inputs} | numbered).encode()
            answers.append(exchanged(wire, body, headers))
            if numbered:  # a retry, and the same number with other inputs
                assert exchanged(wire, body, {})[2] == answers[-1][2]
                assert exchanged(wire, body.replace(b"[", b"[1,", 1), {})[0] in (409, 422)
        assert answers[0] == answers[1]
        assert answers[0][0] == 200
    states = [service.get(f"/cell/sessions/{session}?state=true").json() for session in (quick, slow)]
    assert states[0]["h"] == states[1]["h"]
    assert states[0]["step"] == 5


def test_a_step_that_another_process_was_before_runs_from_where_the_session_stands(launch, repository, tmp_path):
    services = [launch(models=repository, session_store=f"sqlite:///{tmp_path}/sessions.db") for _ in range(2)]
    session = opened(services[0], "tanh")
    body = json.dumps({"session": session, "inputs": [1.0, 2.0, 3.0, 4.0]}).encode()
    with Wire(services[0]) as one, Wire(services[1]) as other:
        steps = [json.loads(exchanged(wire, body, {})[2])["step"] for wire in (one, one, other, other, one, other)]
        assert steps == [1, 2, 3, 4, 5, 6]  # each time from what it saw last, which was old
        one.send(post("/cell/step", body) * 8)  # none waits for the answer before it
        assert [one.reply().json()["step"] for _ in range(8)] == list(range(7, 15))


def test_a_store_that_is_locked_is_unavailable_to_steps_and_loses_none(launch, repository, tmp_path):
    path = tmp_path / "sessions.db"
    service = launch(models=repository, session_store=f"sqlite:///{path}")
    session = opened(service, "tanh")
    body = json.dumps({"session": session, "inputs": [1.0, 2.0, 3.0, 4.0]}).encode()
    with Wire(service) as wire:
        assert [exchanged(wire, body, {})[0] for _ in range(2)] == [200, 200]
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            status, headers, problem = exchanged(wire, body, {})
            assert (status, headers["x-request-id"]) == (503, "the-same")
            assert b"store-unavailable" in problem
            other.execute("ROLLBACK")
        assert json.loads(exchanged(wire, body, {})[2])["step"] == 3


def test_pipelined_requests_of_all_ways_are_answered_in_order(wire):
    inputs = json.dumps([1.0, 2.0, 3.0, 4.0])
    step = ('{"model":"tanh","inputs":' + inputs + "}").encode()
    forward = ('{"model":"tanh","inputs":[[' + inputs + "]]}").encode()
    ways = [
        post("/cell/step", step),
        head("GET", "/health/live"),
        post("/cell/step", step),
        post("/rnn/forward", forward),
        post("/cell/step", step, FAR),
        post("/cell/step", step),
        post("/cell/step", b"{"),
        post("/cell/step", step),
    ]
    wire.send(b"".join(ways))
    replies = [wire.reply() for _ in ways]
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 200, 200, 400, 200]
    assert len({replies[index].body for index in (0, 2, 4, 5, 7)}) == 1
    assert "h_n" in replies[3].json()


@pytest.mark.parametrize("pause", [0.005, 0.2])  # within the moment that is waited for, and beyond it
@pytest.mark.parametrize("cut", [1, 20])
def test_a_body_may_come_after_its_head(wire, pause, cut):
    body = json.dumps({"model": "tanh", "inputs": [1.0, 2.0, 3.0, 4.0]}).encode()
    whole = exchanged(wire, body, {})
    request = post("/cell/step", body, ID)
    begin = len(request) - len(body) if cut == 1 else len(request) - cut
    wire.send(request[:begin])
    time.sleep(pause)
    wire.send(request[begin:])
    reply = wire.reply()
    assert (reply.status, reply.body) == (whole[0], whole[2])


def test_an_idle_connection_is_closed_in_time_and_no_sooner(impatient):
    request = post("/cell/step", json.dumps({"model": "tanh", "inputs": [1.0, 2.0, 3.0, 4.0]}).encode())
    with Wire(impatient) as wire:
        for _ in range(5):  # together longer than keep_alive_seconds
            wire.send(request)
            assert wire.reply().status == 200
            time.sleep(0.6)
        begun = time.monotonic()
        assert wire.is_closed()
        assert 0.5 < time.monotonic() - begun < 4


def test_quick_answers_are_counted(service, wire):
    def counted():
        page = service.get("/metrics").text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}

    before = counted()
    body = json.dumps({"model": "tanh", "inputs": [1.0, 2.0, 3.0, 4.0]}).encode()
    for headers in ({}, FAR):
        assert exchanged(wire, body, headers)[0] == 200
    after = counted()
    for name in (
        'rnn_requests_total{path="/cell/step",status="200"}',
        'rnn_request_seconds_count{path="/cell/step"}',
        *(f'rnn_stage_seconds_count{{stage="{stage}"}}' for stage in ("decode", "queue", "compute", "encode")),
        'rnn_rows_total{model="tanh"}',
        'rnn_steps_total{model="tanh"}',
    ):
        assert after[name] - before.get(name, 0) == 2, name
