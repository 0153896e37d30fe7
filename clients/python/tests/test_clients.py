"""Client and AsyncClient, Session and AsyncSession have the same calls."""

import asyncio
import inspect

import numpy as np
import pytest

from rnn_client import AsyncClient, AsyncSession, Client, Session


def calls(kind):
    """The public methods with names, kinds and defaults of their arguments."""
    methods = {name: method for name, method in vars(kind).items() if callable(method) and not name.startswith("_")}
    parameters = {name: inspect.signature(method).parameters.values() for name, method in methods.items()}
    return {name: [(each.name, each.kind, each.default) for each in values] for name, values in parameters.items()}


@pytest.mark.parametrize(("blocking", "waiting"), [(Client, AsyncClient), (Session, AsyncSession)])
def test_same_calls(blocking, waiting):
    assert calls(blocking) == calls(waiting)
    assert all(getattr(blocking, name).__doc__ for name in calls(blocking))


def test_blocking_client_inside_event_loop(service):
    async def main():
        with Client(service.url) as client, client.session("tanh") as session:
            return [result.step for result in session.stream(np.ones((3, 4)))]

    assert asyncio.run(main()) == [1, 2, 3]


def test_blocking_stream_refuses_async_iterable(service):
    async def inputs():
        yield np.ones(4)

    with Client(service.url) as client, client.session("tanh") as session, pytest.raises(TypeError, match="iterable"):
        list(session.stream(inputs()))


def test_async_session_with_and_without_block(service):
    async def inputs(rows):
        for each in rows:
            await asyncio.sleep(0)
            yield each

    async def main():
        async with AsyncClient(service.url) as client, client.session("tanh") as session:
            rows = np.ones((20, 4), np.float32)
            results = [result.outputs async for result in session.stream(inputs(rows), returns="outputs")]
            np.testing.assert_array_equal(results, (await client.forward(rows, "tanh")).outputs)
            fork = await session.fork()
            assert (await fork.step(rows[0])).step == 1
            await fork.close()

    asyncio.run(main())
