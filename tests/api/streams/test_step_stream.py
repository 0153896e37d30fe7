"""A block is cut into runs by its numbers, and answered from what its stepper gives; waits for the client end."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.readiness import Draining
from service.api.streams import step_stream
from service.api.streams.step_stream import _runs
from service.errors import BodyTimeout, MalformedBody, ServiceDraining, ServiceError

from .fakes import Sums, idle, stream

numbers = st.lists(st.one_of(st.none(), st.integers(1, 6)), max_size=12)


@given(numbers=numbers, size=st.integers(1, 5))
def test_runs_are_the_longest_possible(numbers, size):
    runs = list(_runs(numbers, size))
    assert [index for begin, end in runs for index in range(begin, end)] == list(range(len(numbers)))
    for begin, end in runs:
        assert 1 <= end - begin <= size
        first = numbers[begin]
        assert numbers[begin:end] == [None if first is None else first + index for index in range(end - begin)]
    for (begin, end), _ in pairwise(runs):
        before = numbers[end - 1]
        follows = numbers[end] is None if before is None else numbers[end] == before + 1
        assert end - begin == size or not follows


def answers(spoken, lines, first=1):
    """All answers, and the error that ended them."""
    found = []

    async def talk():
        try:
            async for ran in spoken.run(await spoken.decode(lines, range(first, first + len(lines)))):
                found.extend(spoken.lines(ran))
        except ServiceError as error:
            return error

    error = asyncio.run(talk())
    return b"".join(found), error


def line(step=None):
    return b'{"inputs":[1,2],"step":%d}' % step if step else b"[1,2]"


def summed(*steps):
    """The answers of steps that each add (1,2), numbered so."""
    texts = [b'{"outputs":[%d.0,%d.0],"step":%d}\n' % (n, 2 * n, step) for n, step in enumerate(steps, 1)]
    return b"".join(texts)


def test_done_steps_are_answered_again():
    stepper = Sums(kept=3)
    assert answers(stream(stepper), [line(step) for step in (2, 3, 4, 5)]) == (summed(2, 3, 4, 5), None)
    assert stepper.asked == [(4, 2)]


def test_jump_in_numbers_names_its_line():
    stepper = Sums()
    text, error = answers(stream(stepper), [line(1), line(2), line(9), line(10)], first=7)
    assert text == summed(1, 2)
    assert stepper.asked == [(2, 1), (2, 9)]
    assert str(error) == "line 9: expects 3"
    assert error.errors[0].loc == ("step",)


def test_opening_numbers_the_lines():
    stepper = Sums(kept=5)
    spoken = stream(stepper, number=4)
    for lines in ([line(), line()], [line(), line(7), line()]):
        answers(spoken, lines)
    assert stepper.asked == [(2, 4), (3, 6)]


@pytest.mark.parametrize(
    "rest", ["", " ", ',"step":5,"x":[2]', ',"step":1', ',"inputs":[1]', '],"a":["b"', "}{", ',"a":{}', ",", "]", "[1]"]
)
def test_long_lines_are_told_apart_as_short_ones(rest):
    (_, short), (_, long) = (answers(stream(), [f"[{'1,' * count}1]{rest}".encode()]) for count in (2, 40_000))
    assert type(long) is type(short)
    assert isinstance(short, MalformedBody) or not rest.strip()


def test_lines_before_a_wrong_one_are_answered():
    text, error = answers(stream(), [line(), b' {"inputs": [1, 2]}', b"[1,2", line()], first=5)
    assert text == summed(1, 2)
    assert str(error).startswith("line 7: ")


def test_steps_before_infinity_are_answered():
    lines = [line(), line(), b"[3e38,0]", b"[3e38,0]"]
    text, error = answers(stream(), lines)
    assert text.splitlines()[:2] == summed(1, 2).splitlines()
    assert text.count(b"\n") == 3
    assert str(error) == "line 4: the result of step 4 is not finite, and JSON has no NaN or infinity"
    text, error = answers(stream(refuse_non_finite=False), lines)
    assert text.splitlines()[3] == b'{"outputs":[null,4.0],"step":4}'
    assert error is None


def test_steps_run_together_and_are_answered_in_parts(monkeypatch):
    monkeypatch.setattr(step_stream, "MANY_VALUES", 10)
    monkeypatch.setattr(step_stream.json, "SLICE_VALUES", 6)
    stepper = Sums()
    spoken = stream(stepper)

    async def counts():
        return [ran.count async for ran in spoken.run(await spoken.decode([line()] * 12, range(12)))]

    assert asyncio.run(counts()) == [3, 2, 3, 2, 2]
    assert stepper.asked == [(5, None), (5, None), (2, None)]


def test_state_is_sent_after_each_step():
    stepper = Sums()
    text, _ = answers(stream(stepper, returns=("h",)), [line(), line()])
    assert text == summed(1, 2).replace(b"outputs", b"h")
    assert stepper.asked == [(1, None), (1, None)]


async def never():
    await asyncio.Event().wait()


def test_silence_names_what_was_awaited():
    with pytest.raises(BodyTimeout, match=r"no complete word came for 0.01 s"):
        asyncio.run(idle(0.01).wait(never, "word"))


def test_cancelled_wait_is_cancelled():
    async def cancelled():
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        await idle().wait(never, "word")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_draining_that_is_announced_twice_starts_once():
    async def starts(draining, started):
        for _ in range(2):
            draining.announce(0.01, lambda: started.append(draining.started))
        await asyncio.sleep(0.1)
        return started

    assert asyncio.run(starts(Draining(), [])) == [True]


def test_draining_ends_waits():
    draining = Draining()

    async def drained():
        asyncio.get_running_loop().call_soon(draining.announce)
        with pytest.raises(ServiceDraining):
            await idle(draining=draining).wait(never, "word")
        await idle(draining=draining).wait(lambda: asyncio.sleep(0), "word")

    with pytest.raises(ServiceDraining):
        asyncio.run(drained())
    assert not draining.waiting
