"""Saturated gates keep a memory for as long as torch does in float32, on every processor and vector width.

A gate that stops 6e-8 short of 1 loses 0.6 % of its memory in 100,000 steps.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from service.engine.native.compiler import Processor
from service.engine.native.engine import NativeEngine
from service.engine.torch_engine import TorchEngine
from service.spec import ModelSpec
from tests.engine.native.models import Results, random_rows, reference, run_rows
from tests.engine.native.processors import runnable
from tests.reference import weights_of

STEPS = 100_000
# How far a unit's gates are saturated: from there on neither rounds to anything but 0 and 1 in float32, and torch in
# float32 keeps the memory; below, float32 itself loses some of it.
SATURATED = 30
LEVELS = np.array([90, 30, 8, 14, 45, 31, 17, 11, 60, 5, 6, 10, 12, 16, 18, 20], np.float32)
KINDS = [
    ModelSpec("rnn", 1, 16),
    ModelSpec("rnn", 1, 16, nonlinearity="relu"),
    ModelSpec("gru", 1, 16),
    ModelSpec("lstm", 1, 16),
]
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@cache
def case(spec: ModelSpec) -> tuple[dict, list, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Weights, dense input and states of units that do not read each other; their memories in float64 and by torch."""
    (x,), h, c = random_rows(spec, [STEPS])
    rng = np.random.default_rng(1)
    gates, hidden = GATES[spec.kind], spec.hidden_size
    weights = {
        name: np.zeros((gates, hidden, *array.shape[1:]), np.float32) for name, array in weights_of(spec).items()
    }
    for name in ("weight_ih_l0", "bias_ih_l0"):
        weights[name][...] = rng.uniform(-1, 1, weights[name].shape)
    if spec.kind == "rnn":  # a latch, or a unit that keeps what it has
        weights["weight_hh_l0"][0] = np.diag(LEVELS if spec.nonlinearity == "tanh" else np.ones(hidden))
    if spec.nonlinearity == "relu":
        weights["weight_ih_l0"][...] = weights["bias_ih_l0"][...] = 0
        h = np.abs(h)
    if spec.kind != "rnn":
        weights["bias_ih_l0"][1] += LEVELS  # GRU's z, LSTM's f
    if spec.kind == "lstm":
        weights["bias_ih_l0"][0] -= LEVELS
    weights = {name: array.reshape(-1, *array.shape[2:]) for name, array in weights.items()}
    torch.set_num_threads(1)  # as the service does; else oneDNN's threads wait for each other at every step
    near = run_rows(TorchEngine(spec, weights, device=torch.device("cpu")), [x], h, c)
    return weights, [x], h, c, memory(reference(spec, weights, [x], h, c)), memory(near)


def memory(results: Results) -> np.ndarray:
    return (results.h if results.c is None else results.c)[0, 0].astype(np.float64)


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
@pytest.mark.parametrize("spec", KINDS, ids=lambda s: f"{s.kind}-{s.nonlinearity}")
def test_saturated_memories_last(spec: ModelSpec, processor: Processor) -> None:
    weights, x, h, c, exact, near = case(spec)
    allowed = np.maximum(1e-5 * np.abs(exact), 2 * np.abs(near - exact))
    for hidden in (4, 8, 16):  # in vectors of as many, where the processor has them
        own = {
            name: array.reshape(-1, 16, *array.shape[1:])[:, :hidden].reshape(-1, *array.shape[1:])
            for name, array in weights.items()
        }
        own["weight_hh_l0"] = own["weight_hh_l0"][:, :hidden]
        engine = NativeEngine(replace(spec, hidden_size=hidden), own, threads=1, processor=processor)
        error = np.abs(
            memory(run_rows(engine, x, h[..., :hidden], c if c is None else c[..., :hidden])) - exact[:hidden]
        )
        saturated = LEVELS[:hidden] >= SATURATED
        assert (error <= allowed[:hidden])[saturated].all()
        # Which of two roundings is lucky differs from unit to unit.
        assert error.max() <= max(1e-5, allowed.max())


@pytest.mark.parametrize("saturation", [4, 16])
def test_trained_bidirectional_gru_on_dense_input(saturation: float) -> None:
    """Large weights, and update gates that hold until the input opens them, as trained ones do."""
    spec = ModelSpec("gru", 30, 25, num_layers=3, bidirectional=True)
    weights = {name: array * np.float32(4 if array.ndim == 2 else 1) for name, array in weights_of(spec).items()}
    for name, array in weights.items():
        if name.startswith("bias_ih"):
            array[25:50] += np.float32(saturation)
    x, h, c = random_rows(spec, [1000])
    exact, near, ours = (
        np.concatenate(results.outputs)
        for results in (
            reference(spec, weights, x, h, c),
            run_rows(TorchEngine(spec, weights, device=torch.device("cpu")), x, h, c),
            run_rows(NativeEngine(spec, weights, threads=1), x, h, c),
        )
    )
    assert np.abs(ours - exact).max() <= max(1e-5, 2 * np.abs(near - exact).max())


@pytest.mark.parametrize("spec", [ModelSpec("rnn", 3, 20), ModelSpec("gru", 3, 20), ModelSpec("lstm", 3, 20)])
def test_weights_times_a_million(spec: ModelSpec) -> None:
    weights = {name: array * np.float32(1e6) for name, array in weights_of(spec).items()}
    x, h, c = random_rows(spec, [200])
    ours = run_rows(NativeEngine(spec, weights, threads=1), x, h, c)
    np.testing.assert_allclose(ours.outputs[0], reference(spec, weights, x, h, c).outputs[0], rtol=0, atol=5e-7)
