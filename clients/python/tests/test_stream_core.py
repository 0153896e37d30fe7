"""The stream without a network: whatever is lost and whenever, every step runs once and every result comes, in order.

The other side is a small model of the service: it numbers, answers again what it remembers, and refuses the rest.
"""

import json
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_client import BrokenReply, InvalidRequest, StepConflict, StepOutOfOrder
from rnn_client.progress import Progress
from rnn_client.stream import Stream


class FakeService:
    """One session whose state is x + state / 2. Remembers the last `replay` answers; says so, or not."""

    def __init__(self, replay, width=2):
        self.state = np.zeros(width, np.float32)
        self.done = 0
        self.answers = deque(maxlen=replay)
        self.inputs = deque(maxlen=replay)

    def progress(self, *, says=True):
        return Progress("s", "m", "1", self.done, self.answers.maxlen if says else None)

    def connect(self):
        return FakeConnection(self)

    def step(self, number, x):
        if number == self.done + 1:
            self.state = x + self.state / 2
            self.done = number
            self.answers.append(self.state)
            self.inputs.append(x)
            return self.state
        back = self.done - number
        if not 0 <= back < len(self.answers):
            raise Problem({"type": "/problems/step-out-of-order", "status": 409, "expected": self.done + 1})
        if not np.array_equal(self.inputs[-1 - back], x):
            raise Problem({"type": "/problems/step-conflict", "status": 409})
        return self.answers[-1 - back]


class Problem(Exception):
    pass


class FakeConnection:
    """What one WebSocket says: the messages that were sent and the answers to them."""

    def __init__(self, service):
        self.service = service
        self.next = None

    def answer(self, message):
        """The answer to a message, or None."""
        try:
            return self._answer(message)
        except Problem as problem:
            return json.dumps({"error": problem.args[0]})

    def _answer(self, message):
        if self.next is None:
            first = json.loads(message)
            assert first["session"] == "s"
            self.next = first["step"]
            return None
        if isinstance(message, bytes):
            rows = np.frombuffer(message, "<f4").reshape(-1, self.service.state.size)
            outputs = [self.service.step(self.next + index, x) for index, x in enumerate(rows)]
            self.next += len(rows)
            return np.concatenate(outputs).tobytes()
        answers = []
        for line in map(json.loads, message.splitlines()):
            outputs = self.service.step(line["step"], np.array(line["inputs"], np.float32))
            answers.append(json.dumps({"outputs": outputs.tolist(), "step": line["step"]}) + "\n")
        return "".join(answers)


def run(stream, service, inputs, fate):
    """Stream the inputs. `fate(most)` says how many messages pass in the next exchange, in each direction."""
    results, source, connection = [], iter(inputs), None
    more = True
    while True:
        while more and stream.room:
            if (each := next(source, None)) is None:
                more = False
            else:
                stream.take(each)
        if stream.idle:
            return results
        if connection is None:
            connection, answers = service.connect(), deque()
            stream.connected()
        for message in stream.to_send():
            if fate() == "cut":  # this message and all after it do not arrive
                connection = None
                break
            if (answer := connection.answer(message)) is not None:
                answers.append(answer)
        if connection is None or fate() == "cut":  # whatever was answered does not arrive
            connection = None
            continue
        results += stream.receive(answers.popleft())


def series(counts, width=2):
    """Inputs (k,I), or (I) where k is 0."""
    random = np.random.default_rng(3)
    return [random.normal(size=(width,) if count == 0 else (count, width)).astype(np.float32) for count in counts]


def uninterrupted(inputs):
    service = FakeService(replay=1)
    results = []
    for each in inputs:
        rows = [service.step(service.done + 1, x) for x in each.reshape(-1, each.shape[-1])]
        results.append(np.array(rows) if each.ndim == 2 else rows[0])
    return results, service


@given(
    counts=st.lists(st.integers(0, 5), max_size=12),
    returns=st.sampled_from([None, "outputs"]),
    ahead=st.integers(1, 4),
    replay=st.integers(5, 9),
    says=st.booleans(),
    cuts=st.lists(st.booleans(), max_size=60),
)
def test_nothing_is_lost_and_nothing_runs_twice(counts, returns, ahead, replay, says, cuts):
    inputs, fates = series(counts), iter(cuts)
    wanted, undisturbed = uninterrupted(inputs)
    service = FakeService(replay)
    progress = service.progress(says=says)
    results = run(Stream(progress, returns, ahead), service, inputs, lambda: "cut" if next(fates, False) else "pass")
    assert len(results) == len(wanted)
    for result, outputs in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(result.outputs, outputs)
    assert service.done == undisturbed.done == progress.done
    np.testing.assert_array_equal(service.state, undisturbed.state)
    assert not progress.streaming


def sent(stream):
    return list(stream.to_send())


def started(replay_steps=None, returns="outputs", ahead=8, done=0):
    stream = Stream(Progress("s", "m", "1", done, replay_steps), returns, ahead)
    stream.connected()
    return stream


