"""Sessions in an SQLite file: they outlive the process, and several processes of one host may share them.

The calls of one tick, and all that come while a transaction is under way, are one transaction in a thread of its own.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from service.errors import StoreUnavailable
from service.stores.batches import Batches, unavailable
from service.stores.interface import Ended, Position, Reason, SessionRecord, StoreError, Totals, Weights
from service.stores.sqlite_file import Synchronous, connect
from service.stores.sqlite_tables import Call, Commit, SessionTables

Answer = TypeVar("Answer")

LOOKS = 500  # sessions that a sweep looks at in one transaction, so that commits need not wait long for it


class SqliteStore:
    shared = True
    lost = False
    totals = Totals(0, 0)  # of the last transaction

    def __init__(
        self, path: Path, max_ended: int, synchronous: Synchronous = "normal", busy_seconds: float = 5
    ) -> None:
        self._path = path
        self._max_ended = max_ended
        self._open_file = partial(connect, path, synchronous, busy_seconds)
        self._thread = ThreadPoolExecutor(1, "sqlite")
        self._connection: sqlite3.Connection | None = None
        self._beside = [Path(f"{path.resolve()}-{name}") for name in ("wal", "shm")]  # there while the file is open
        self._file: os.stat_result | None = None  # that was opened
        self._calls: Batches[Call] = Batches(lambda calls: self._in_thread(partial(self._transact, calls)))

    async def open(self) -> None:
        await self._in_thread(self._connect)
        self._file = self._path.stat()
        try:
            await self.in_use()  # and learn the totals
        except StoreUnavailable as error:
            raise StoreError(f"the session store {self._path} cannot be used: {error.__cause__}") from None

    async def close(self) -> None:
        await self._calls.close()
        await self._in_thread(self._disconnect)
        self._thread.shutdown()

    async def create(self, record: SessionRecord) -> SessionRecord | None:
        return await self._call(lambda tables: tables.create(record))

    async def load(self, session: str) -> SessionRecord | Ended | None:
        return await self._call(lambda tables: tables.load(session))

    async def commit(self, session: str, before: Position, position: Position) -> bool:
        return cast("bool", await self._calls.call(Commit(session, before, position)))

    async def end(self, session: str, reason: Reason, at: float, begun: float | None = None) -> SessionRecord | None:
        return await self._call(lambda tables: tables.end(session, reason, at, begun))

    async def expire(self, now: float) -> tuple[int, bool]:
        await self._in_thread(self._look_at_file)  # not at each transaction: every look gives up the interpreter
        return await self._call(lambda tables: tables.expire(now, LOOKS))

    async def evict(self, count: int, now: float) -> int:
        looks = count
        while (evicted := await self._call(partial(SessionTables.evict, count=count, now=now, looks=looks))) is None:
            looks = max(count, min(4 * looks, LOOKS))
        return evicted

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        return await self._call(lambda tables: tables.page(after, limit))

    async def in_use(self) -> Mapping[Weights, int]:
        return await self._call(SessionTables.in_use)

    async def _call(self, call: Callable[[SessionTables], Answer]) -> Answer:
        return cast("Answer", await self._calls.call(call))

    async def _in_thread(self, function: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # What follows runs in the thread.

    def _transact(self, calls: list[Call]) -> list[Any]:
        """Run calls, which are kept together or not at all. Raises StoreUnavailable."""
        if self.lost or self._connection is None:
            self._look_at_file()
        if self.lost:
            raise unavailable(StoreError(f"the session store {self._path} was removed, replaced or emptied"))
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            tables = SessionTables(connection, self._max_ended)
            answers, totals = tables.run(calls), tables.settle()
            connection.execute("COMMIT")
        except BaseException as error:
            self._disconnect()  # which undoes what was begun
            if isinstance(error, sqlite3.Error | StoreError):
                raise unavailable(error) from error
            raise
        self.totals = totals
        return answers

    def _look_at_file(self) -> None:
        """The store is lost if the file that was opened is not at its path any more, or has lost what it held.

        It stays open, and no other is opened in its place: closing one would delete the write-ahead log of the other.
        """
        try:
            now = self._path.stat()
            whole = now.st_size > 0 and (self._connection is None or all(file.exists() for file in self._beside))
            self.lost = not whole or not os.path.samestat(now, self._file or now)
        except OSError:
            self.lost = True

    def _connect(self) -> sqlite3.Connection:
        self._connection = self._open_file()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
