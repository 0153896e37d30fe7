"""Several processes on one store, and one that is killed."""

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.loop import in_loop
from tests.stores.conftest import opened
from tests.stores.records import record

ROOT = Path(__file__).parents[2]


def start(*arguments):
    command = [sys.executable, "-m", "tests.stores.child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def finish(children):
    assert [child.wait(100) for child in children] == [0] * len(children)
    for child in children:
        child.stdout.close()


@in_loop
async def test_racing_processes_count_exactly(durable_kind, url_of):
    url = url_of(durable_kind)
    async with opened(url) as store:
        await store.create(record("counter"))
    finish([start("count", url, 5000) for _ in range(2)])
    async with opened(url) as store:
        position = (await store.load("counter")).position
    assert (position.revision, position.step) == (10_000, 10_000)


def test_processes_create_one_store(durable_kind, url_of):
    url = url_of(durable_kind)
    finish([start("count", url, 0) for _ in range(4)])


@in_loop
async def test_confirmed_commits_survive_a_kill(durable_kind, url_of):
    url = url_of(durable_kind)
    async with opened(url) as store:
        await asyncio.gather(*(store.create(record(f"s{i}")) for i in range(50)))
    child = start("confirm", url)
    confirmed = {f"s{i}": 0 for i in range(50)}
    for lines, line in enumerate(child.stdout):
        session, step = line.decode().split()
        confirmed[session] = int(step)
        if lines == 5000:
            child.kill()  # and read what it had said by then
    assert child.wait(20) == -9
    child.stdout.close()
    async with opened(url) as store:
        for session, step in confirmed.items():
            position = (await store.load(session)).position
            assert step <= position.step <= step + 1  # the last may have been kept, and not yet confirmed
            assert position.revision == position.step
            assert position.state == b"%d" % position.step or not position.step
        assert store.totals.sessions == 50
        assert store.totals.bytes == sum(found.nbytes for found in await store.page("", 100))
