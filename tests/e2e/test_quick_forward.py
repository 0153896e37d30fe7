"""Forwards get the same bytes the short way, the first of a form or not, and the long way."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import both_ways
from .both_ways import FAR, NUMBERS, PLAIN, arrays, spelt
from .models import SMALL, SPECS
from .raw import Wire


@st.composite
def documents(draw):
    """A forward of any model, in any of the forms of the contract, sometimes with something wrong."""
    name = draw(st.sampled_from([*SMALL, "explodes", "nobody"]))
    spec = SPECS.get(name, SPECS["tanh"])
    batch, time = draw(st.sampled_from([None, 1, 1, 2])), draw(st.integers(1, 3))
    wrong = draw(st.sampled_from([0, 0, 0, 1]))
    numbers = draw(st.sampled_from([PLAIN, PLAIN, NUMBERS]))
    row = st.integers(1, 3).flatmap(lambda steps: arrays((steps, spec.input_size + wrong), numbers))
    if batch and draw(st.booleans()):
        inputs = draw(st.lists(row, min_size=batch, max_size=batch))
    else:
        inputs = draw(arrays((batch,) * (batch is not None) + (time, spec.input_size + wrong), numbers))
    fields = {"model": name, "inputs": inputs}
    for state, width in (("h0", spec.state_size), ("c0", spec.hidden_size)):
        if not draw(st.booleans()) or (state == "c0" and not spec.has_cell_state and draw(st.integers(0, 5))):
            continue
        shapes = [(spec.states, batch or 1, width)] * 2 + [(spec.states, width), (spec.states, 1, width + 1)]
        fields[state] = draw(arrays(draw(st.sampled_from(shapes)), numbers))
    for key, values in (
        ("returns", [["outputs"], ["h_n", "predictions"], ["c_n"], ["last"], [], None]),
        ("non_finite", ["error", "null", "nonsense"]),
        ("version", ["1", "7", None]),
        ("batch_first", [True, False]),
        ("lengths", [[1], [1, 2], [2, 1], [0]]),
        ("other", [1, "x"]),
    ):
        if not draw(st.integers(0, 5)):
            fields[key] = draw(st.sampled_from(values))
    return fields


@st.composite
def bodies(draw):
    """A body, and others that mostly differ from it in numbers alone."""
    body = draw(spelt(documents()))
    numbers = st.sampled_from(
        ["0.5", "-1", "2e-1", "0.25", "1", draw(st.sampled_from(["1", "", "1e39", "[1]", "NaN"]))]
    )
    others = [re.sub(r"(?<=[\[, ])-?\d[^,\]} ]*|(?<=\[)(?=\])", lambda _: draw(numbers), body) for _ in range(2)]
    return [one.encode() for one in (body, *others)]


def exchanged(wire, body, headers):
    return both_ways.exchanged(wire, "/rnn/forward", body, headers)


@pytest.fixture(scope="module")
def wire(service):
    with Wire(service) as wire:
        for name in [*SMALL, "explodes"]:  # what is not loaded takes the long way
            body = json.dumps({"model": name, "inputs": [[0.0] * SPECS[name].input_size]}).encode()
            assert exchanged(wire, body, {})[0] == 200
        yield wire


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bodies())
def test_all_ways_answer_alike(wire, bodies):
    for body in bodies:
        long = exchanged(wire, body, FAR)
        assert exchanged(wire, body, {}) == long
        assert exchanged(wire, body, {}) == long


@pytest.mark.parametrize("headers", [{"Accept-Encoding": "gzip"}, {"Accept": "*/*"}, {"Content-Type": "text/plain"}])
@pytest.mark.parametrize("steps", [1, 100])
def test_headers_mean_the_same(wire, headers, steps):
    body = json.dumps({"model": "tanh", "inputs": [[1.0, 2.0, 3.0, 4.0]] * steps}).encode()
    assert exchanged(wire, body, headers) == exchanged(wire, body, headers | FAR)


def test_quick_answers_are_counted(service, wire):
    def counted():
        page = service.get("/metrics").text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}

    before = counted()
    body = json.dumps({"model": "tanh", "inputs": [[[1.0, 2.0, 3.0, 4.0]] * 3] * 2}).encode()
    for headers in ({}, FAR):
        assert exchanged(wire, body, headers)[0] == 200
    after = counted()
    for name, count in (
        ('rnn_requests_total{path="/rnn/forward",status="200"}', 2),
        ('rnn_request_seconds_count{path="/rnn/forward"}', 2),
        *((f'rnn_stage_seconds_count{{stage="{stage}"}}', 2) for stage in ("decode", "queue", "compute", "encode")),
        ('rnn_rows_total{model="tanh"}', 4),
        ('rnn_steps_total{model="tanh"}', 12),
    ):
        assert after[name] - before.get(name, 0) == count, name
