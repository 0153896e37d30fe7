"""What every store does."""

import asyncio

import pytest

from service.errors import StoreUnavailable
from service.stores.interface import ENDED_SECONDS, Ended, Totals, Weights
from tests.loop import in_loop
from tests.stores.conftest import on_each_store, opened
from tests.stores.records import OWNER, T0, WEIGHTS, after, expire, record


@on_each_store()
async def test_load_returns_what_was_created(store):
    kept = record("kept", revision=2**53 - 1, step=2**53 - 1, used_at=T0 + 0.1 + 0.2, ttl_seconds=0.1)
    await store.create(kept)
    assert await store.load("kept") == kept
    assert await store.load("never was") is None
    assert store.totals == Totals(1, kept.nbytes)


@on_each_store()
async def test_one_of_many_equal_commits_is_kept(store):
    others = [record(f"s{i}") for i in range(70)]
    await asyncio.gather(*(store.create(other) for other in [record(), *others]))
    position = after(record().position, T0 + 1)
    kept = await asyncio.gather(
        *(store.commit("one", record().position, position._replace(step=i)) for i in range(20)),
        *(store.commit(other.id, record().position, position) for other in others),
    )
    assert kept[:20].count(True) == 1
    assert all(kept[20:])
    assert (await store.load("one")).position.step == kept.index(True)


@on_each_store(max_ended=4)
async def test_newest_ended_are_remembered_for_a_day(store):
    for i in range(6):
        await store.create(record(str(i)))
        await store.end(str(i), "deleted", T0 + i)
    assert [(await store.load(str(i))) is not None for i in range(6)] == [False, False, True, True, True, True]
    assert await expire(store, T0 + 3 + ENDED_SECONDS) == 0
    assert [(await store.load(str(i))) is not None for i in range(6)] == [False, False, False, False, True, True]


@on_each_store(max_ended=4)
async def test_replaced_session_leaves_nothing(store):
    """Not a place among the ended, nor among those that are due, however often one is replaced."""
    others = [record(str(i)) for i in range(4)]
    for other in others:
        await store.create(other)
        await store.end(other.id, "deleted", T0)
    for round_ in range(1, 100):
        new = record(revision=2**61 + round_, used_at=T0 + round_, created_at=T0 + round_)
        await store.create(new)
        assert await store.load("one") == new
        assert not await store.commit("one", record().position, after(record().position, T0 + round_))
        assert await store.end("one", "deleted", T0 + round_, T0 + round_ - 1) is None
        if round_ % 3 == 0:
            assert await store.end("one", "deleted", T0 + round_, T0 + round_) == new
            assert await store.load("one") == Ended("deleted", 0, OWNER, T0 + round_)
            assert await store.load("1") is not None
            assert await store.load("0") is None
            assert store.totals == Totals(0, 0)
    assert dict(await store.in_use()) == {}
    await store.create(record(revision=1, used_at=T0 + 100))
    assert [await store.load(str(i)) is not None for i in range(4)] == [False, True, True, True]
    assert await expire(store, T0 + 159) == 0
    assert await expire(store, T0 + 160) == 1


@on_each_store()
async def test_racing_replacements_count_one(store):
    lives = [record(revision=2**60 + (i << 9), state=b"x" * i, weights=Weights("m", "1", b"%d" % i)) for i in range(60)]
    await asyncio.gather(
        *(store.create(life) for life in lives),
        *(store.commit("one", life.position, after(life.position, T0, state=b"longer" * 9)) for life in lives),
        *(store.end("one", "deleted", T0) for _ in range(3)),
        *(store.create(life) for life in lives),
        *(store.commit("one", life.position, after(life.position, T0, state=b"longer" * 9)) for life in lives),
    )
    found = await store.load("one")
    assert store.totals == Totals(1, found.nbytes)
    assert dict(await store.in_use()) == {found.weights: 1}
    assert [one.id for one in await store.page("", 9)] == ["one"]
    assert await store.evict(2, T0) == 1


@on_each_store()
async def test_sweep_ends_all_that_are_due(store):
    await asyncio.gather(*(store.create(record(f"{i:05}")) for i in range(2500)))
    for i in range(1500):
        await store.commit(f"{i:05}", record().position, after(record().position, T0 + 60))
    assert await expire(store, T0 + 100) == 1000
    assert await expire(store, T0 + 100) == 0
    assert store.totals.sessions == 1500
    assert await expire(store, T0 + 200) == 1500


@on_each_store()
async def test_sessions_expire_though_clock_jumps(store):
    await store.create(record("before"))
    assert await expire(store, T0 + 1e9) == 1
    assert await expire(store, T0) == 0
    await store.create(record("after"))
    assert await expire(store, T0 - 1e9) == 0
    assert await expire(store, T0 + 60) == 1


@on_each_store()
async def test_eviction_order_follows_late_use(store):
    await asyncio.gather(*(store.create(record(f"{i:04}", used_at=T0 + i)) for i in range(1200)))
    position = record().position
    await asyncio.gather(
        *(store.commit(f"{i:04}", record().position, after(position, T0 + 9000 - i)) for i in range(1199, -1, -1))
    )
    assert await store.evict(1100, T0 + 10_000) == 1100
    assert [found.id for found in await store.page("", 1000)] == [f"{i:04}" for i in range(100)]


@on_each_store()
async def test_pages_are_by_id(store):
    ids = ["-a", "Z", "_", "a", "aa", "b"]
    for session in reversed(ids):
        await store.create(record(session))
    assert [found.id for found in await store.page("", 3)] == ids[:3]
    assert [found.id for found in await store.page("_", 10)] == ids[3:]
    assert await store.page("b", 10) == []


@on_each_store()
async def test_cancelled_caller_harms_no_other(store):
    await asyncio.gather(*(store.create(record(str(i))) for i in range(100)))
    position = after(record().position, T0 + 1)
    tasks = [asyncio.create_task(store.commit(str(i), record().position, position)) for i in range(100)]
    for round_ in range(2):  # before and while the batch is under way
        await asyncio.sleep(0)
        for task in tasks[round_::4]:
            task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for i, kept in enumerate(done):
        if i % 4 > 1:
            assert kept is True
        assert kept is not True or (await store.load(str(i))).position == position


@in_loop
async def test_close_finishes_earlier_calls(durable_kind, url_of):
    url = url_of(durable_kind)
    async with opened(url) as store:
        calls = [asyncio.create_task(store.create(record(str(i)))) for i in range(10)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    with pytest.raises(StoreUnavailable):
        await store.load("1")
    async with opened(url) as again:
        assert again.totals == Totals(10, 10 * record().nbytes)
        assert dict(await again.in_use()) == {WEIGHTS: 10}
        await again.end("0", "deleted", T0)
    async with opened(url) as again:
        assert await again.load("0") == Ended("deleted", 0, OWNER, T0)
        assert await again.load("1") == record("1")
