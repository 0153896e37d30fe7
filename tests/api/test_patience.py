"""The wait for a client's next word ends when it should, and nothing else is ended by it."""

import asyncio

import pytest

from service.api.draining import Draining
from service.api.patience import Patience
from service.errors import BodyTimeout, ServiceDraining

SECONDS = 0.05


def listen(converse, draining=None, seconds=SECONDS):
    async def run():
        with Patience(draining or Draining(), seconds).listening("word") as listening:
            return await converse(listening)

    return asyncio.run(run())


async def never():
    await asyncio.Event().wait()


async def after(seconds):
    await asyncio.sleep(seconds)
    return seconds


def test_each_word_has_all_the_time_from_the_one_before():
    async def converse(listening):
        return [await listening.wait(lambda: after(SECONDS / 2)) for _ in range(6)]

    assert len(listen(converse)) == 6


def test_silence_is_an_error_that_names_the_word():
    async def converse(listening):
        await listening.wait(lambda: after(SECONDS / 2))
        await listening.wait(never)

    with pytest.raises(BodyTimeout, match=r"no complete word came for 0.05 s"):
        listen(converse)


def test_what_the_stream_does_between_words_takes_as_long_as_it_takes():
    async def converse(listening):
        for _ in range(2):
            await listening.wait(lambda: after(0))
            await asyncio.sleep(3 * SECONDS)
        return "done"

    assert listen(converse) == "done"


def test_a_task_that_somebody_else_cancels_is_cancelled():
    async def converse(listening):
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        await listening.wait(never)

    with pytest.raises(asyncio.CancelledError):
        listen(converse)


def test_draining_ends_a_wait_and_refuses_the_next_but_lets_work_be():
    draining = Draining()

    async def converse(listening):
        asyncio.get_running_loop().call_soon(draining.start)
        await asyncio.sleep(SECONDS)  # work is not ended
        with pytest.raises(ServiceDraining):
            await listening.wait(never)
        draining.started = False
        asyncio.get_running_loop().call_soon(draining.start)
        await listening.wait(never)

    with pytest.raises(ServiceDraining):
        listen(converse, draining, seconds=60)
    assert not draining.waiting
