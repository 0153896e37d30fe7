"""What processes beside the tests do to a store: `python -m tests.stores.child <what> <url> …`."""

import asyncio
import os
import sys
import time

from service.stores import store_from
from tests.stores.records import after, record


async def count(store, times):
    """Add one to a session so many times, against whoever else does."""
    for _ in range(times):
        while True:
            found = await store.load("counter")
            if await store.commit("counter", found.position, after(found.position, time.time())):
                break


async def confirm(store, _):
    """Commit for ever to 50 sessions; print every commit once it is confirmed."""

    async def run(session):
        position = record().position
        while True:
            new = after(position, time.time(), state=b"%d" % (position.step + 1))
            assert await store.commit(session, position, new)
            position = new
            os.write(1, f"{session} {position.step}\n".encode())

    await asyncio.gather(*(run(f"s{i}") for i in range(50)))


async def main(what, url, times="0"):
    store = store_from(url, max_ended=100)
    await store.open()
    await {"count": count, "confirm": confirm}[what](store, int(times))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
