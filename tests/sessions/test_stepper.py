"""A stream that keeps its own state: numbered, untouched by what fails, and the same however it is cut."""

import asyncio

import numpy as np
import pytest

from service.engine.load import EngineFactory
from service.errors import DeadlinePassed, InvalidRequest
from service.serving.inference import Inference
from service.serving.registry import Registry
from service.sessions.stepper import NonFinite, StatelessStepper
from tests.reference import numbers

LSTM = {"kind": "lstm", "input_size": 4, "hidden_size": 3, "num_layers": 2, "head": {"out_features": 2}}
EXPLODES = {"kind": "rnn", "input_size": 1, "hidden_size": 1, "nonlinearity": "relu", "bias": False}
EXPLODING = {"weight_ih_l0": np.ones((1, 1), np.float32), "weight_hh_l0": np.full((1, 1), 1e30, np.float32)}


@pytest.fixture
def stepper_of(write_model, tmp_path):
    inferences = []

    def make(config, arrays=None, **options):
        write_model("m", config, arrays=arrays)
        registry = Registry(
            tmp_path, EngineFactory.configure("cpu", 1, "auto", 1), default_model=None, cache_bytes=2**30
        )
        registry.scan()
        inferences.append(Inference(registry, workers=1, max_queued_requests=8, max_queued_bytes=2**30))
        model = registry.resolve("m", None)
        spec = model.spec
        h = np.zeros((spec.num_layers, 1, spec.state_size), np.float32)
        c = np.zeros((spec.num_layers, 1, spec.hidden_size), np.float32) if spec.has_cell_state else None
        options = {"predictions": True, "with_state": False} | options
        engine = asyncio.run(registry.engine(model))
        return StatelessStepper(model, inferences[-1], engine, h, c, book=lambda *_: None, **options)

    yield make
    for inference in inferences:
        inference.close()


def run(stepper, inputs, step=None, deadline=None, *, strict=True):
    inputs = np.ascontiguousarray(inputs, np.float32)
    (steps,) = asyncio.run(stepper.run(inputs, step, deadline, refuse_non_finite=strict))
    return steps


def test_cuts_do_not_change_results(stepper_of):
    inputs = numbers(np.random.default_rng(1), 20, 4)
    whole = run(stepper_of(LSTM), inputs)
    stepper = stepper_of(LSTM)
    parts = [run(stepper, part) for part in np.split(inputs, [1, 2, 9])]
    assert [(part.first, part.count) for part in parts] == [(1, 1), (2, 1), (3, 7), (10, 11)]
    assert stepper.done == 20
    for name in ("outputs", "predictions"):
        assert np.concatenate([getattr(part, name) for part in parts]).tobytes() == getattr(whole, name).tobytes()
    assert (parts[-1].h.tobytes(), parts[-1].c.tobytes()) == (whole.h.tobytes(), whole.c.tobytes())


def test_step_out_of_order_changes_nothing(stepper_of):
    stepper = stepper_of(LSTM)
    run(stepper, np.ones((3, 4)), step=1)
    for step in (0, 1, 3, 5):
        with pytest.raises(InvalidRequest, match=f"step is {step}; this stream expects 4"):
            run(stepper, np.ones((1, 4)), step=step)
    assert run(stepper, np.ones((2, 4)), step=4).first == 4
    assert stepper.done == 5


def test_failed_run_leaves_state_unchanged(stepper_of):
    stepper = stepper_of(EXPLODES, arrays=EXPLODING)
    with pytest.raises(NonFinite) as failure:
        run(stepper, np.ones((4, 1)))
    assert failure.value.index == 2
    with pytest.raises(DeadlinePassed):
        run(stepper, np.ones((1, 1)), deadline=0.0)
    assert (stepper.done, stepper.h.item()) == (0, 0.0)
    assert run(stepper, np.ones((2, 1))).outputs[:, 0].tolist() == [1.0, np.float32(1e30)]


def test_non_finite_results_may_be_allowed(stepper_of):
    stepper = stepper_of(EXPLODES, arrays=EXPLODING)
    assert np.isinf(run(stepper, np.ones((3, 1)), strict=False).outputs[2, 0])
    assert stepper.done == 3
