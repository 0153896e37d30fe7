"""Sessions in this process's memory: the quickest store, and gone with the process."""

import asyncio
import ctypes
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from heapq import heappop, heappush, nsmallest
from itertools import islice

from service.stores.interface import ENDED_SECONDS, Ended, Position, Reason, SessionRecord, Totals, Weights

LOOKS = 1000  # sessions that a sweep looks at before it lets others run
MANY_SESSIONS = 10_000  # so many ended sessions leave memory that is worth giving back


class MemoryStore:
    """Dictionaries. No call waits for anything but its turn.

    Ids stand in lists by the second in which their session was last known to end; then a session that was used
    meanwhile is put into another list. A heap of single sessions would be simpler, and take 95 bytes for each.
    """

    shared = False
    lost = False

    def __init__(self, max_ended: int) -> None:
        self._records: OrderedDict[str, SessionRecord] = OrderedDict()  # the least recently used first
        self._ended: OrderedDict[str, Ended] = OrderedDict()  # in order of end
        self._max_ended = max_ended
        self._left_behind = 0  # sessions that ended since memory was last freed
        self._bytes = 0
        self._users: Counter[Weights] = Counter()
        self._due: dict[int, list[str]] = {}
        self._seconds: list[int] = []  # a heap of the keys of `_due`

    @property
    def totals(self) -> Totals:
        return Totals(len(self._records), self._bytes)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def create(self, record: SessionRecord) -> SessionRecord | None:
        self._ended.pop(record.id, None)
        if old := self._records.pop(record.id, None):
            self._forget(old)
        self._records[record.id] = record
        self._bytes += record.nbytes
        self._users[record.weights] += 1
        self._look_at_end(record)
        return old

    async def load(self, session: str) -> SessionRecord | Ended | None:
        return self._records.get(session) or self._ended.get(session)

    async def commit(self, session: str, before: Position, position: Position) -> bool:
        record = self._records.get(session)
        if record is None or record.position.revision != before.revision:
            return False
        self._bytes += position.nbytes - before.nbytes
        record.position = position
        self._records.move_to_end(session)
        return True

    async def end(self, session: str, reason: Reason, at: float, begun: float | None = None) -> SessionRecord | None:
        record = self._records.get(session)
        if record is None or begun not in (None, record.created_at):
            return None
        self._forget(self._records.pop(session))
        self._ended[session] = Ended(reason, record.position.step, record.owner, at)
        if len(self._ended) > self._max_ended:
            self._ended.popitem(last=False)
        return record

    async def expire(self, now: float) -> tuple[int, bool]:
        while self._ended and next(iter(self._ended.values())).at <= now - ENDED_SECONDS:
            self._ended.popitem(last=False)
        if not self._seconds or self._seconds[0] > now:
            await self._free_memory()
            return 0, False
        second, ended = heappop(self._seconds), 0
        for looks, session in enumerate(self._due.pop(second), 1):
            if record := self._records.get(session):
                if record.expires_at > now:
                    self._look_at_end(record)
                else:
                    await self.end(session, "expired", now)
                    ended += 1
            if looks % LOOKS == 0:
                await asyncio.sleep(0)
        return ended, second not in self._due  # else others end within this very second, but not yet

    async def evict(self, count: int, now: float) -> int:
        oldest = list(islice(self._records, count))
        for session in oldest:
            await self.end(session, "evicted", now)
        return len(oldest)

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        # Looks at every id, at every call: for people, who call seldom.
        ids = nsmallest(limit, (session for session in self._records if session > after))
        return [self._records[session] for session in ids]

    async def in_use(self) -> Mapping[Weights, int]:
        self._users = +self._users
        return self._users

    def _forget(self, record: SessionRecord) -> None:
        self._bytes -= record.nbytes
        self._users[record.weights] -= 1
        self._left_behind += 1

    def _look_at_end(self, record: SessionRecord) -> None:
        second = int(record.expires_at)
        if second not in self._due:
            self._due[second] = []
            heappush(self._seconds, second)
        self._due[second].append(record.id)

    async def _free_memory(self) -> None:
        """Drop what ended sessions leave behind, when they are many, and more than live: it costs little for each."""
        if self._left_behind <= len(self._records) + MANY_SESSIONS:
            return
        self._left_behind = 0
        if len(self._records) < MANY_SESSIONS:  # a dictionary that has grown does not shrink by itself
            self._records = OrderedDict(self._records)
        self._due, self._seconds = {}, []
        for looks, session in enumerate(list(self._records)):
            if record := self._records.get(session):
                self._look_at_end(record)
            if looks % LOOKS == 0:
                await asyncio.sleep(0)
        with suppress(OSError, AttributeError):  # malloc_trim(3), which glibc alone has, takes some milliseconds
            ctypes.CDLL(None).malloc_trim(0)
