"""Sessions in this process's memory: the quickest store, and gone with the process."""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping

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


class MemoryStore(SessionStore):
    """Dictionaries. No call ever waits.

    Expiry is a wheel of seconds: a session stands under the second in which it was last known to end. When that comes
    it is looked at once, and moved on if it was used meanwhile; using it touches nothing.
    """

    durable = False
    shared = False

    def __init__(self, max_ended: int) -> None:
        # In order of use, the least recent first.
        self._records: OrderedDict[str, SessionRecord] = OrderedDict()
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._max_ended = max_ended
        self._bytes = 0
        self._users: Counter[Weights] = Counter()
        self._wheel: dict[int, list[str]] = {}
        self._swept: int | None = None

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
        record = self._records.pop(session, None)
        if record is not None:
            self._bytes -= record.nbytes
            self._users[record.weights] -= 1
            self._ended[session] = Ended(reason, record.position.step, record.owner, at)
            if len(self._ended) > self._max_ended:
                self._ended.popitem(last=False)
        return record

    async def expire(self, now: float, limit: int) -> int:
        """End what is due."""
        while self._ended and next(iter(self._ended.values())).at <= now - ENDED_SECONDS:
            self._ended.popitem(last=False)
        second, ended, looked_at = int(now), 0, 0
        if self._swept is None:
            self._swept = min(self._wheel, default=second)
        while self._swept <= second and looked_at < limit:
            due = self._wheel.get(self._swept, [])
            later: list[str] = []
            while due and looked_at < limit:
                looked_at += 1
                session = due.pop()
                record = self._records.get(session)
                if record is None:
                    continue
                if record.expires_at <= now:
                    await self.end(session, "expired", now)
                    ended += 1
                elif int(record.expires_at) <= self._swept:
                    later.append(session)  # within this very second
                else:
                    self._await_end(record)
            due.extend(later)
            if due:
                break
            self._wheel.pop(self._swept, None)
            self._swept += 1
        return ended

    async def evict(self, count: int, now: float) -> int:
        """End the least recently used."""
        evicted = 0
        while self._records and evicted < count:
            await self.end(next(iter(self._records)), "evicted", now)
            evicted += 1
        return evicted

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        """Sorted at every call: for people, who call seldom."""
        ids = sorted(self._records)
        first = bisect_right(ids, after)
        return [self._records[session] for session in ids[first : first + limit]]

    async def in_use(self) -> Mapping[Weights, int]:
        """Counted as they come and go."""
        self._users = +self._users
        return self._users

    def _await_end(self, record: SessionRecord) -> None:
        second = int(record.expires_at)
        if self._swept is not None:
            second = max(second, self._swept)
        self._wheel.setdefault(second, []).append(record.id)
