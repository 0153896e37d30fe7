"""What the memory store costs beside its calls."""

import asyncio

from service.stores.memory import LOOKS, MANY_SESSIONS, MemoryStore
from tests.loop import in_loop
from tests.stores.records import T0, after, expire, record


@in_loop
async def test_sweep_lets_others_run():
    store, turns = MemoryStore(10), 0
    for i in range(5 * LOOKS):
        await store.create(record(str(i)))
        await store.commit(str(i), record().position, after(record().position, T0 + 1))

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    assert await expire(store, T0 + 60) == 0  # each is looked at, and due later
    assert turns >= 4
    task.cancel()


@in_loop
async def test_replaced_sessions_leave_nothing():
    store = MemoryStore(10)
    for i in range(4 * MANY_SESSIONS):
        await store.create(record(revision=1 + i, used_at=T0 + i / 100, ttl_seconds=1e6))
        if i % 1000 == 0:
            assert await expire(store, T0) == 0
            assert sum(map(len, store._due.values())) <= MANY_SESSIONS + 1001
    assert await expire(store, T0 + 2e6) == 1


@in_loop
async def test_ended_sessions_leave_nothing():
    store = MemoryStore(10)
    for round_ in range(20):
        for i in range(LOOKS):
            await store.create(record(f"{round_}.{i}", ttl_seconds=1e6))
            await store.end(f"{round_}.{i}", "deleted", T0)
        await store.create(record(f"{round_}.live", ttl_seconds=30 + round_))
        assert await expire(store, T0) == 0
        assert sum(map(len, store._due.values())) <= 2 * store.totals.sessions + MANY_SESSIONS
    assert await expire(store, T0 + 40) == 11
