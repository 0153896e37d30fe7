"""What can happen to a file."""

import asyncio
import resource
import sqlite3
from contextlib import closing, contextmanager, suppress

import pytest

from service.errors import StoreUnavailable
from service.stores.interface import StoreError
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_file import CHECKPOINT_PAGES, VERSION
from tests.loop import in_loop
from tests.stores.records import T0, after, record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


async def opened(path, **options):
    store = SqliteStore(path, 100, **options)
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    return store


@contextmanager
def files_no_larger_than(size):
    """A disk that is full: the kernel refuses to let a file grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_changes_nothing(path):
    async def main():
        store = await opened(path)
        await store.create(record("first"))
        created = ["first"]
        with files_no_larger_than(300_000):
            with suppress(StoreUnavailable):
                for i in range(1000):
                    await store.create(record(f"s{i:03}", state=b"\x01" * 4000))
                    created.append(f"s{i:03}")
            assert len(created) < 1000
            totals = store.totals
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await asyncio.gather(
                        *(
                            store.commit(created[-1], record().position, after(record().position, T0 + i))
                            for i in range(20)
                        ),
                        store.create(record("late", state=b"\x01" * 400_000)),
                    )
            assert await store.load(created[-1]) == record(created[-1], state=b"\x01" * 4000)
        await store.create(record("later", state=b"\x01" * 500_000))
        assert [found.id for found in await store.page("", 1000)] == sorted([*created, "later"])
        assert store.totals.sessions == totals.sessions + 1 == len(created) + 1
        await store.close()

    asyncio.run(main())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@in_loop
async def test_locked_file_is_unavailable(path):
    store = await opened(path, busy_seconds=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable) as raised:
            await store.create(record())
        assert "locked" in str(raised.value.__cause__)
        assert "locked" not in str(raised.value)
        other.execute("ROLLBACK")
    await store.create(record())
    assert await store.load("one") == record()
    await store.close()


def test_foreign_database_is_left_alone(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreError, match="another application"):
        asyncio.run(opened(path))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


@in_loop
async def test_another_version_is_refused(path):
    await (await opened(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(StoreError, match=f"version {VERSION + 1}; this service reads version {VERSION}"):
        await opened(path)


def test_no_database_is_refused(path):
    path.write_bytes(b"not a database at all, " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        asyncio.run(opened(path))


@in_loop
async def test_damaged_file_is_never_read(path):
    store = await opened(path)
    await asyncio.gather(*(store.create(record(f"s{i:03}")) for i in range(500)))
    await store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    try:
        store = await opened(path)
    except StoreError:
        return
    with pytest.raises(StoreUnavailable):
        await store.load("s001")
    await store.close()


@pytest.mark.parametrize("where", ["missing/sessions.db", "."])
def test_impossible_path_is_refused(tmp_path, where):
    with pytest.raises(StoreError, match="cannot be opened"):
        asyncio.run(opened(tmp_path / where))


@in_loop
async def test_write_ahead_log_stays_bounded(path):
    store = await opened(path)
    await asyncio.gather(*(store.create(record(f"s{i:03}", state=b"\x01" * 3000)) for i in range(200)))
    position = record().position
    for i in range(200):
        new = after(position, T0 + i, state=b"\x02" * 3000)
        assert all(await asyncio.gather(*(store.commit(f"s{i:03}", position, new) for i in range(200))))
        position = new
    log = path.with_name(path.name + "-wal").stat().st_size
    assert log < 2 * CHECKPOINT_PAGES * 4096
    await store.close()


def replaced(path):
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").rename(path)


HARM = {
    "moved": lambda path: path.rename(path.with_name("away")),
    "log removed": lambda path: path.with_name(path.name + "-wal").unlink(),
    "index removed": lambda path: path.with_name(path.name + "-shm").unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "replaced": replaced,
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@in_loop
async def test_lost_file_is_not_made_anew(path, harm):
    """Sessions would seem never to have been. Put back, the file is used again."""
    store = await opened(path)
    await store.create(record())
    harm(path)
    for call in (store.expire(T0), store.load("one")):
        with pytest.raises(StoreUnavailable):
            await call
        assert store.lost
    if not path.exists():
        path.with_name("away").rename(path)
        assert await store.load("one") == record()
        store._disconnect()  # as after an error
        path.unlink()
        with pytest.raises(StoreUnavailable):
            await store.load("one")
        assert not path.exists()
    await store.close()


@in_loop
async def test_others_cannot_read_the_file(path):
    store = await opened(path)
    await store.create(record())
    assert [file.stat().st_mode & 0o077 for file in path.parent.iterdir()] == [0, 0, 0]
    await store.close()
