"""Calls of one session run one at a time, in order of arrival, whichever of them are cancelled."""

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.sessions.queue import SessionQueue
from tests.loop import in_loop


@given(cancelled=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 12)), max_size=8))
@in_loop
async def test_calls_run_in_order(cancelled):
    queue, began, running = SessionQueue(max_waiting=8), [], []

    async def call(number):
        async with queue.turn("s") as mine:
            assert not running
            running.append(number)
            began.append(number)
            assert mine.waited == (number > 0)
            try:
                await asyncio.sleep(0)
            finally:
                running.remove(number)

    tasks = [asyncio.create_task(call(number)) for number in range(8)]
    for tick in range(13):
        await asyncio.sleep(0)
        for number, when in cancelled:
            if when == tick:
                tasks[number].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in done)
    assert all(first < second for first, second in pairwise(began))
    assert {number for number, result in enumerate(done) if result is None} <= set(began)
    assert queue.waiting == 0
