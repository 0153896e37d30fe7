"""Connections that break at random moments: every answer arrives, every step runs once, to the last bit."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnn_client import ConnectionLost

pytestmark = pytest.mark.integration


def test_steps_run_once_despite_cuts(connect, cutter, begin):
    session, inputs, whole = begin("gru", 60)
    cut = connect(cutter.url).attach(session.id)
    singles = [cut.step(each).outputs for each in inputs[:30]]
    blocks = [cut.step(inputs[start : start + 3]).outputs for start in range(30, 60, 3)]
    assert_array_equal(np.concatenate([np.array(singles), *blocks]), whole.outputs)
    snapshot = session.snapshot()
    assert_array_equal(snapshot.h, whole.h_n)
    assert snapshot.step == cut.done == 60
    assert cutter.cuts > 5


def test_sequences_arrive_despite_cuts(connect, cutter, row):
    client, inputs = connect(cutter.url), row("gru", 20)
    wanted = client.forward(inputs, "gru").outputs
    for _ in range(20):
        assert_array_equal(client.forward(inputs, "gru").outputs, wanted)
    assert cutter.cuts > 3


def test_step_can_be_repeated_by_hand(connect, cutter, begin):
    session, inputs, whole = begin("gru", 40)
    cutter.cutting = False
    cut, lost = connect(cutter.url, retry_seconds=0).attach(session.id), 0
    cutter.cutting = True
    for each, outputs in zip(inputs, whole.outputs, strict=True):
        result = None
        while result is None:
            try:
                result = cut.step(each)
            except ConnectionLost:
                lost += 1
        assert_array_equal(result.outputs, outputs)
    assert lost > 3
    assert cut.done == 40


def test_silent_connection_is_left(connect, cutter, begin):
    cutter.stalling = True
    session, inputs, whole = begin("gru", 30)
    cut = connect(cutter.url, timeout=0.5).attach(session.id)
    assert_array_equal([cut.step(each).outputs for each in inputs], whole.outputs)
    assert cutter.cuts > 2


def test_unreachable_service(connect):
    with pytest.raises(ConnectionLost, match=r"no answer from http://127.0.0.1:9: ") as caught:
        connect("http://127.0.0.1:9", retry_seconds=0.1).models()
    assert caught.value.settled  # it was never sent
