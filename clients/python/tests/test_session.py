"""Sessions: the state lives in the service, and no step runs twice."""

import numpy as np
import pytest

from rnn_client import SessionGone, SessionNotFound, Snapshot, StepConflict, StepOutOfOrder
from tests.e2e.models import SPECS

RNG = np.random.default_rng(11)


def row(name, length):
    return RNG.normal(size=(length, SPECS[name].input_size)).astype(np.float32)


def same(actual, wanted):
    np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm-proj"])
def test_steps_equal_the_whole_sequence_to_the_bit(client, name):
    inputs = row(name, 10)
    whole = client.forward(inputs, name)
    with client.session(name) as session:
        for index in range(4):
            result = session.step(inputs[index])
            same(result.outputs, whole.outputs[index])
            assert result.step == session.done == index + 1
        several = session.step(inputs[4:9])
        same(several.outputs, whole.outputs[4:9])
        assert several.step == session.done == 9
        last = session.step(inputs[9], returns=["outputs", "h"])
        same(last.h.reshape(whole.h_n.shape), whole.h_n)
        if "predictions" in whole.arrays:
            same(several.predictions, whole.predictions[4:9])


def test_a_session_ends_with_its_block_unless_it_is_kept(client):
    with client.session("tanh") as session:
        session.step(row("tanh", 1)[0])
    with pytest.raises(SessionGone) as caught:
        client.attach(session.id)
    assert (caught.value.reason, caught.value.step) == ("deleted", 1)
    session.close()  # a second time is no error
    with client.session("tanh", keep=True) as kept:
        kept.step(row("tanh", 1)[0])
    again = client.attach(kept.id)
    assert (again.done, again.model, again.version) == (1, "tanh", "1")
    again.close()
    with pytest.raises(SessionNotFound):
        client.attach("never-there")


def test_a_block_that_fails_ends_its_session_and_shows_its_own_error(client):
    with pytest.raises(ZeroDivisionError), client.session("tanh") as session:
        1 / 0  # noqa: B018
    with pytest.raises(SessionGone):
        session.step(row("tanh", 1)[0])


def test_states_to_start_from(client):
    inputs, h, c = row("lstm", 3), row("lstm-proj", 3)[:2, :1].repeat(6, 1), np.ones((2, 6), np.float32)
    whole = client.forward(inputs, "lstm", h0=h, c0=c)
    with client.session("lstm", h=h, c=c, ttl_seconds=60) as session:
        same(session.step(inputs).outputs, whole.outputs)


def test_a_snapshot_goes_on_where_it_was_taken(client):
    inputs = row("lstm", 8)
    whole = client.forward(inputs, "lstm")
    with client.session("lstm") as session:
        session.step(inputs[:5])
        snapshot = Snapshot.from_bytes(session.snapshot().to_bytes())
        assert (snapshot.step, snapshot.model, snapshot.version) == (5, "lstm", "1")
        session.step(inputs[:1])
        with client.restore(snapshot) as restored:
            assert restored.done == 0
            same(restored.step(inputs[5:]).outputs, whole.outputs[5:])


def test_a_fork_and_its_origin_go_separate_ways(client):
    inputs, other = row("gru", 6), row("gru", 2)
    whole = client.forward(inputs, "gru")
    with client.session("gru") as session:
        session.step(inputs[:4])
        with session.fork() as fork:
            assert (fork.done, fork.id != session.id) == (0, True)
            fork.step(other)
            same(session.step(inputs[4:]).outputs, whole.outputs[4:])


def test_a_reset_goes_back_to_the_start_and_counts_on(client):
    inputs = row("gru", 3)
    with client.session("gru") as session:
        first = session.step(inputs).outputs
        session.reset()
        assert session.done == 3
        same(session.step(inputs).outputs, first)
        assert session.done == 6


def test_a_lost_answer_is_given_again_and_runs_nothing(client):
    inputs = row("gru", 4)
    with client.session("gru") as session:
        session.step(inputs[:2])
        ran = session.step(inputs[2])
        late = client.attach(session.id, done=2)
        same(late.step(inputs[2]).outputs, ran.outputs)
        assert late.done == session.done == 3
        same(session.step(inputs[3]).outputs, client.forward(inputs, "gru").outputs[3])


def test_another_step_of_the_same_number_is_refused(client):
    inputs = row("gru", 4)
    with client.session("gru") as session:
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
