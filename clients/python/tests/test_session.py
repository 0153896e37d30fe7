"""Sessions: the state lives in the service, and no step runs twice."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnn_client import SessionGone, SessionNotFound, Snapshot, StepConflict, StepOutOfOrder


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm-proj"])
def test_steps_equal_whole_sequence(begin, name):
    session, inputs, whole = begin(name, 10)
    for index in range(4):
        result = session.step(inputs[index])
        assert_array_equal(result.outputs, whole.outputs[index])
        assert result.step == session.done == index + 1
    several = session.step(inputs[4:9])
    assert_array_equal(several.outputs, whole.outputs[4:9])
    assert several.step == session.done == 9
    last = session.step(inputs[9], returns=["outputs", "h"])
    assert_array_equal(last.h.reshape(whole.h_n.shape), whole.h_n)
    if "predictions" in whole.arrays:
        assert_array_equal(several.predictions, whole.predictions[4:9])


def test_session_ends_with_block_unless_kept(client):
    with client.session("tanh") as session:
        session.step(np.ones(4))
    with pytest.raises(SessionGone) as caught:
        client.attach(session.id)
    assert (caught.value.reason, caught.value.step) == ("deleted", 1)
    session.close()  # a second time is no error
    with client.session("tanh", keep=True) as kept:
        kept.step(np.ones(4))
    again = client.attach(kept.id)
    assert (again.done, again.model, again.version) == (1, "tanh", "1")
    again.close()
    with pytest.raises(SessionNotFound):
        client.attach("never-there")


def test_failing_block_ends_session(client):
    with pytest.raises(ZeroDivisionError), client.session("tanh") as session:
        1 / 0  # noqa: B018
    with pytest.raises(SessionGone):
        session.step(np.ones(4))


def test_initial_states(client, row):
    inputs, h, c = row("lstm", 3), row("wide", 2)[:, :6], np.ones((2, 6), np.float32)
    with client.session("lstm", h=h, c=c, ttl_seconds=60) as session:
        assert_array_equal(session.step(inputs).outputs, client.forward(inputs, "lstm", h0=h, c0=c).outputs)


def test_snapshot_continues(client, begin):
    session, inputs, whole = begin("lstm", 8)
    session.step(inputs[:5])
    snapshot = Snapshot.from_bytes(session.snapshot().to_bytes())
    assert (snapshot.step, snapshot.model, snapshot.version) == (5, "lstm", "1")
    session.step(inputs[:1])
    with client.restore(snapshot) as restored:
        assert restored.done == 0
        assert_array_equal(restored.step(inputs[5:]).outputs, whole.outputs[5:])


def test_fork_is_independent(begin):
    session, inputs, whole = begin("gru", 6)
    session.step(inputs[:4])
    with session.fork() as fork:
        assert (fork.done, fork.id != session.id) == (0, True)
        fork.step(inputs[:2])
        assert_array_equal(session.step(inputs[4:]).outputs, whole.outputs[4:])


def test_reset_keeps_counting(begin):
    session, inputs, whole = begin("gru", 3)
    session.step(inputs)
    session.reset()
    assert session.done == 3
    assert_array_equal(session.step(inputs).outputs, whole.outputs)
    assert session.done == 6


def test_lost_answer_is_given_again(client, begin):
    session, inputs, whole = begin("gru", 4)
    session.step(inputs[:2])
    session.step(inputs[2])
    late = client.attach(session.id, done=2)
    assert_array_equal(late.step(inputs[2]).outputs, whole.outputs[2])
    assert late.done == session.done == 3
    assert_array_equal(session.step(inputs[3]).outputs, whole.outputs[3])


def test_conflicting_steps_are_refused(client, begin):
    session, inputs, _ = begin("gru", 4)
    session.step(inputs[0])
    session.step(inputs[1])
    with pytest.raises(StepConflict):
        client.attach(session.id, done=1).step(inputs[2])
    with pytest.raises(StepOutOfOrder) as caught:
        client.attach(session.id, done=0).step(inputs[0])
    assert caught.value.expected == 3
    with pytest.raises(ValueError, match=r"expected \(I\), or \(k, I\)"):
        session.step(inputs[None])
    assert session.done == 2
