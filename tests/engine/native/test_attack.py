"""Rows, sizes and values at the edges, and many models and threads at once."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from service.engine.interface import Rows
from service.engine.native.engine import NativeEngine
from service.spec import ModelSpec
from tests.engine.native.models import assert_same_bits, random_rows, reference, run_rows
from tests.reference import weights_of

KINDS = [
    ModelSpec("rnn", 3, 20),
    ModelSpec("rnn", 3, 20, nonlinearity="relu"),
    ModelSpec("gru", 3, 20),
    ModelSpec("lstm", 3, 20),
]


def engine(spec: ModelSpec, threads: int = 1) -> NativeEngine:
    return NativeEngine(spec, weights_of(spec), threads=threads)


def test_no_batches_and_no_rows_are_no_work() -> None:
    spec = KINDS[0]
    empty = Rows(
        np.zeros((0, 3), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((1, 0, 20), np.float32)
    )
    model = engine(spec)
    x, h, _ = random_rows(spec, [3])
    before = Rows(x[0], np.zeros(1, np.int64), np.array([3]), h)
    model.run([before])
    after = h.copy()
    for batches in ([], [empty], [empty, empty]):
        model.run(batches)
        assert_same_bits(h, after)


@pytest.mark.parametrize("spec", KINDS)
def test_ten_thousand_ragged_rows(spec: ModelSpec) -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(0, 5, 10_000)]
    x, h, c = random_rows(spec, lengths)
    together = run_rows(engine(spec, threads=2), x, h, c)
    one = engine(spec)
    for b in range(0, 10_000, 997):
        alone = run_rows(one, [x[b]], h[:, b : b + 1], None if c is None else c[:, b : b + 1])
        assert_same_bits(alone.outputs[0], together.outputs[b])
        assert_same_bits(alone.h[:, 0], together.h[:, b])


@pytest.mark.parametrize("spec", [replace(KINDS[0], input_size=1, hidden_size=1), replace(KINDS[3], num_layers=2)])
def test_twenty_thousand_steps(spec: ModelSpec) -> None:
    x, h, c = random_rows(spec, [20_000])
    actual = run_rows(engine(spec), x, h, c)
    expected = reference(spec, weights_of(spec), x, h, c)
    np.testing.assert_allclose(actual.outputs[0], expected.outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_two_thousand_units(kind: str) -> None:
    spec = ModelSpec(kind, 7, 2048)
    x, h, c = random_rows(spec, [3, 2])
    actual = run_rows(engine(spec), x, h, c)
    expected = reference(spec, weights_of(spec), x, h, c)
    for a, e in zip(actual.outputs, expected.outputs, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", KINDS)
def test_unaligned_input_gives_same_bits(spec: ModelSpec) -> None:
    x, h, c = random_rows(spec, [11])
    aligned = run_rows(engine(spec), x, h, c)
    for offset in (1, 2, 3):
        data = b"\0" * offset + x[0].tobytes()
        unaligned = np.frombuffer(data, np.float32, offset=offset).reshape(x[0].shape)
        rows = Rows(unaligned, np.zeros(1, np.int64), np.array([11]), h.copy(), None if c is None else c.copy())
        engine(spec).run([rows])
        assert_same_bits(rows.h, aligned.h)


@pytest.mark.parametrize("spec", KINDS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-40, -0.0])
def test_poisoned_row_spoils_no_other(spec: ModelSpec, poison: float) -> None:
    lengths = [4, 7, 3, 7, 5, 6, 7, 2, 9]
    x, h, c = random_rows(spec, lengths)
    model = engine(spec)
    clean = run_rows(model, x, h, c)
    x[3][2, 1] = poison
    spoiled = run_rows(model, x, h, c)
    for b in set(range(len(lengths))) - {3}:
        assert_same_bits(spoiled.outputs[b], clean.outputs[b])
    assert_same_bits(spoiled.outputs[3][:2], clean.outputs[3][:2])
    expected = reference(spec, weights_of(spec), x, h, c).outputs[3]
    if np.isfinite(poison):
        scale = max(1.0, np.abs(expected).max()) if spec.nonlinearity == "relu" else 1.0
        np.testing.assert_allclose(spoiled.outputs[3], expected, rtol=0, atol=1e-5 * scale)
    if np.isnan(poison):
        np.testing.assert_array_equal(np.isnan(spoiled.outputs[3]), np.isnan(expected))


@pytest.mark.parametrize("spec", KINDS)
def test_nan_and_denormal_weights(spec: ModelSpec) -> None:
    x, h, c = random_rows(spec, [6, 6])
    weights = weights_of(spec)
    for name in weights:
        weights[name][:3] = 1e-40
    actual = run_rows(NativeEngine(spec, weights, threads=1), x, h, c)
    np.testing.assert_allclose(actual.outputs[1], reference(spec, weights, x, h, c).outputs[1], rtol=0, atol=1e-5)
    weights["weight_ih_l0"][5, 1] = np.nan
    actual = run_rows(NativeEngine(spec, weights, threads=1), x, h, c)
    expected = reference(spec, weights, x, h, c)
    np.testing.assert_array_equal(np.isnan(actual.outputs[0]), np.isnan(expected.outputs[0]))


@pytest.mark.parametrize("spec", KINDS)
def test_bf16_rounds_weights_and_nothing_else(spec: ModelSpec) -> None:
    spec = replace(spec, hidden_size=96, num_layers=2, weights_dtype="bf16").with_linear_head(3)
    weights = weights_of(spec)
    x, h, c = random_rows(spec, [40, 9])
    actual = run_rows(NativeEngine(spec, weights, threads=1), x, h, c)

    def rounded(array: np.ndarray) -> np.ndarray:
        return array if array.ndim == 1 else torch.from_numpy(array).bfloat16().float().numpy()

    exact = reference(spec, {name: rounded(array) for name, array in weights.items()}, x, h, c)
    full = reference(spec, weights, x, h, c)
    scale = max(1.0, *(np.abs(row).max() for row in exact.outputs))
    for a, e, f in zip(actual.outputs, exact.outputs, full.outputs, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * scale)
        # What the rounding itself costs, with PyTorch's initialisation.
        np.testing.assert_allclose(a, f, rtol=0, atol=1e-2 * scale)


def test_loads_and_unloads_take_no_memory() -> None:
    spec = ModelSpec("lstm", 9, 30, num_layers=2).with_linear_head(2)
    weights = weights_of(spec)
    x, h, c = random_rows(spec, [5])

    def load(times: int) -> int:
        for _ in range(times):
            run_rows(NativeEngine(spec, weights, threads=2), x, h, c)
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    before = load(100)
    assert load(1000) - before < 4 * 2**20


def test_models_are_compiled_side_by_side() -> None:
    specs = [ModelSpec(kind, 3, hidden) for kind in ("rnn", "gru", "lstm") for hidden in (11, 12, 11)]
    weights = [weights_of(spec) for spec in specs]  # one after the other: they share torch's random generator
    with ThreadPoolExecutor(len(specs)) as pool:
        engines = list(pool.map(lambda spec, arrays: NativeEngine(spec, arrays, threads=1), specs, weights))
    for model in engines:
        x, h, c = random_rows(model.spec, [5])
        expected = reference(model.spec, weights_of(model.spec), x, h, c)
        np.testing.assert_allclose(run_rows(model, x, h, c).outputs[0], expected.outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 300])
def test_one_engine_serves_many_threads(steps: int) -> None:
    spec = ModelSpec("gru", 30, 64, num_layers=2)
    model = engine(spec, threads=2)
    x, h, c = random_rows(spec, [steps] * 9)
    expected = run_rows(model, x, h, c)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: run_rows(model, x, h, c), range(64)):
            assert_same_bits(result.h, expected.h)
            assert_same_bits(np.concatenate(result.outputs), np.concatenate(expected.outputs))


def test_packed_weights_are_less_than_twice() -> None:
    for spec in (
        ModelSpec("lstm", 100, 250),
        ModelSpec("gru", 4, 17),
        ModelSpec("rnn", 128, 256, weights_dtype="bf16"),
    ):
        weights = weights_of(spec)
        size = 2 if spec.weights_dtype == "bf16" else 4
        assert engine(spec).nbytes < 2 * size * sum(array.size for array in weights.values())


def test_threads_end_with_their_engine() -> None:
    spec = ModelSpec("rnn", 64, 256)
    x, h, c = random_rows(spec, [50] * 24)
    model = engine(spec, threads=3)
    before = set(threading.enumerate())
    run_rows(model, x, h, c)
    workers = set(threading.enumerate()) - before
    assert 1 <= len(workers) <= 2
    del model
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
