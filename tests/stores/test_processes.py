"""Several processes on one store, and one that is killed."""

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.stores.conftest import opened
from tests.stores.records import record

ROOT = Path(__file__).parents[2]


def start(*arguments):
    command = [sys.executable, "-m", "tests.stores.child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def test_racing_processes_count_exactly(durable_kind, url_of):
    url = url_of(durable_kind)

    async def prepare():
        async with opened(url) as store:
            await store.create(record("counter"))

    async def read():
        async with opened(url) as store:
            return (await store.load("counter")).position

    asyncio.run(prepare())
    children = [start("count", url, 5000) for _ in range(2)]
    assert [child.wait(100) for child in children] == [0, 0]
    for child in children:
        child.stdout.close()
    position = asyncio.run(read())
    assert (position.revision, position.step) == (10_000, 10_000)


def test_processes_create_one_store(durable_kind, url_of):
    url = url_of(durable_kind)
    children = [start("count", url, 0) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    for child in children:
        child.stdout.close()


def test_confirmed_commits_survive_a_kill(durable_kind, url_of):
    url = url_of(durable_kind)

    async def prepare():
        async with opened(url) as store:
            await asyncio.gather(*(store.create(record(f"s{i}")) for i in range(50)))

    asyncio.run(prepare())
    child = start("confirm", url)
    confirmed = {f"s{i}": 0 for i in range(50)}
    for lines, line in enumerate(child.stdout):
        session, step = line.decode().split()
        confirmed[session] = int(step)
        if lines == 5000:
            child.kill()  # and read what it had said by then
    assert child.wait(20) == -9
    child.stdout.close()

    async def compare():
        async with opened(url) as store:
            for session, step in confirmed.items():
                position = (await store.load(session)).position
                assert step <= position.step <= step + 1  # the last may have been kept, and not yet confirmed
                assert position.revision == position.step
                assert position.state == b"%d" % position.step or not position.step
            assert store.totals.sessions == 50
            assert store.totals.bytes == sum(found.nbytes for found in await store.page("", 100))

    asyncio.run(compare())
