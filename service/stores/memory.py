"""Sessions in this process's memory: the quickest store, and gone with the process."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from heapq import heapify, heappop, heappush, nsmallest

from service.stores.interface import (
    ENDED_SECONDS,
    Ended,
    Position,
    Reason,
    SessionRecord,
    SessionStore,
    Totals,
    Weights,
)

LOOKS = 1000
"""Sessions that a sweep looks at before it lets others run."""


class MemoryStore(SessionStore):
    """Dictionaries. No call waits for anything but its turn.

    Expiry is a wheel of seconds: a session stands under the second in which it was last known to end. When that comes
    it is looked at once, and moved on if it was used meanwhile; using it touches nothing.
    """

    durable = False
    shared = False

    def __init__(self, max_ended: int) -> None:
        # In order of use, the least recent first.
        self._records: OrderedDict[str, SessionRecord] = OrderedDict()
        self._most_records = 0
        self._ended: dict[str, Ended] = {}
        self._order_of_end: deque[str] = deque()
        self._max_ended = max_ended
        self._bytes = 0
        self._users: Counter[Weights] = Counter()
        self._wheel: dict[int, list[str]] = {}
        self._seconds: list[int] = []  # a heap of the wheel's keys
        self._dead = 0  # ids on the wheel whose sessions have ended

    @property
    def totals(self) -> Totals:
        """What is held now."""
        return Totals(len(self._records), self._bytes)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def create(self, record: SessionRecord) -> None:
        """Keep a new session."""
        self._records[record.id] = record
        self._most_records = max(self._most_records, len(self._records))
        self._bytes += record.nbytes
        self._users[record.weights] += 1
        self._await_end(record)

    async def load(self, session: str) -> SessionRecord | Ended | None:
        """The session, or what is remembered of it."""
        return self._records.get(session) or self._ended.get(session)

    async def commit(self, session: str, revision: int, position: Position) -> bool:
        """Replace the position."""
        record = self._records.get(session)
        if record is None or record.position.revision != revision:
            return False
        self.commit_held(record, position)
        return True

    def held(self, session: str) -> SessionRecord | None:
        """Every session is."""
        return self._records.get(session)

    def commit_held(self, record: SessionRecord, position: Position) -> None:
        """Replace the position."""
        old = record.position
        self._bytes += len(position.state) + len(position.replies) - len(old.state) - len(old.replies)
        record.position = position
        self._records.move_to_end(record.id)

    async def end(self, session: str, reason: Reason, at: float) -> SessionRecord | None:
        """End a session."""
        record = self._end(session, reason, at)
        self._dead += record is not None
        return record

    async def expire(self, now: float, limit: int) -> int:
        """End what is due."""
        self._forget(now)
        ended = 0
        while self._seconds and self._seconds[0] <= int(now) and ended < limit:
            second = heappop(self._seconds)
            due = self._wheel.pop(second, [])
            later: list[str] = []  # what ends within this very second, but not yet
            try:
                ended += await self._look_at(due, later, now, limit - ended)
            finally:
                for session in (*due, *later):  # due: what is beyond the limit, or all that is left if cancelled
                    self._put(second, session)
            if later:
                break
        await self._tidy()
        return ended

    async def evict(self, count: int, now: float) -> int:
        """End the least recently used."""
        evicted = 0
        while self._records and evicted < count:
            await self.end(next(iter(self._records)), "evicted", now)
            evicted += 1
            if evicted % LOOKS == 0:
                await asyncio.sleep(0)
        return evicted

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        """Looks at every id, at every call: for people, who call seldom."""
        ids = nsmallest(limit, (session for session in self._records if session > after))
        return [self._records[session] for session in ids]

    async def in_use(self) -> Mapping[Weights, int]:
        """Counted as they come and go."""
        self._users = +self._users
        return self._users

    def _end(self, session: str, reason: Reason, at: float) -> SessionRecord | None:
        record = self._records.pop(session, None)
        if record is not None:
            self._bytes -= record.nbytes
            self._users[record.weights] -= 1
            self._ended[session] = Ended(reason, record.position.step, record.owner, at)
            self._order_of_end.append(session)
            if len(self._ended) > self._max_ended:
                del self._ended[self._order_of_end.popleft()]
        return record

    async def _look_at(self, due: list[str], later: list[str], now: float, limit: int) -> int:
        """Take sessions from `due` until so many have been ended; gives how many were."""
        ended = looked_at = 0
        while due and ended < limit:
            session = due.pop()
            record = self._records.get(session)
            if record is None:
                self._dead -= 1
            elif record.expires_at <= now:
                self._end(session, "expired", now)
                ended += 1
            elif int(record.expires_at) == int(now):
                later.append(session)
            else:
                self._await_end(record)
            looked_at += 1
            if looked_at % LOOKS == 0:
                await asyncio.sleep(0)
        return ended

    def _forget(self, now: float) -> None:
        while self._order_of_end and self._ended[self._order_of_end[0]].at <= now - ENDED_SECONDS:
            del self._ended[self._order_of_end.popleft()]

    def _await_end(self, record: SessionRecord) -> None:
        self._put(int(record.expires_at), record.id)

    def _put(self, second: int, session: str) -> None:
        if second in self._wheel:
            self._wheel[second].append(session)
        else:
            self._wheel[second] = [session]
            heappush(self._seconds, second)

    async def _tidy(self) -> None:
        """Give memory back: what the wheel keeps of sessions that were deleted, and tables that have become too large.

        Only when that is as much as what lives, so that it costs little for each session that has ended.
        """
        if self._dead > len(self._records) + LOOKS:
            for i, second in enumerate(list(self._wheel)):
                ids = self._wheel.get(second, [])
                alive = [session for session in ids if session in self._records]
                self._dead -= len(ids) - len(alive)
                if alive:
                    self._wheel[second] = alive
                else:
                    self._wheel.pop(second, None)
                if i % 100 == 0:
                    await asyncio.sleep(0)
            self._seconds = list(self._wheel)
            heapify(self._seconds)
        if len(self._records) < self._most_records // 8:
            self._records = OrderedDict(self._records)
            self._most_records = len(self._records)
