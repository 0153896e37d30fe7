"""Streams over a WebSocket: the same bits as the whole sequence, however they are fed and whatever breaks."""

from contextlib import closing

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnn_client import NonFiniteOutput, SessionGone
from tests.e2e.running import start, until


def outputs(results):
    return [result.outputs for result in results]


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm-proj"])
@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_stream_equals_whole_sequence(begin, name, returns, ahead):
    session, inputs, whole = begin(name, 50)
    results = list(session.stream(inputs[:30], returns=returns, ahead=ahead))
    assert_array_equal(outputs(results), whole.outputs[:30])
    assert [result.step for result in results] == list(range(1, 31))
    [first, second] = session.stream([inputs[30:49], inputs[49]], returns=returns, ahead=ahead)
    assert_array_equal(first.outputs, whole.outputs[30:49])
    assert_array_equal(second.outputs, whole.outputs[49])
    assert_array_equal(session.snapshot().h.reshape(whole.h_n.shape), whole.h_n)
    assert session.done == 50


def test_predictions_and_states(begin):
    session, inputs, whole = begin("gru", 12)
    results = session.stream(inputs[:6], returns="predictions")
    assert_array_equal([result.predictions for result in results], whole.predictions[:6])
    [result] = session.stream([inputs[6:]], returns=["outputs", "h"])
    assert_array_equal(result.h, whole.h_n)
    assert_array_equal(result.outputs, whole.outputs[6:])


def test_inputs_may_depend_on_results(client):
    predictions = [np.float32([0.5])]

    def inputs():
        for _ in range(20):
            yield np.repeat(predictions[-1], 4)

    with client.session("lstm-proj") as session:
        for result in session.stream(inputs(), returns="predictions"):
            predictions.append(result.predictions)  # noqa: PERF401  # the inputs read it meanwhile
    again = np.repeat(np.array(predictions[:-1]), 4, axis=1)
    assert_array_equal(client.forward(again, "lstm-proj").predictions, predictions[1:])


def test_steps_and_streams_take_turns(begin):
    session, inputs, whole = begin("gru", 30)
    assert_array_equal(session.step(inputs[:3]).outputs, whole.outputs[:3])
    assert_array_equal(outputs(session.stream(inputs[3:10], returns="outputs")), whole.outputs[3:10])
    assert_array_equal(session.step(inputs[10]).outputs, whole.outputs[10])
    assert_array_equal(outputs(session.stream(inputs[11:], ahead=4)), whole.outputs[11:])


def test_input_longer_than_frame(begin):
    session, inputs, whole = begin("tanh", 5000)
    [result] = session.stream([inputs], returns="outputs")
    assert_array_equal(result.outputs, whole.outputs)


@pytest.mark.parametrize("ahead", [1, 8])
def test_stream_left_early_keeps_its_session(begin, ahead):
    session, inputs, whole = begin("gru", 30)
    with closing(session.stream(inputs, ahead=ahead)) as results:
        for result in results:
            if result.step == 5:
                break
    assert 5 <= session.done <= 5 + ahead
    assert_array_equal(session.step(inputs[session.done :]).outputs[-1], whole.outputs[-1])


def test_step_during_a_stream_is_refused(begin):
    session, inputs, _ = begin("gru", 9)
    with closing(session.stream(inputs[:8], ahead=8)) as results:
        next(results)
        with pytest.raises(RuntimeError, match="close it first"):
            session.step(inputs[0])
    assert session.step(inputs[8]).step == 9


@pytest.mark.parametrize("ahead", [1, 8])
def test_failing_inputs_keep_session_usable(begin, ahead):
    session, inputs, whole = begin("gru", 30)

    def broken():
        yield from inputs[:9]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(session.stream(broken(), ahead=ahead))
    assert session.done <= 9
    assert_array_equal(session.step(inputs[session.done :]).outputs[-1], whole.outputs[-1])


@pytest.mark.parametrize("returns", ["outputs", None])
def test_unfit_input_ends_stream_not_session(begin, returns):
    session, inputs, whole = begin("gru", 4)
    with pytest.raises(ValueError, match=r"shape \(8,\); expected \(4\)"):
        list(session.stream([inputs[0], np.zeros(8, np.float32)], returns=returns))
    assert session.done == 1
    assert_array_equal(session.step(inputs[1]).outputs, whole.outputs[1])


def test_non_finite_passes_in_binary_only(client):
    inputs = np.ones((8, 1), np.float32)
    with client.session("explodes") as session:
        assert not np.isfinite(outputs(session.stream(inputs, returns="outputs"))[-1]).any()
    with client.session("explodes") as session:
        with pytest.raises(NonFiniteOutput):
            list(session.stream([inputs]))
        assert session.done > 0
        assert np.isfinite(session.snapshot().h).all()


def test_stream_of_ended_session(begin):
    session, inputs, _ = begin("tanh", 1)
    session.close()
    with pytest.raises(SessionGone):
        list(session.stream(inputs))


@pytest.mark.integration
@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_stream_runs_once_despite_cuts(connect, service, cutter, returns, ahead, row):
    cutter.most = 4_000 if returns else 16_000  # lines are longer, and what is in flight must have a chance to pass
    inputs, direct = row("gru", 400), connect(service.url)
    whole = direct.forward(inputs, "gru")
    pieces = [*inputs[:100], *np.split(inputs[100:], 50)]
    with connect(cutter.url).session("gru") as session:
        results = outputs(session.stream(pieces, returns=returns, ahead=ahead))
        assert_array_equal(np.concatenate([np.atleast_2d(each) for each in results]), whole.outputs)
        snapshot = direct.attach(session.id).snapshot()
        assert_array_equal(snapshot.h, whole.h_n)
        assert snapshot.step == session.done == 400
    assert cutter.cuts > 5


@pytest.mark.integration
def test_stream_leaves_silent_connection(connect, cutter, begin):
    cutter.stalling = True
    session, inputs, whole = begin("gru", 60)
    streamed = connect(cutter.url, timeout=0.5).attach(session.id).stream(inputs, returns="outputs")
    assert_array_equal(outputs(streamed), whole.outputs)
    assert cutter.cuts > 1


@pytest.mark.integration
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
        streamed = outputs(session.stream(slow(), returns="outputs"))
        assert_array_equal(streamed, client.forward(inputs, "gru").outputs)
    running.stop()
