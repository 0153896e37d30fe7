"""Laws 1 to 4 of docs/architecture.md on the native engine: values as torch's in float64, the same bits in any cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.interface import Floats, Rows
from service.engine.native.engine import NativeEngine
from service.spec import ModelSpec
from tests.engine.native.models import assert_same_bits, random_rows, reference, run_rows
from tests.reference import weights_of, with_chains

KINDS = [
    ModelSpec("rnn", 3, 5),
    ModelSpec("rnn", 3, 5, nonlinearity="relu"),
    ModelSpec("gru", 3, 5),
    ModelSpec("lstm", 3, 5),
    ModelSpec("lstm", 3, 5, proj_size=2),
]


# Sizes about the vector widths and panels; few, so that kernels are compiled once for many examples.
@st.composite
def specs(draw: st.DrawFn, *, one_way: bool = False) -> ModelSpec:
    spec = draw(st.sampled_from(KINDS))
    hidden = draw(st.sampled_from([1, 5, 16, 33, 70]))
    spec = replace(
        spec,
        input_size=draw(st.sampled_from([1, 3, 17])),
        hidden_size=max(hidden, 2) if spec.proj_size else hidden,
        proj_size=spec.proj_size and draw(st.sampled_from([1, max(hidden, 2) - 1])),
        num_layers=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        bidirectional=not one_way and draw(st.booleans()),
        weights_dtype=draw(st.sampled_from(["f32", "bf16"])) if one_way else "f32",
    )
    return with_chains(lambda options: draw(st.sampled_from(options)), spec)


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def engine(spec: ModelSpec, threads: int = 1) -> NativeEngine:
    return NativeEngine(spec, weights_of(spec), threads=threads)


def close(actual: Floats | None, expected: Floats | None, spec: ModelSpec) -> None:
    if actual is None or expected is None:
        assert actual is expected
        return
    unbounded = spec.nonlinearity == "relu" or spec.head
    bound = 1e-5 * (max(1.0, np.abs(expected).max()) if unbounded else 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@settings(max_examples=50)
@given(spec=specs(), lengths=lengths)
def test_values_agree_with_float64(spec: ModelSpec, lengths: list[int]) -> None:
    x, h, c = random_rows(spec, lengths)
    actual = run_rows(engine(spec), x, h, c)
    expected = reference(spec, weights_of(spec), x, h, c)
    for a, e in zip(actual.outputs, expected.outputs, strict=True):
        close(a, e, spec)
    close(actual.h, expected.h, spec)
    close(actual.c, expected.c, spec)
    for a, e in zip(actual.predictions or [], expected.predictions or [], strict=True):
        close(a, e, spec)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_large_layer_agrees_over_1024_steps(kind: str) -> None:
    spec = ModelSpec(kind, 32, 1024)
    x, h, c = random_rows(spec, [1024])
    actual = run_rows(engine(spec, threads=2), x, h, c)
    close(actual.outputs[0], reference(spec, weights_of(spec), x, h, c).outputs[0], spec)


@settings(max_examples=50)
@given(spec=specs(one_way=True), lengths=lengths, data=st.data())
def test_two_pieces_give_bits_of_one_run(spec: ModelSpec, lengths: list[int], data: st.DataObject) -> None:
    x, h, c = random_rows(spec, lengths)
    model = engine(spec)
    whole = run_rows(model, x, h, c)
    cuts = [data.draw(st.integers(0, length)) for length in lengths]
    first = run_rows(model, [row[:cut] for row, cut in zip(x, cuts, strict=True)], h, c)
    second = run_rows(model, [row[cut:] for row, cut in zip(x, cuts, strict=True)], first.h, first.c)
    for b in range(len(x)):
        assert_same_bits(np.concatenate([first.outputs[b], second.outputs[b]]), whole.outputs[b])
        if whole.predictions and first.predictions and second.predictions:
            assert_same_bits(np.concatenate([first.predictions[b], second.predictions[b]]), whole.predictions[b])
    assert_same_bits(second.h, whole.h)
    if whole.c is not None and second.c is not None:
        assert_same_bits(second.c, whole.c)


@settings(max_examples=50)
@given(spec=specs(one_way=True), length=st.integers(1, 30))
def test_single_steps_give_bits_of_one_run(spec: ModelSpec, length: int) -> None:
    x, h, c = random_rows(spec, [length])
    model = engine(spec)
    whole = run_rows(model, x, h, c)
    for t in range(length):
        step = run_rows(model, [x[0][t : t + 1]], h, c)
        assert_same_bits(step.outputs[0], whole.outputs[0][t : t + 1])
        h, c = step.h, step.c
    assert_same_bits(h, whole.h)


@settings(max_examples=50)
@given(spec=specs(), lengths=lengths)
def test_row_has_same_bits_alone_and_batched(spec: ModelSpec, lengths: list[int]) -> None:
    x, h, c = random_rows(spec, lengths)
    model = engine(spec)
    together = run_rows(model, x, h, c)
    for b, row in enumerate(x):
        alone = run_rows(model, [row], h[:, b : b + 1], None if c is None else c[:, b : b + 1])
        assert_same_bits(alone.outputs[0], together.outputs[b])
        assert_same_bits(alone.h[:, 0], together.h[:, b])
        if alone.predictions and together.predictions:
            assert_same_bits(alone.predictions[0], together.predictions[b])


@pytest.mark.parametrize("spec", KINDS)
def test_threads_change_no_bit(spec: ModelSpec) -> None:
    spec = replace(spec, input_size=40, hidden_size=96, proj_size=spec.proj_size and 40, num_layers=2)
    spec = spec.with_linear_head(3)
    x, h, c = random_rows(spec, [int(n) for n in np.random.default_rng(0).integers(1, 60, 130)])
    one, two = run_rows(engine(spec), x, h, c), run_rows(engine(spec, threads=3), x, h, c)
    for a, b in zip(one.outputs, two.outputs, strict=True):
        assert_same_bits(a, b)
    assert_same_bits(one.h, two.h)


@pytest.mark.parametrize("spec", [KINDS[0], replace(KINDS[3], bidirectional=True, num_layers=2).with_linear_head(2)])
def test_only_what_is_asked_for_is_written(spec: ModelSpec) -> None:
    x, h, c = random_rows(spec, [9, 9])
    model = engine(spec)
    expected = run_rows(model, x, h, c)
    inputs = np.concatenate([np.full((2, 3), np.nan, np.float32), x[0][:4], np.full((3, 3), np.nan, np.float32), x[1]])
    outputs = np.full((len(inputs), spec.output_size), 5, np.float32)
    # States with strides of their own, a row of no steps, gaps between the rows.
    states = np.full((spec.states, 3, spec.state_size + 2), 5, np.float32)
    own = states[:, :, : spec.state_size]
    own[:, :2] = h
    cells = None if c is None else np.concatenate([c, c[:, :1]], axis=1)
    rows = Rows(inputs, np.array([2, 9, 9]), np.array([4, 9, 0]), own, cells, outputs)
    silent = Rows(inputs, rows.starts, rows.lengths, own.copy(), None if cells is None else cells.copy())
    model.run([rows, silent])
    assert_same_bits(outputs[9:18], expected.outputs[1])
    assert (outputs[:2] == 5).all()
    assert (outputs[6:9] == 5).all()
    assert (states[:, :, spec.state_size :] == 5).all()
    assert (states[:, 2] == 5).all()
    assert_same_bits(silent.h, own)


@settings(max_examples=50)
@given(spec=specs(), lengths=st.lists(st.integers(0, 12), min_size=1, max_size=80), asked=st.booleans())
def test_batches_give_bits_of_one_batch(spec: ModelSpec, lengths: list[int], asked: bool) -> None:
    """Each row in a batch of its own, with predictions and no outputs, after others have used the engine's buffers."""
    x, h, c = random_rows(spec, lengths)
    model = engine(spec)
    together = run_rows(model, x, h, c)
    batches = []
    for b, row in enumerate(x):
        own_c = None if c is None else c[:, b : b + 1].copy()
        batch = Rows(row, np.zeros(1, np.int64), np.array([len(row)]), h[:, b : b + 1].copy(), own_c)
        if asked and spec.out_features:
            batch.predictions = np.empty((len(row), spec.out_features), np.float32)
        batches.append(batch)
    model.run(batches)
    for b, batch in enumerate(batches):
        assert_same_bits(batch.h[:, 0], together.h[:, b])
        if batch.c is not None and together.c is not None:
            assert_same_bits(batch.c[:, 0], together.c[:, b])
        if batch.predictions is not None and together.predictions:
            assert_same_bits(batch.predictions, together.predictions[b])
