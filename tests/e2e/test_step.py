"""POST /cell/step without a session, compared with torch.nn in float64."""

import numpy as np
import pytest

from tests.reference import numbers

from .models import SPECS, STEPPABLE, assert_close, expected
from .problems import assert_problem

BATCH = 3


def step(service, name, **fields):
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()}
    reply = service.post("/cell/step", {"model": name, **plain})
    assert reply.status_code == 200, reply.text
    document = {key: value if isinstance(value, str) else np.array(value) for key, value in reply.json().items()}
    assert (document.pop("model"), document.pop("version")) == (name, "1")
    return document


def state(name, rng, *middle):
    """h and c of shape (L, *middle, ·)."""
    spec = SPECS[name]
    given = {"h": numbers(rng, spec.num_layers, *middle, spec.state_size)}
    return given | ({"c": numbers(rng, spec.num_layers, *middle, spec.hidden_size)} if spec.has_cell_state else {})


def check_rows(document, name, inputs, given):
    """Check a reply with every layer's state, (L,B,·)."""
    for row in range(len(inputs)):
        initial = {f"{key}0": value[:, row] for key, value in given.items()}
        wanted = expected(name, inputs[row : row + 1], **initial)
        assert_close(document["outputs"][row], wanted.outputs[0])
        assert_close(document["h"][:, row], wanted.h)
        if wanted.c is not None:
            assert_close(document["c"][:, row], wanted.c)
        if wanted.predictions is not None:
            assert_close(document["predictions"][row], wanted.predictions[0])


@pytest.mark.parametrize("name", STEPPABLE)
def test_batch_with_state_of_every_layer(service, name):
    rng = np.random.default_rng(1)
    inputs, given = numbers(rng, BATCH, SPECS[name].input_size), state(name, rng, BATCH)
    check_rows(step(service, name, inputs=inputs, **given), name, inputs, given)


@pytest.mark.parametrize("name", [name for name in STEPPABLE if SPECS[name].num_layers == 1])
def test_one_layer_needs_no_layer_axis(service, name):
    rng = np.random.default_rng(2)
    inputs, given = numbers(rng, BATCH, SPECS[name].input_size), state(name, rng, BATCH)
    document = step(service, name, inputs=inputs, **{key: value[0] for key, value in given.items()})
    assert document["h"].shape == (BATCH, SPECS[name].state_size)
    restored = {key: document[key][None] if key in given else document[key] for key in document}
    check_rows(restored, name, inputs, given)


@pytest.mark.parametrize("name", [name for name in STEPPABLE if SPECS[name].num_layers == 1])
def test_one_row_needs_no_batch_axis(service, name):
    rng = np.random.default_rng(3)
    inputs, given = numbers(rng, SPECS[name].input_size), state(name, rng)
    document = step(service, name, inputs=inputs, **{key: value[0] for key, value in given.items()})
    wanted = expected(name, inputs[None], **{f"{key}0": value for key, value in given.items()})
    assert_close(document["outputs"], wanted.outputs[0])
    assert_close(document["h"], wanted.h[0])


@pytest.mark.parametrize("name", STEPPABLE)
def test_missing_state_is_zeros(service, name):
    spec = SPECS[name]
    inputs = numbers(np.random.default_rng(4), BATCH, spec.input_size)
    document = step(service, name, inputs=inputs)
    layers = () if spec.num_layers == 1 else (spec.num_layers,)
    assert document["h"].shape == (*layers, BATCH, spec.state_size)
    for row in range(BATCH):
        assert_close(document["outputs"][row], expected(name, inputs[row : row + 1]).outputs[0])


@pytest.mark.parametrize("wanted", ["outputs", "h", "c", "predictions"])
def test_returns_chooses_the_fields(service, wanted):
    assert step(service, "lstm-proj", inputs=[1, 2, 3, 4], returns=[wanted]).keys() == {wanted}


def test_bidirectional_model_has_no_step(service):
    reply = service.post("/cell/step", {"model": "both-ways", "inputs": [1, 2, 3]})
    assert_problem(reply, 422, "not-steppable", "both-ways", "/rnn/forward")


def test_cell_of_the_tutorial(service):
    """RNNCell, input 4 → hidden 2, batch 1, 3 steps."""
    inputs = np.array([[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]]], np.float32)
    h = [[0.0, 0.0]]
    for index in range(3):
        document = step(service, "tutorial-cell", inputs=inputs[index], h=h)
        assert document["h"].shape == (1, 2)
        assert_close(document["h"][0], expected("tutorial-cell", inputs[: index + 1, 0]).h[0])
        h = document["h"].tolist()
