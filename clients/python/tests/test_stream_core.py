"""The stream without a network: whatever is lost and whenever, every step runs once and every result comes, in order.

The other side is a small model of the service: it numbers, answers again what it remembers, and refuses the rest.
"""

import json
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_client import BrokenReply
from rnn_client.stream import Progress, Stream


class Problem(Exception):
    pass


class FakeService:
    """One session with the state x + state / 2, and one WebSocket to it. Remembers the last `replay` steps."""

    def __init__(self, replay):
        self.state = np.zeros(2, np.float32)
        self.done = 0
        self.kept = deque(maxlen=replay)
        self.connect()

    def connect(self):
        self.next = None  # number of the next step in binary frames

    def step(self, number, x):
        if number == self.done + 1:
            self.state = x + self.state / 2
            self.done = number
            self.kept.append((x, self.state))
        back = self.done - number
        if not 0 <= back < len(self.kept):
            raise Problem({"type": "/problems/step-out-of-order", "status": 409, "expected": self.done + 1})
        inputs, answer = self.kept[-1 - back]
        if not np.array_equal(inputs, x):
            raise Problem({"type": "/problems/step-conflict", "status": 409})
        return answer

    def answer(self, message):
        """The answer to a message, or None."""
        try:
            if self.next is None:
                self.next = json.loads(message)["step"]
                return None
            return self._binary(message) if isinstance(message, bytes) else self._text(message)
        except Problem as problem:
            return json.dumps({"error": problem.args[0]})

    def _binary(self, message):
        rows = np.frombuffer(message, "<f4").reshape(-1, 2)
        outputs = [self.step(self.next + index, x) for index, x in enumerate(rows)]
        self.next += len(rows)
        return np.concatenate(outputs).tobytes()

    def _text(self, message):
        lines = [json.loads(line) for line in message.splitlines()]
        outputs = [self.step(line["step"], np.array(line["inputs"], np.float32)) for line in lines]
        answers = [{"outputs": each.tolist(), "step": line["step"]} for line, each in zip(lines, outputs, strict=True)]
        return "\n".join(map(json.dumps, answers))


def run(stream, service, inputs, cut):
    """Stream the inputs. `cut` says of each message, and of each answer, whether the connection breaks before it."""
    results, waiting, answers = [], deque(inputs), None
    while True:
        while waiting and stream.room:
            stream.take(waiting.popleft())
        if stream.idle:
            return results
        if answers is None:
            answers = deque()
            service.connect()
            stream.connected()
        for message in stream.to_send():
            if cut():
                answers = None
                break
            answers += filter(None, [service.answer(message)])
        if answers is None or cut():
            answers = None
        else:
            results += stream.receive(answers.popleft())


@given(
    counts=st.lists(st.integers(0, 5), max_size=12),
    returns=st.sampled_from([None, "outputs"]),
    ahead=st.integers(1, 4),
    replay=st.integers(5, 9),
    says=st.booleans(),
    cuts=st.lists(st.booleans(), max_size=60),
)
def test_no_step_is_lost_or_runs_twice(counts, returns, ahead, replay, says, cuts):
    random, fates = np.random.default_rng(3), iter(cuts)
    inputs = [random.normal(size=(count, 2) if count else 2).astype(np.float32) for count in counts]
    undisturbed, service = FakeService(replay=1), FakeService(replay)
    wanted = [np.array([undisturbed.step(undisturbed.done + 1, x) for x in np.atleast_2d(each)]) for each in inputs]
    progress = Progress("s", "m", "1", 0, replay if says else None)
    results = run(Stream(progress, returns, ahead), service, inputs, lambda: next(fates, False))
    assert len(results) == len(wanted)
    for each, result, outputs in zip(inputs, results, wanted, strict=True):
        np.testing.assert_array_equal(result.outputs, outputs if each.ndim == 2 else outputs[0])
    assert service.done == undisturbed.done == progress.done
    np.testing.assert_array_equal(service.state, undisturbed.state)
    assert not progress.streaming


def sent(stream):
    return list(stream.to_send())


def started(*inputs, replay_steps=None, returns="outputs"):
    stream = Stream(Progress("s", "m", "1", 0, replay_steps), returns, ahead=8)
    stream.connected()
    for each in inputs:
        stream.take(each)
    return stream


def test_steps_in_flight_can_be_answered_again():
    stream = started(*[[[1.0], [1.0]]] * 4, replay_steps=4, returns=None)
    assert len(sent(stream)) == 1 + 2  # a third frame would make six steps
    stream.receive('{"outputs": [3], "step": 1}\n{"outputs": [4], "step": 2}\n')
    assert len(sent(stream)) == 1


@pytest.mark.parametrize("returns", ["outputs", None])
def test_steps_before_a_failure_count(returns):
    stream = started([[1.0], [2.0], [3.0]], replay_steps=8, returns=returns)
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


@pytest.mark.parametrize("answer", [b"", b"abc", "[1]", "no", '{"outputs": [1], "step": 2}', '{"error": "no"}'])
@pytest.mark.parametrize("returns", ["outputs", None])
def test_unexpected_answer_is_broken_reply(answer, returns):
    stream = started([1.0], returns=returns)
    sent(stream)
    with pytest.raises(BrokenReply):
        stream.receive(answer)


def test_unusable_inputs_are_refused():
    for inputs in (1.0, [], [[[1.0]]]):
        with pytest.raises(ValueError, match=r"expected \(I\), or \(k, I\)"):
            started(inputs)
    started([np.nan])
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        started([np.nan], returns=None)
    with pytest.raises(ValueError, match="ahead is 0"):
        Stream(Progress("s", "m", "1", 0), None, ahead=0)
