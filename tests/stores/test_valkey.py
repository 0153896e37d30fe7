"""What can happen to a server."""

import asyncio
import os
import signal
from contextlib import suppress

import pytest
from valkey import Valkey

from service.errors import StoreUnavailable
from service.stores import store_from
from service.stores.interface import StoreError
from service.stores.valkey import ValkeyStore
from tests.loop import in_loop
from tests.stores.conftest import opened
from tests.stores.records import T0, after, expire, record
from tests.stores.servers import PROGRAM, Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(PROGRAM is None, reason="neither valkey-server nor redis-server is on the PATH"),
]


@pytest.fixture
def start(tmp_path):
    """Start a server of the test's own, with options."""
    servers = []

    def start(*options):
        server = Server(tmp_path, options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@in_loop
async def test_calls_work_when_the_server_is_back(start):
    server = start()
    async with opened(server.url) as store:
        await store.create(record())
        server.stop()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.commit("one", record().position, after(record().position, T0 + 1))
        server.start()
        assert await store.load("one") == record()
        assert await store.commit("one", record().position, after(record().position, T0 + 1))


@in_loop
async def test_server_may_start_later(start):
    server = start()
    server.stop()
    async with opened(server.url) as store:
        with pytest.raises(StoreUnavailable):
            await store.load("one")
        server.start()
        await store.create(record())


@in_loop
async def test_lost_answer_is_not_mixed_up(start):
    server = start()
    async with opened(server.url) as store:
        await store.create(record())
        new = after(record().position, T0 + 1)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                await store.commit("one", record().position, new)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert await store.load("never was") is None
        found = await store.load("one")
        assert found.position in (new, record().position)
        assert await store.commit("one", found.position, after(found.position, T0 + 2))
        assert (await store.load("one")).position.step == found.position.step + 1


@in_loop
async def test_scripts_are_sent_again(start):
    server = start()
    async with opened(server.url) as store:
        await asyncio.gather(*(store.create(record(str(i))) for i in range(20)))
        with Valkey.from_url(server.url) as client:
            client.script_flush()
        position = after(record().position, T0 + 1)
        assert all(await asyncio.gather(*(store.commit(str(i), record().position, position) for i in range(20))))
        assert store.totals.sessions == 20


@in_loop
async def test_server_without_memory_loses_nothing(start):
    server = start("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    async with opened(server.url) as store:
        created = 0
        await store.create(record("-used", ttl_seconds=30.0))
        assert await store.commit("-used", record().position, after(record().position, T0 + 1e9))
        with suppress(StoreUnavailable):
            while created < 1000:
                await store.create(record(str(created), state=b"\x01" * 10_000))
                created += 1
        with pytest.raises(StoreUnavailable) as raised:
            await store.commit("0", record().position, after(record().position, T0, state=b"\x01" * 20_000))
        assert "memory" in str(raised.value.__cause__)
        assert (await store.load("0")).position.revision == 0
        assert store.totals.sessions == created + 1 == len(await store.page("", 1000))
        assert await expire(store, T0 + 30) == 0  # "-used" is due later
        assert await store.end("0", "deleted", T0)
        assert await store.evict(1, T0) == 1
        assert await expire(store, T0 + 1e9) == created - 2
        await store.create(record("again"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--cluster-enabled", "yes"), "cluster"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"), "noeviction"),
        (("--requirepass", "geheim"), "refuses"),
        (("--databases", "1"), "refuses"),
    ],
)
@in_loop
async def test_unfit_server_is_refused(start, options, why):
    server = start(*options)
    url = server.url.replace("127", "user:falsch@127" if "geheim" in options else "127").replace(
        "/0", "/1" if "--databases" in options else "/0"
    )
    with pytest.raises(StoreError, match=why) as raised:
        async with opened(url):
            pass
    assert "falsch" not in str(raised.value)


@in_loop
async def test_password_is_never_shown(start):
    server = start("--requirepass", "geheim")
    async with opened(server.url.replace("127", ":geheim@127")) as store:
        await store.create(record())
        server.stop()
        with pytest.raises(StoreUnavailable) as raised:
            await store.load("one")
        assert "127.0.0.1" not in str(raised.value)
        assert "geheim" not in str(raised.value.__cause__)


@pytest.mark.parametrize("url", ["valkey://:gehe/im@host:1/0", "redis://user:geheim@host:port/0", "mongo://geheim"])
def test_wrong_url_is_refused_without_password(url):
    with pytest.raises(StoreError) as raised:
        store_from(url, max_ended=1)
    assert "geh" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["valkey", "valkeys", "redis", "rediss"])
def test_all_schemes_are_known(scheme):
    assert isinstance(store_from(f"{scheme}://user:word@host:1/0", max_ended=1), ValkeyStore)
