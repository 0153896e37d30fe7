"""What a stream's session keeps: the promised number of its latest steps, however they were cut into blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sessions.exactly_once import SessionSteps
from service.sessions.replay import decode_state, keep_steps, replay, zero_state
from service.sessions.stepper import Steps
from service.spec import ModelSpec
from service.stores.interface import Position

LIMIT = 600


def seen(steps):
    """Results as plain lists, one pair for each step."""
    return [
        (output, None if block.predictions is None else block.predictions[i].tolist())
        for block in steps
        for i, output in enumerate(block.outputs.tolist())
    ]


@pytest.mark.parametrize("spec", [ModelSpec("rnn", 3, 2), ModelSpec("lstm", 1, 2, num_layers=2).with_linear_head(1)])
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_latest_steps_can_be_repeated(spec, cuts):
    promised = SessionSteps(None, None, None, LIMIT).replay_steps(type("Version", (), {"spec": spec}))
    done = sum(cuts)
    random = np.random.default_rng(done)
    inputs = random.standard_normal((done, spec.input_size), np.float32)
    outputs = random.standard_normal((done, spec.output_size), np.float32)
    predictions = random.standard_normal((done, spec.out_features), np.float32) if spec.out_features else None
    state, kept, at = zero_state(spec), b"", 0
    for count in cuts:
        part = slice(at, at + count)
        head = None if predictions is None else predictions[part]
        steps = Steps(at + 1, outputs[part], head, *decode_state(spec, state))
        kept = keep_steps(kept, inputs[part], steps, LIMIT, spec)
        assert len(kept) - 1 <= max(LIMIT, len(keep_steps(b"", inputs[part], steps, LIMIT, spec)) - 1)
        at += count
    for again in range(1, min(promised, done) + 1):
        found = seen(replay(Position(1, done, state, kept, 0.0), spec, done - again + 1, inputs[done - again :]))
        expected = predictions[done - again :].tolist() if predictions is not None else [None] * again
        assert found == list(zip(outputs[done - again :].tolist(), expected, strict=True))
