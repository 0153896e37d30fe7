"""Streams over a WebSocket: the same bits as the whole sequence, however they are fed and whatever breaks."""

from contextlib import closing

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnn_client import InvalidRequest, NonFiniteOutput, SessionGone
from tests.e2e.running import start, until


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm-proj"])
@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_stream_equals_whole_sequence(client, name, returns, ahead, row):
    inputs = row(name, 50)
    whole = client.forward(inputs, name)
    with client.session(name) as session:
        results = list(session.stream(inputs[:30], returns=returns, ahead=ahead))
        assert_array_equal([result.outputs for result in results], whole.outputs[:30])
        assert [result.step for result in results] == list(range(1, 31))
        [first, second] = session.stream([inputs[30:49], inputs[49]], returns=returns, ahead=ahead)
        assert_array_equal(first.outputs, whole.outputs[30:49])
        assert_array_equal(second.outputs, whole.outputs[49])
        assert_array_equal(session.snapshot().h.reshape(whole.h_n.shape), whole.h_n)
        assert session.done == 50


def test_predictions_and_states(client, row):
    inputs = row("gru", 12)
    whole = client.forward(inputs, "gru")
    with client.session("gru") as session:
        results = list(session.stream(inputs, returns="predictions"))
        assert_array_equal([result.predictions for result in results], whole.predictions)
    with client.session("gru") as session:
        [result] = session.stream([inputs], returns=["outputs", "h"])
        assert_array_equal(result.h, whole.h_n)
        assert_array_equal(result.outputs, whole.outputs)


def test_inputs_may_depend_on_results(client):
    with client.session("lstm-proj") as session:
        predictions = [np.float32([0.5])]

        def inputs():
            for _ in range(20):
                yield np.repeat(predictions[-1], 4)

        for result in session.stream(inputs(), returns="predictions"):
            predictions.append(result.predictions)  # noqa: PERF401  # the inputs read it meanwhile
    again = np.repeat(np.array(predictions[:-1]), 4, axis=1)
    assert_array_equal(client.forward(again, "lstm-proj").predictions, predictions[1:])


def test_steps_and_streams_take_turns(client, row):
    inputs = row("gru", 30)
    whole = client.forward(inputs, "gru").outputs
    with client.session("gru") as session:
        assert_array_equal(session.step(inputs[:3]).outputs, whole[:3])
        assert_array_equal([each.outputs for each in session.stream(inputs[3:10], returns="outputs")], whole[3:10])
        assert_array_equal(session.step(inputs[10]).outputs, whole[10])
        assert_array_equal([each.outputs for each in session.stream(inputs[11:], ahead=4)], whole[11:])


def test_input_longer_than_frame(client, row):
    inputs = row("tanh", 5000)
    with client.session("tanh") as session:
        [result] = session.stream([inputs], returns="outputs")
        assert_array_equal(result.outputs, client.forward(inputs, "tanh").outputs)


@pytest.mark.parametrize("ahead", [1, 8])
def test_stream_left_early_keeps_session_usable(client, ahead, row):
    inputs = row("gru", 30)
    with client.session("gru") as session:
        with closing(session.stream(inputs, ahead=ahead)) as results:
            for result in results:
                if result.step == 5:
                    break
        assert 5 <= session.done <= 5 + ahead
        outputs = session.step(inputs[session.done :]).outputs
        assert_array_equal(outputs[-1], client.forward(inputs, "gru").outputs[-1])


def test_step_is_refused_while_steps_are_in_flight(client, row):
    inputs = row("gru", 9)
    with client.session("gru") as session:
        with closing(session.stream(inputs[:8], ahead=8)) as results:
            next(results)
            with pytest.raises(RuntimeError, match="close it first"):
                session.step(inputs[0])
        assert session.step(inputs[8]).step == 9


@pytest.mark.parametrize("ahead", [1, 8])
def test_failing_inputs_keep_session_usable(client, ahead, row):
    inputs = row("gru", 30)

    def broken():
        yield from inputs[:9]
        raise ZeroDivisionError

    with client.session("gru") as session:
        with pytest.raises(ZeroDivisionError):
            list(session.stream(broken(), ahead=ahead))
        assert session.done <= 9
        assert_array_equal(session.step(inputs[session.done :]).outputs[-1], client.forward(inputs, "gru").outputs[-1])


def test_unfit_input_ends_stream_not_session(client, row):
    inputs = row("gru", 4)
    with client.session("gru") as session:
        with pytest.raises(InvalidRequest, match="takes input_size 4"):
            list(session.stream([inputs[0], np.zeros(5, np.float32)]))
        assert session.done == 1
        assert_array_equal(session.step(inputs[1]).outputs, client.forward(inputs, "gru").outputs[1])


def test_non_finite_passes_in_binary_only(client):
    inputs = np.ones((8, 1), np.float32)
    with client.session("explodes") as session:
        results = list(session.stream(inputs, returns="outputs"))
        assert not np.isfinite(results[-1].outputs).any()
    with client.session("explodes") as session:
        with pytest.raises(NonFiniteOutput):
            list(session.stream([inputs]))
        assert session.done > 0
        assert np.isfinite(session.snapshot().h).all()


def test_stream_of_ended_session(client, row):
    session = client.session("tanh", keep=True)
    session.close()
    with pytest.raises(SessionGone):
        list(session.stream(row("tanh", 1)))


@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_stream_runs_once_despite_cuts(connect, service, cutter, returns, ahead, row):
    cutter.most = 4_000 if returns else 16_000  # lines are longer, and what is in flight must have a chance to pass
    inputs, direct = row("gru", 400), connect(service.url)
    whole = direct.forward(inputs, "gru")
    pieces = [*inputs[:100], *np.split(inputs[100:], 50)]
    with connect(cutter.url).session("gru") as session:
        results = list(session.stream(pieces, returns=returns, ahead=ahead))
        assert_array_equal(np.concatenate([np.atleast_2d(result.outputs) for result in results]), whole.outputs)
        snapshot = direct.attach(session.id).snapshot()
        assert_array_equal(snapshot.h, whole.h_n)
        assert snapshot.step == session.done == 400
    assert cutter.cuts > 5


def test_stream_leaves_silent_connection(connect, service, cutter, row):
    cutter.stalling = True
    inputs = row("gru", 60)
    with connect(cutter.url, timeout=0.5).session("gru") as session:
        outputs = [result.outputs for result in session.stream(inputs, returns="outputs")]
        assert_array_equal(outputs, connect(service.url).forward(inputs, "gru").outputs)
        assert session.done == 60
    assert cutter.cuts > 1


def test_inputs_slower_than_idle_timeout(connect, repository, tmp_path, row):
    running = start(repository, tmp_path, stream_idle_seconds=1)
    inputs = row("gru", 2)

    def slow():
        yield inputs[0]
        held = running.connections
        until(lambda: running.connections < held, "the service closes the silent stream")
        yield inputs[1]

    client = connect(running.url)
    with client.session("gru") as session:
        outputs = [result.outputs for result in session.stream(slow(), returns="outputs")]
        assert_array_equal(outputs, client.forward(inputs, "gru").outputs)
    running.stop()
