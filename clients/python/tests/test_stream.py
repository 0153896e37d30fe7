"""Streams over a WebSocket: the same bits as the whole sequence, however they are fed and whatever breaks."""

import asyncio

import numpy as np
import pytest
from driving import left_early

from rnn_client import AsyncClient, InvalidRequest, NonFiniteOutput, SessionGone
from tests.e2e.models import SPECS
from tests.e2e.running import start, until

RNG = np.random.default_rng(17)


def row(name, length):
    return RNG.normal(size=(length, SPECS[name].input_size)).astype(np.float32)


def same(actual, wanted):
    np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm-proj"])
@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_a_stream_equals_the_whole_sequence_to_the_bit(client, name, returns, ahead):
    inputs = row(name, 50)
    whole = client.forward(inputs, name)
    with client.session(name) as session:
        results = list(session.stream(inputs[:30], returns=returns, ahead=ahead))
        same([result.outputs for result in results], whole.outputs[:30])
        assert [result.step for result in results] == list(range(1, 31))
        [first, second] = session.stream([inputs[30:49], inputs[49]], returns=returns, ahead=ahead)
        same(first.outputs, whole.outputs[30:49])
        same(second.outputs, whole.outputs[49])
        same(session.snapshot().h.reshape(whole.h_n.shape), whole.h_n)
        assert session.done == 50


def test_predictions_and_states_travel_too(client):
    inputs = row("gru", 12)
    whole = client.forward(inputs, "gru")
    with client.session("gru") as session:
        same(np.array([each.predictions for each in session.stream(inputs, returns="predictions")]), whole.predictions)
    with client.session("gru") as session:
        [result] = session.stream([inputs], returns=["outputs", "h"])
        same(result.h, whole.h_n)
        same(result.outputs, whole.outputs)


def test_inputs_may_depend_on_results(client):
    with client.session("lstm-proj") as session:
        predictions = [np.float32([0.5])]

        def inputs():
            for _ in range(20):
                yield np.repeat(predictions[-1], 4)

        for result in session.stream(inputs(), returns="predictions"):
            predictions.append(result.predictions)  # noqa: PERF401  # the inputs read it meanwhile
    again = np.repeat(np.array(predictions[:-1]), 4, axis=1)
    same(client.forward(again, "lstm-proj").predictions, predictions[1:])


def test_steps_and_streams_take_turns(client):
    inputs = row("gru", 30)
    whole = client.forward(inputs, "gru").outputs
    with client.session("gru") as session:
        same(session.step(inputs[:3]).outputs, whole[:3])
        same([each.outputs for each in session.stream(inputs[3:10], returns="outputs")], whole[3:10])
        same(session.step(inputs[10]).outputs, whole[10])
        same([each.outputs for each in session.stream(inputs[11:], ahead=4)], whole[11:])


def test_more_than_a_frame_holds(client):
    inputs = row("tanh", 5000)
    with client.session("tanh") as session:
        [result] = session.stream([inputs], returns="outputs")
        same(result.outputs, client.forward(inputs, "tanh").outputs)


@pytest.mark.parametrize("ahead", [1, 8])
def test_a_stream_that_is_left_early_leaves_the_session_in_order(client, ahead):
    inputs = row("gru", 30)
    with client.session("gru") as session:
        with left_early(session.stream(inputs, ahead=ahead)) as results:
            for result in results:
                if result.step == 5:
                    break
        assert 5 <= session.done <= 5 + ahead
        outputs = session.step(inputs[session.done :]).outputs
        same(outputs[-1], client.forward(inputs, "gru").outputs[-1])


@pytest.mark.parametrize("ahead", [1, 8])
def test_inputs_that_fail_leave_the_session_in_order(client, ahead):
    inputs = row("gru", 30)

    def broken():
        yield from inputs[:9]
        raise ZeroDivisionError

    with client.session("gru") as session:
        with pytest.raises(ZeroDivisionError):
            list(session.stream(broken(), ahead=ahead))
        assert session.done <= 9
        same(session.step(inputs[session.done :]).outputs[-1], client.forward(inputs, "gru").outputs[-1])


def test_an_input_that_does_not_fit_ends_the_stream_and_not_the_session(client):
    inputs = row("gru", 4)
    with client.session("gru") as session:
        with pytest.raises(InvalidRequest, match="takes input_size 4"):
            list(session.stream([inputs[0], np.zeros(5, np.float32)]))
        assert session.done == 1
        same(session.step(inputs[1]).outputs, client.forward(inputs, "gru").outputs[1])


def test_what_is_not_finite_passes_in_binary_and_is_refused_in_text(client):
    inputs = np.ones((8, 1), np.float32)
    with client.session("explodes") as session:
        results = list(session.stream(inputs, returns="outputs"))
        assert not np.isfinite(results[-1].outputs).any()
    with client.session("explodes") as session:
        with pytest.raises(NonFiniteOutput):
            list(session.stream([inputs]))
        assert session.done > 0
        assert np.isfinite(session.snapshot().h).all()


def test_a_session_that_is_gone(client):
    session = client.session("tanh", keep=True)
    session.close()
    with pytest.raises(SessionGone):
        list(session.stream(row("tanh", 1)))


@pytest.mark.parametrize("returns", ["outputs", None])
@pytest.mark.parametrize("ahead", [1, 16])
def test_a_stream_runs_once_however_often_the_connection_breaks(connect, service, cutter, returns, ahead):
    cutter.most = 4_000 if returns else 16_000  # lines are longer, and what is under way must have a chance to pass
    inputs, direct = row("gru", 400), connect(service.url)
    whole = direct.forward(inputs, "gru")
    pieces = [*inputs[:100], *np.split(inputs[100:], 50)]
    with connect(cutter.url).session("gru") as session:
        results = list(session.stream(pieces, returns=returns, ahead=ahead))
        same(np.concatenate([np.atleast_2d(result.outputs) for result in results]), whole.outputs)
        snapshot = direct.attach(session.id).snapshot()
        same(snapshot.h, whole.h_n)
        assert snapshot.step == session.done == 400
    assert cutter.cuts > 5


def test_a_stream_on_a_connection_that_falls_silent_goes_on(connect, service, cutter):
    cutter.stalling = True
    inputs = row("gru", 60)
    with connect(cutter.url, timeout=0.2).session("gru") as session:
        outputs = [result.outputs for result in session.stream(inputs, returns="outputs")]
        same(outputs, connect(service.url).forward(inputs, "gru").outputs)
        assert session.done == 60
    assert cutter.cuts > 1


def test_inputs_that_come_more_slowly_than_the_service_waits(connect, repository, tmp_path):
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
        same(outputs, client.forward(inputs, "gru").outputs)
    running.stop()


def test_async_inputs(service):
    async def inputs(rows):
        for each in rows:
            await asyncio.sleep(0)
            yield each

    async def main(url):
        async with AsyncClient(url) as client, client.session("tanh") as session:
            rows = row("tanh", 20)
            results = [result.outputs async for result in session.stream(inputs(rows), returns="outputs")]
            same(results, (await client.forward(rows, "tanh")).outputs)

    asyncio.run(main(service.url))
