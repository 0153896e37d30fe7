"""Saturated gates keep a memory as long as torch does in float32, on every processor and with every vector width."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.native.compiler import Processor
from service.engine.native.engine import NativeEngine
from service.engine.torch_engine import TorchEngine
from service.spec import GATES, ModelSpec
from tests.engine.native.models import Results, random_rows, reference, run_rows
from tests.engine.native.processors import runnable
from tests.reference import weights_of

SPECS = [ModelSpec("rnn", 1, 16, nonlinearity="relu"), *(ModelSpec(kind, 1, 16) for kind in ("rnn", "gru", "lstm"))]
LEVELS = np.array([5, 6, 8, 10, 11, 12, 14, 16, 17, 18, 20, 30, 31, 45, 60, 90], np.float32)
SATURATED = LEVELS >= 30  # exactly 0 or 1 in float32; in between float32 itself loses some of a memory


@cache
def memory_cells(spec: ModelSpec) -> tuple[Any, ...]:
    """Weights of units that read no other, a long dense input, states; the memories by torch in float64 and float32."""
    x, h, c = random_rows(spec, [100_000])
    rng, gates = np.random.default_rng(1), GATES[spec.kind]
    ih, bias = rng.uniform(-1, 1, (gates, 16, 1)), rng.uniform(-1, 1, (gates, 16))
    hh = np.zeros((gates, 16, 16))
    if spec.nonlinearity == "relu":
        ih, bias, hh[0], h = 0 * ih, 0 * bias, np.eye(16), np.abs(h)
    elif spec.kind == "rnn":
        hh[0] = np.diag(LEVELS)
    else:
        bias[1] += LEVELS  # GRU's z, LSTM's f
        bias[0] -= LEVELS  # GRU's r, LSTM's i
    arrays = {"weight_ih_l0": ih, "weight_hh_l0": hh, "bias_ih_l0": bias, "bias_hh_l0": 0 * bias}
    weights = {name: array.reshape(gates * 16, *array.shape[2:]).astype(np.float32) for name, array in arrays.items()}
    exact, near = reference(spec, weights, x, h, c), run_torch(spec, weights, x, h, c)
    return weights, x, h, c, memory(exact), memory(near)


def run_torch(spec: ModelSpec, weights: Any, *rows: Any) -> Results:
    torch.set_num_threads(1)  # as the service does; oneDNN's threads wait for each other at every step
    return run_rows(TorchEngine(spec, weights, device=torch.device("cpu")), *rows)


def memory(results: Results) -> np.ndarray:
    return (results.h if results.c is None else results.c)[0, 0].astype(np.float64)


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s.nonlinearity}")
def test_saturated_memories_last(spec: ModelSpec, processor: Processor) -> None:
    weights, *rows, exact, near = memory_cells(spec)
    allowed = np.maximum(1e-5 * np.abs(exact), 2 * np.abs(near - exact))
    for width in {4, 8, 16} & set(range(processor.width + 1)):
        engine = NativeEngine(spec, weights, threads=1, processor=replace(processor, width=width))
        error = np.abs(memory(run_rows(engine, *rows)) - exact)
        assert (error <= allowed)[SATURATED].all()
        assert error.max() <= max(1e-5, allowed.max())  # which unit's roundings are lucky is chance


def errors(spec: ModelSpec, weights: Any, steps: int) -> tuple[float, float]:
    """Largest error of any output: the engine's and torch's in float32."""
    rows = random_rows(spec, [steps])
    exact = reference(spec, weights, *rows).outputs[0]
    ours = run_rows(NativeEngine(spec, weights, threads=1), *rows).outputs[0]
    return np.abs(ours - exact).max(), np.abs(run_torch(spec, weights, *rows).outputs[0] - exact).max()


@pytest.mark.parametrize("update_bias", [4, 16])
def test_trained_bidirectional_gru(update_bias: float) -> None:
    """Large weights, dense input, and update gates that hold until the input opens them."""
    spec = ModelSpec("gru", 30, 25, num_layers=3, bidirectional=True)
    weights = {name: array * np.float32(4 if array.ndim == 2 else 1) for name, array in weights_of(spec).items()}
    for name, array in weights.items():
        array[25:50] += np.float32(update_bias if name.startswith("bias_ih") else 0)
    ours, near = errors(spec, weights, 1000)
    assert ours <= max(1e-5, 2 * near)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_weights_times_a_million(kind: str) -> None:
    spec = ModelSpec(kind, 3, 20)
    ours, _ = errors(spec, {name: array * np.float32(1e6) for name, array in weights_of(spec).items()}, 200)
    assert ours <= 5e-7
