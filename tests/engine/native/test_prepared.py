"""Rows that are run again over what their arrays hold then get the bits of a run of their own."""

import gc

import numpy as np
import pytest

from service.engine.interface import Rows
from service.engine.native.engine import NativeEngine
from service.spec import ModelSpec
from tests.engine.native.models import initial_weights

SPECS = [
    ModelSpec("rnn", 3, 5),
    ModelSpec("gru", 4, 17, num_layers=2, out_features=2),
    ModelSpec("lstm", 5, 6, num_layers=2, proj_size=3),
]


def some_rows(spec, random, lengths):
    counts = np.array(lengths, np.int64)
    steps, shape = sum(lengths), (spec.states, len(lengths))
    rows = Rows(
        random.standard_normal((steps, spec.input_size)).astype(np.float32),
        np.cumsum(counts) - counts,
        counts,
        random.standard_normal((*shape, spec.state_size)).astype(np.float32),
        outputs=np.zeros((steps, spec.output_size), np.float32),
    )
    if spec.has_cell_state:
        rows.c = random.standard_normal((*shape, spec.hidden_size)).astype(np.float32)
    if spec.out_features:
        rows.predictions = np.zeros((steps, spec.out_features), np.float32)
    return rows


def arrays(rows):
    return [array for array in (rows.inputs, rows.h, rows.c, rows.outputs, rows.predictions) if array is not None]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("lengths", [[7], [3, 9, 1], [1]])
def test_each_run_has_the_bits_of_its_own(spec, lengths):
    engine, random = NativeEngine(spec, initial_weights(spec), threads=1), np.random.default_rng(0)
    rows = some_rows(spec, random, lengths)
    again = engine.prepared(rows)
    for _ in range(3):
        other = some_rows(spec, random, lengths)
        for array, values in zip(arrays(rows), arrays(other), strict=True):
            array[:] = values
        again()
        engine.run([other])
        for array, values in zip(arrays(rows), arrays(other), strict=True):
            assert array.tobytes() == values.tobytes()


def test_what_one_call_or_one_thread_cannot_run_is_not_prepared():
    random = np.random.default_rng(0)
    both_ways = ModelSpec("rnn", 3, 5, bidirectional=True)
    engine = NativeEngine(both_ways, initial_weights(both_ways), threads=1)
    assert engine.prepared(some_rows(both_ways, random, [2])) is None
    large = ModelSpec("lstm", 64, 256)
    engine = NativeEngine(large, initial_weights(large), threads=1)
    assert engine.prepared(some_rows(large, random, [2])) is not None
    assert engine.prepared(some_rows(large, random, [400])) is None


def test_weights_are_not_held():
    spec = SPECS[0]
    engine = NativeEngine(spec, initial_weights(spec), threads=1)
    rows = some_rows(spec, np.random.default_rng(0), [2])
    again, before = engine.prepared(rows), rows.h.copy()
    del engine
    gc.collect()
    again()  # by nobody
    assert (rows.h == before).all()
