"""Connections that break at random moments: every answer arrives, every step runs once, to the last bit."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnn_client import ConnectionLost


def test_steps_run_once_despite_cuts(connect, service, cutter, row):
    inputs, direct = row("gru", 60), connect(service.url)
    whole = direct.forward(inputs, "gru")
    with connect(cutter.url).session("gru") as session:
        singles = [session.step(each).outputs for each in inputs[:30]]
        blocks = [session.step(inputs[start : start + 3]).outputs for start in range(30, 60, 3)]
        assert_array_equal(np.concatenate([np.array(singles), *blocks]), whole.outputs)
        snapshot = direct.attach(session.id).snapshot()
        assert_array_equal(snapshot.h, whole.h_n)
        assert snapshot.step == session.done == 60
    assert cutter.cuts > 5


def test_sequences_arrive_despite_cuts(connect, cutter, row):
    client, inputs = connect(cutter.url), row("gru", 20)
    wanted = client.forward(inputs, "gru").outputs
    for _ in range(20):
        assert_array_equal(client.forward(inputs, "gru").outputs, wanted)
    assert cutter.cuts > 3


def test_step_can_be_repeated_by_hand(connect, service, cutter, row):
    inputs = row("gru", 40)
    whole = connect(service.url).forward(inputs, "gru")
    session = connect(service.url).session("gru", keep=True)
    impatient, lost = connect(cutter.url, retry_seconds=0), 0
    cutter.cutting = False
    session = impatient.attach(session.id)
    cutter.cutting = True
    for each, outputs in zip(inputs, whole.outputs, strict=True):
        while True:
            try:
                result = session.step(each)
                break
            except ConnectionLost:
                lost += 1
        assert_array_equal(result.outputs, outputs)
    assert lost > 3
    assert session.done == 40


def test_silent_connection_is_left(connect, service, cutter, row):
    cutter.stalling = True
    inputs = row("gru", 30)
    with connect(cutter.url, timeout=0.5).session("gru") as session:
        outputs = [session.step(each).outputs for each in inputs]
        assert_array_equal(outputs, connect(service.url).forward(inputs, "gru").outputs)
        assert session.done == 30
    assert cutter.cuts > 2


def test_unreachable_service(connect):
    with pytest.raises(ConnectionLost, match=r"no answer from http://127.0.0.1:9: ") as caught:
        connect("http://127.0.0.1:9", retry_seconds=0.1).models()
    assert caught.value.settled  # it was never sent
