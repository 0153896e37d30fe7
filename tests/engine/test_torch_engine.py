"""The laws of the numbers on the torch engine, against torch.nn in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence

from service.engine import torch_engine
from service.engine.interface import Rows
from service.engine.load import EngineFactory
from service.engine.torch_engine import TorchEngine, bytes_per_step, resolve_device
from service.spec import ModelSpec
from tests.reference import TOLERANCE, numbers, run_reference, specs, weights_of


def engine_of(spec, device="cpu"):
    weights = weights_of(spec)
    if device != "cpu":  # as the service has it, with TF32 off
        return EngineFactory.configure(device, 0).load(spec, weights), weights
    return TorchEngine(spec, weights, device=torch.device(device)), weights


def rows_of(spec, lengths, rng, gap=0):
    """Random rows, `gap` unused steps between them."""
    lengths = np.array(lengths, np.int64)
    starts = np.cumsum(lengths + gap) - (lengths + gap)
    total = int((lengths + gap).sum())
    return Rows(
        inputs=numbers(rng, total, spec.input_size),
        starts=starts,
        lengths=lengths,
        h=numbers(rng, spec.states, len(lengths), spec.state_size),
        c=numbers(rng, spec.states, len(lengths), spec.hidden_size) if spec.has_cell_state else None,
        outputs=np.full((total, spec.output_size), 7, np.float32),
        predictions=np.full((total, spec.out_features), 7, np.float32) if spec.out_features else None,
    )


def copied(rows):
    return Rows(rows.inputs, rows.starts, rows.lengths, rows.h.copy(), None if rows.c is None else rows.c.copy())


@settings(max_examples=50)
@given(spec=specs(directions=(False,)), data=st.data(), steps=st.integers(1, 12))
def test_carried_state_equals_one_run(spec, data, steps):
    split = data.draw(st.integers(0, steps))
    engine, _ = engine_of(spec)
    whole = rows_of(spec, [steps], np.random.default_rng(1))
    pieces = copied(whole)
    pieces.outputs = np.empty_like(whole.outputs)
    engine.run([whole])
    for start, length in ((0, split), (split, steps - split)):
        pieces.starts, pieces.lengths = np.array([start]), np.array([length])
        engine.run([pieces])
    np.testing.assert_allclose(pieces.outputs, whole.outputs, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(pieces.h, whole.h, atol=TOLERANCE, rtol=0)


def test_bf16_rounds_weights_and_nothing_else():
    spec = ModelSpec("gru", 5, 7, weights_dtype="bf16").with_linear_head(2)
    engine, weights = engine_of(spec)
    rounded = {
        name: torch.from_numpy(array).to(torch.bfloat16).float().numpy() if array.ndim == 2 else array
        for name, array in weights.items()
    }
    check_batches(engine, rounded, [rows_of(spec, [9], np.random.default_rng(6))])


def test_wide_model_agrees_over_1024_steps():
    spec = ModelSpec("lstm", 16, 256)
    check_batches(*engine_of(spec), [rows_of(spec, [1024], np.random.default_rng(7))], 100_000)


def test_absent_device_is_refused():
    with pytest.raises(ValueError, match="cuda:99"):
        resolve_device("cuda:99")


def sliced(rows):
    """The second half of each row, with states that are views of (B, L·D, ·), as a store of sessions has them."""
    first = rows.lengths // 2
    rows.h, rows.c = (None if a is None else a.swapaxes(0, 1).copy().swapaxes(0, 1) for a in (rows.h, rows.c))
    return replace(rows, starts=rows.starts + first, lengths=rows.lengths - first)


@st.composite
def batches_of(draw, spec, longest=12):
    """What a turn may hold: rows of several requests, some that ask for nothing or for one thing."""
    batches = []
    for seed, lengths in enumerate(draw(st.lists(st.lists(st.integers(0, longest), max_size=5), max_size=5))):
        rows = rows_of(spec, lengths, np.random.default_rng(seed), draw(st.integers(0, 1)))
        if draw(st.booleans()):
            rows.outputs = None
        if draw(st.booleans()):
            rows.predictions = None
        batches.append(sliced(rows) if draw(st.booleans()) else rows)
    return batches


def check_batches(engine, weights, batches, call_steps=1_000):
    """Every row as if alone, from its own state, as torch.nn in float64; nothing else written."""
    spec, before = engine.spec, [copied(rows) for rows in batches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "CALL_BYTES", call_steps * bytes_per_step(spec))
        engine.run(batches)
    for rows, old in zip(batches, before, strict=True):
        used = np.zeros(len(rows.inputs), np.bool_)
        for row, (start, length) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
            place = slice(start, start + length)
            used[place] = True
            if not length:
                np.testing.assert_array_equal(rows.h[:, row], old.h[:, row])
                continue
            c0 = None if old.c is None else old.c[:, row]
            expected = run_reference(spec, weights, rows.inputs[place], old.h[:, row], c0)
            results = [(rows.h[:, row], expected.h)]
            if rows.c is not None:
                results.append((rows.c[:, row], expected.c))
            if rows.outputs is not None:
                results.append((rows.outputs[place], expected.outputs))
            if rows.predictions is not None:
                results.append((rows.predictions[place], expected.predictions))
            for ours, wanted in results:
                np.testing.assert_allclose(ours, wanted, atol=TOLERANCE, rtol=0)
        for values in (rows.outputs, rows.predictions):
            assert values is None or (values[~used] == 7).all()


@settings(max_examples=50)
@given(data=st.data(), spec=specs(), longest=st.sampled_from([1, 12]), call_steps=st.integers(3, 60))
def test_rows_of_any_batch_agree_with_float64(data, spec, longest, call_steps):
    check_batches(*engine_of(spec), data.draw(batches_of(spec, longest)), call_steps)


@pytest.mark.gpu
@settings(max_examples=50)
@given(data=st.data(), spec=specs(), call_steps=st.integers(3, 60))
def test_rows_agree_with_float64_on_a_gpu(data, spec, call_steps):
    check_batches(*engine_of(spec, "cuda:0"), data.draw(batches_of(spec)), call_steps)


@pytest.mark.gpu
def test_wide_models_agree_on_a_gpu():
    for spec in (ModelSpec("lstm", 64, 192), ModelSpec("gru", 64, 193), ModelSpec("rnn", 64, 1024)):
        lengths = [1024, 1000, 600, 17, 1, 1]
        check_batches(*engine_of(spec, "cuda:0"), [rows_of(spec, lengths, np.random.default_rng(1))], 100_000)


def module_calls(engine, batches):
    """What the module is called with when the engine runs batches."""
    calls = []
    hook = engine._module.register_forward_pre_hook(lambda _, args: calls.append(args))
    engine.run(batches)
    hook.remove()
    return calls


@settings(max_examples=50)
@given(data=st.data(), spec=specs(layers=3, size=5), longest=st.sampled_from([1, 12]), call_steps=st.integers(3, 60))
def test_module_gets_what_cudnn_demands(data, spec, longest, call_steps):
    engine, _ = engine_of(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "CALL_BYTES", call_steps * bytes_per_step(spec))
        calls = module_calls(engine, data.draw(batches_of(spec, longest)))
    for sequence, initial in calls:
        steps, rows = sequence, sequence.shape[1] if isinstance(sequence, torch.Tensor) else 0
        if isinstance(sequence, PackedSequence):
            steps, active = sequence.data, sequence.batch_sizes
            rows = int(active[0])
            assert sequence.sorted_indices is None  # else cuDNN would get other states than these
            assert active.dtype == torch.int64
            assert active.device.type == "cpu"
            assert (active.diff() <= 0).all()
            assert (active > 0).all()
            assert int(active.sum()) == len(steps)
        states = initial if isinstance(initial, tuple) else (initial,)
        widths = [spec.state_size, spec.hidden_size][: 1 + spec.has_cell_state]
        assert [tuple(state.shape) for state in states] == [(spec.states, rows, width) for width in widths]
        for tensor in (steps, *states):
            assert tensor.is_contiguous()
            assert tensor.dtype == torch.float32
            assert tensor.device == engine._device


def test_rows_of_a_turn_share_a_call():
    spec = ModelSpec("gru", 3, 4)
    engine, _ = engine_of(spec)
    assert (
        len(module_calls(engine, [rows_of(spec, [5 + seed], np.random.default_rng(seed)) for seed in range(20)])) == 1
    )


def test_call_is_bounded_in_steps(monkeypatch):
    spec = ModelSpec("gru", 3, 4)
    engine, _ = engine_of(spec)
    monkeypatch.setattr(torch_engine, "CALL_BYTES", 10 * bytes_per_step(spec))
    batches = [rows_of(spec, lengths, np.random.default_rng(0)) for lengths in ([3, 0, 3], [5, 20, 0, 1])]
    calls = [sequence for sequence, _ in module_calls(engine, batches)]
    sizes = [len(call.data) if isinstance(call, PackedSequence) else call.shape[0] * call.shape[1] for call in calls]
    assert sizes == [6, 5, 20, 1]


@pytest.mark.gpu
def test_gpu_never_runs_on_the_event_loop():
    spec = ModelSpec("rnn", 3, 4)
    engine, _ = engine_of(spec, "cuda:0")
    assert engine.estimate(rows_of(spec, [1], np.random.default_rng(0))) == np.inf