def test_the_first_message_names_session_step_and_returns():
    stream = started(done=4)
    stream.take([1.0, 2.0])
    first, frame = sent(stream)
    assert json.loads(first) == {"session": "s", "step": 5, "returns": ["outputs"], "non_finite": "null"}
    assert frame == np.array([1, 2], "<f4").tobytes()


def test_several_arrays_travel_as_lines():
    stream = started(8, returns=["outputs", "h"], done=4)
    stream.take([[1.0], [2.0]])
    first, frame = sent(stream)
    assert json.loads(first) == {"session": "s", "step": 5, "returns": ["outputs", "h"]}
    assert [json.loads(line) for line in frame.splitlines()] == [
        {"inputs": [1.0], "step": 5},
        {"inputs": [2.0], "step": 6},
    ]
    [result] = stream.receive('{"outputs": [3], "h": [3], "step": 5}\n{"outputs": [4], "h": [4], "step": 6}\n')
    assert (result.outputs.tolist(), result.h.tolist(), result.step) == ([[3], [4]], [4], 6)


def test_no_more_is_under_way_than_can_be_answered_again():
    stream = started(replay_steps=4, returns=None)
    for _ in range(4):
        stream.take([[1.0], [1.0]])
    assert len(sent(stream)) == 1 + 2  # a third frame would make six steps
    stream.receive('{"outputs": [3], "step": 1}\n{"outputs": [4], "step": 2}\n')
    assert len(sent(stream)) == 1


def test_a_service_that_does_not_say_gets_one_frame_at_a_time():
    stream = started()
    stream.take([1.0])
    stream.take([1.0])
    assert len(sent(stream)) == 1 + 1


def test_a_long_input_is_cut_into_frames_that_the_service_runs_whole():
    stream = started(replay_steps=8)
    inputs = np.arange(2500, dtype=np.float32)[:, None]
    stream.take(inputs)
    frames, sizes, results = sent(stream)[1:], [], []
    while frames:
        sizes.append(len(frames[0]) // 4)
        results += stream.receive(frames.pop(0))
        frames += sent(stream)
    assert sizes == [1, 1024, 1024, 451]
    np.testing.assert_array_equal(results[0].outputs, inputs)


@pytest.mark.parametrize("returns", ["outputs", None])
def test_what_ran_of_a_frame_before_it_failed_counts(returns):
    stream = started(8, returns=returns)
    stream.take([[1.0], [2.0], [3.0]])
    messages = sent(stream)
    if returns:  # one step, then two, of which one is answered
        assert [len(message) for message in messages[1:]] == [4, 8]
        assert stream.receive(bytes(4)) == stream.receive(bytes(4)) == []
    else:
        assert stream.receive('{"outputs": [1], "step": 1}\n{"outputs": [2], "step": 2}\n') == []
    stream.connected()
    first, rest = sent(stream)
    assert json.loads(first)["step"] == 3
    assert rest == np.array([3], "<f4").tobytes() if returns else json.loads(rest)["step"] == 3
    [result] = stream.receive(bytes(4) if returns else '{"outputs": [3], "step": 3}')
    assert (len(result.outputs), result.step) == (3, 3)


def test_an_error_is_raised_as_what_it_is():
    for slug, kind in (("invalid-request", InvalidRequest), ("step-conflict", StepConflict)):
        stream = started()
        stream.take([1.0])
        sent(stream)
        with pytest.raises(kind, match="why"):
            stream.receive(json.dumps({"error": {"type": f"/problems/{slug}", "status": 422, "detail": "why"}}))


def test_a_service_that_lost_steps_is_found_out():
    service = FakeService(replay=4)
    progress = service.progress()
    progress.done = 3
    with pytest.raises(StepOutOfOrder):
        run(Stream(progress, "outputs", 1), service, series([0]), lambda: "pass")


@pytest.mark.parametrize("answer", [b"", b"abc", "[1]", "no", '{"outputs": [1], "step": 2}'])
def test_an_answer_that_is_none_is_refused(answer):
    stream = started(returns="outputs" if isinstance(answer, bytes) else None)
    stream.take([1.0])
    sent(stream)
    with pytest.raises(BrokenReply):
        stream.receive(answer)


@pytest.mark.parametrize("inputs", [1.0, [], [[[1.0]]]])
def test_inputs_of_another_shape_are_refused(inputs):
    with pytest.raises(ValueError, match=r"expected \(I\), or \(k, I\)"):
        started().take(inputs)


def test_what_json_cannot_carry_is_refused_in_lines_only():
    started().take([np.nan])
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        started(returns=None).take([np.nan])
    with pytest.raises(ValueError, match="ahead is 0"):
        started(ahead=0)


def test_steps_beside_a_stream_with_steps_under_way_are_refused():
    progress = Progress("s", "m", "1", 0, 4)
    stream = Stream(progress, "outputs", 1)
    stream.connected()
    stream.take([1.0])
    sent(stream)
    with pytest.raises(RuntimeError, match="close it first"):
        progress.step([1.0], None)
    stream.receive(bytes(4))
    assert progress.step([1.0], None).path == "/cell/step"
