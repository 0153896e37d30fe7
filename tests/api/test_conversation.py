"""A block is cut into runs by what its lines say of their numbers, and answered from what its stepper gives."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.api.conversation import Conversation, _runs
from service.api.exchange import Exchange
from service.api.shapes import Limits, Target
from service.errors import FieldError, InvalidRequest, ServiceError
from service.sessions.stepper import Steps
from service.spec import ModelSpec

SPEC = ModelSpec("rnn", 2, 2)

numbers = st.lists(st.one_of(st.none(), st.integers(1, 6)), max_size=12)


@given(numbers=numbers, size=st.integers(1, 5))
def test_runs_are_the_longest_that_follow_one_another(numbers, size):
    runs = list(_runs(numbers, size))
    assert [index for begin, end in runs for index in range(begin, end)] == list(range(len(numbers)))
    for begin, end in runs:
        assert 1 <= end - begin <= size
        first = numbers[begin]
        alike = [None if first is None else first + index for index in range(end - begin)]
        assert numbers[begin:end] == alike
    for (begin, end), _ in pairwise(runs):
        before = numbers[end - 1]
        follows = numbers[end] is None if before is None else numbers[end] == before + 1
        assert end - begin == size or not follows


def test_a_block_in_order_is_one_run():
    assert list(_runs([None] * 64, 1024)) == [(0, 64)]
    assert list(_runs(list(range(7, 71)), 1024)) == [(0, 64)]
    assert list(_runs([], 1024)) == []


class Remembering:
    """A stepper that has done `kept` steps before and answers those again, apart from the new ones."""

    def __init__(self, kept):
        self.model = SimpleNamespace(spec=SPEC)
        self.done = kept
        self.asked = []

    async def run(self, inputs, step, deadline, *, refuse_non_finite):
        self.asked.append((len(inputs), step))
        first = self.done + 1 if step is None else step
        if first > self.done + 1:
            raise InvalidRequest([FieldError(("step",), f"expects {self.done + 1}")])
        replayed = max(0, min(len(inputs), self.done + 1 - first))
        self.done = max(self.done, first + len(inputs) - 1)
        parts = [(first, inputs[:replayed]), (first + replayed, inputs[replayed:])]
        h = np.zeros((1, 1, 2), np.float32)
        return [Steps(number, part, None, h, None) for number, part in parts if len(part)]


def conversation(stepper, number=None):
    exchange = Exchange({"headers": []}, None, None, "r1")
    target = Target("m", SPEC, Limits(1000, 1000))
    return Conversation(stepper, target, exchange, frozenset({"outputs"}), "outputs", True, None, number)


async def talk(spoken, lines, first=1):
    """All answers, and the error that ended them."""
    answers = []

    async def take(some):
        answers.extend(some)

    try:
        await spoken.answer(lines, range(first, first + len(lines)), take)
    except ServiceError as error:
        return b"".join(answers), error
    return b"".join(answers), None


def line(step=None):
    return b'{"inputs":[1,2],"step":%d}' % step if step else b"[1,2]"


def test_steps_that_were_done_before_are_answered_again_in_order():
    stepper = Remembering(3)
    answers, error = asyncio.run(talk(conversation(stepper), [line(step) for step in (2, 3, 4, 5)]))
    assert error is None
    assert answers == b"".join(b'{"outputs":[1.0,2.0],"step":%d}\n' % step for step in (2, 3, 4, 5))
    assert stepper.asked == [(4, 2)]


def test_a_jump_is_a_run_of_its_own_and_its_error_names_the_line():
    stepper = Remembering(0)
    answers, error = asyncio.run(talk(conversation(stepper), [line(1), line(2), line(9), line(10)], first=7))
    assert answers.count(b"\n") == 2
    assert stepper.asked == [(2, 1), (2, 9)]
    assert str(error) == "line 9: expects 3"
    assert error.errors[0].loc == ("step",)


def test_lines_without_numbers_are_numbered_from_the_opening_s():
    stepper = Remembering(5)
    spoken = conversation(stepper, number=4)
    for lines in ([line(), line()], [line(), line(7), line()]):
        asyncio.run(talk(spoken, lines))
    assert stepper.asked == [(2, 4), (3, 6)]
