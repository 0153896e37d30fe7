"""A coroutine that never waits is done at once, and one that waits goes on in a task as if it had begun there."""

import asyncio

import pytest

from service.server.eager import start
from tests.loop import in_loop


def test_coroutine_that_never_waits_is_done():
    async def body():
        return 7

    assert start(body()) == (7, None)


@in_loop
async def test_waiting_coroutine_continues_in_a_task():
    trace = []

    async def body():
        trace.append("begun")
        await asyncio.sleep(0)
        async with asyncio.timeout(10):  # which asks for a task
            trace.append(await asyncio.to_thread(lambda: "from a thread"))
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, KeyError("x"))
        with pytest.raises(KeyError):
            await future
        return "done"

    result, rest = start(body())
    assert (result, trace) == (None, ["begun"])
    assert await asyncio.create_task(rest) == "done"
    assert trace == ["begun", "from a thread"]


@in_loop
async def test_two_wait_for_one_future():
    future = asyncio.get_running_loop().create_future()

    async def body():
        return await future

    other = asyncio.create_task(body())
    _, rest = start(body())
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await asyncio.gather(other, rest) == [7, 7]


@in_loop
async def test_cancelled_task_cancels_the_coroutine():
    trace = []

    async def body():
        try:
            await asyncio.Event().wait()
        finally:
            trace.append("ended")

    task = asyncio.create_task(start(body())[1])
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    start(body())[1].close()  # one that no task ever goes on with
    assert trace == ["ended", "ended"]


@in_loop
async def test_errors_are_raised_to_the_caller():
    async def body(waits):
        if waits:
            await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        start(body(waits=False))
    _, rest = start(body(waits=True))
    with pytest.raises(LookupError):
        await asyncio.create_task(rest)
