"""Single steps in fixed buffers: the same program on the CPU uncaptured, and on a GPU as a graph."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import torch_step
from service.engine.torch_step import ALIGNED_FLOATS, Bucket, Buffer, Steps, bucket_rows
from service.spec import ModelSpec
from tests.engine.test_torch_engine import engine_of
from tests.reference import TOLERANCE, numbers, run_reference, specs

CPU, GPU = "cpu", "cuda:0"


def steps_of(spec, device):
    engine, weights = engine_of(spec, device, like_gpu=True)
    return engine._steps, weights


def check_steps(spec, device, counts):
    """Turns of these numbers of rows through one set of buckets, so that later ones find what earlier ones left."""
    steps, weights = steps_of(spec, device)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for rows in counts:
            inputs, h = numbers(rng, rows, spec.input_size), numbers(rng, spec.states, rows, spec.state_size)
            c = numbers(rng, spec.states, rows, spec.hidden_size) if spec.has_cell_state else None
            results = steps.run(inputs, h, c, predict=spec.out_features is not None)
            for row in range(rows):
                expected = run_reference(
                    spec, weights, inputs[row : row + 1], h[:, row], None if c is None else c[:, row]
                )
                np.testing.assert_allclose(results.h[:, row], expected.h, atol=TOLERANCE, rtol=0)
                if c is not None:
                    np.testing.assert_allclose(results.c[:, row], expected.c, atol=TOLERANCE, rtol=0)
                if results.predictions is not None:
                    np.testing.assert_allclose(
                        results.predictions[row], expected.predictions[0], atol=TOLERANCE, rtol=0
                    )
    return steps


@given(spec=specs(), counts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_steps_agree_with_float64_whatever_the_buffers_held_before(spec, counts):
    steps = check_steps(spec, CPU, counts)
    assert set(steps._buckets) == {bucket_rows(rows) for rows in counts}


@pytest.mark.gpu
@settings(max_examples=20)
@given(spec=specs(), counts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_captured_steps_agree_with_float64(spec, counts):
    steps = check_steps(spec, GPU, counts)
    assert all(bucket.captured for bucket in steps._buckets.values())


@pytest.mark.gpu
def test_captured_steps_of_a_wide_model_agree_with_float64():
    for spec in (ModelSpec("lstm", 128, 256, out_features=3), ModelSpec("rnn", 512, 1024), ModelSpec("gru", 64, 512)):
        steps = check_steps(spec, GPU, [1, 33, 64])
        assert all(bucket.captured for bucket in steps._buckets.values())


def check_threads(device):
    spec = ModelSpec("gru", 3, 4)
    steps, weights = steps_of(spec, device)

    def step(seed):
        rng = np.random.default_rng(seed)
        inputs, h = numbers(rng, 2, 3), numbers(rng, 1, 2, 4)
        with torch.inference_mode():
            results = steps.run(inputs, h, None, predict=False)
        for row in range(2):
            expected = run_reference(spec, weights, inputs[row : row + 1], h[:, row])
            np.testing.assert_allclose(results.h[:, row], expected.h, atol=TOLERANCE, rtol=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(step, range(100)))


def test_threads_may_step_at_once():
    check_threads(CPU)


@pytest.mark.gpu
def test_threads_may_step_at_once_on_a_gpu():
    check_threads(GPU)


def test_a_bucket_is_the_smallest_power_of_two_that_holds_the_rows():
    assert [bucket_rows(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 1000, 4096)] == [1, 2, 4, 4, 8, 8, 16, 1024, 4096]


def test_parts_of_a_buffer_are_aligned_and_apart():
    buffer = Buffer({"a": (3, 5), "b": (1, 1), "c": (2, 64)}, torch.device(CPU))
    for number, array in enumerate(buffer.host.values()):
        array[:] = number
    buffer.send()
    for number, tensor in enumerate(buffer.device.values()):
        assert (tensor == number).all()
        assert tensor.storage_offset() % ALIGNED_FLOATS == 0
        tensor.add_(10)
    assert (buffer.host["a"] == 0).all()
    buffer.fetch()
    for number, array in enumerate(buffer.host.values()):
        assert (array == number + 10).all()


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_runs_all_the_same(monkeypatch):
    class Uncapturable(torch.nn.GRU):
        def forward(self, *args):
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()  # which a capture does not allow
            return super().forward(*args)

    monkeypatch.setattr(torch_step, "WARM_UP_RUNS", 1)
    module = Uncapturable(3, 4, batch_first=True).eval().to(GPU)
    with torch.inference_mode():
        assert not Bucket(ModelSpec("gru", 3, 4), module, None, torch.device(GPU), 2).captured
        results = Steps(ModelSpec("gru", 3, 4), module, None, torch.device(GPU)).run(
            np.ones((2, 3), np.float32), np.zeros((1, 2, 4), np.float32), None, predict=False
        )
        expected, _ = module(torch.ones(2, 1, 3, device=GPU))
    np.testing.assert_allclose(results.h[0], expected[:, 0].cpu().numpy(), atol=TOLERANCE, rtol=0)
