"""A coroutine that never waits is done at once, and one that waits goes on in a task as if it had begun there."""

import asyncio

import pytest

from service.server import eager


def ran(body):
    """What `body(trace)` traced at once, and in the end; and the tasks that it took."""

    async def main():
        trace, tasks = [], []
        eager.start(body(trace), lambda rest: tasks.append(asyncio.get_running_loop().create_task(rest)))
        at_once = list(trace)
        await asyncio.gather(*tasks, return_exceptions=True)
        return at_once, trace, tasks

    return asyncio.run(main())


def test_what_never_waits_takes_no_task():
    async def body(trace):
        trace.append("done")

    assert ran(body) == (["done"], ["done"], [])


def test_what_waits_goes_on_in_a_task():
    async def body(trace):
        trace.append("begun")
        await asyncio.sleep(0)
        async with asyncio.timeout(10):  # which asks for a task
            trace.append(await asyncio.to_thread(lambda: "from a thread"))
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, KeyError("x"))
        with pytest.raises(KeyError):
            await future
        trace.append("done")

    at_once, trace, tasks = ran(body)
    assert (at_once, trace) == (["begun"], ["begun", "from a thread", "done"])
    assert len(tasks) == 1


def test_two_wait_for_one_future():
    async def main():
        loop = asyncio.get_running_loop()
        future, results, tasks = loop.create_future(), [], []

        async def body():
            results.append(await future)

        other = loop.create_task(body())
        eager.start(body(), lambda rest: tasks.append(loop.create_task(rest)))
        loop.call_later(0.01, future.set_result, 7)
        await asyncio.gather(other, *tasks)
        return results

    assert asyncio.run(main()) == [7, 7]


def test_cancelling_the_task_cancels_the_coroutine():
    async def main():
        trace, tasks = [], []

        async def body():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                trace.append("cancelled")
                raise

        eager.start(body(), lambda rest: tasks.append(asyncio.get_running_loop().create_task(rest)))
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        return trace

    assert asyncio.run(main()) == ["cancelled"]


def test_what_is_raised_at_once_is_raised_here_and_later_in_the_task():
    async def at_once(trace):
        raise LookupError

    async def later(trace):
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        ran(at_once)
    _, _, (task,) = ran(later)
    assert isinstance(task.exception(), LookupError)
