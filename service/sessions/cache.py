"""The sessions' records as the rest of the service sees them: live, their caller's own, and within the limits."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal, NamedTuple

from service.errors import SessionGone, SessionNotFound, SessionsFull
from service.stores.interface import Ended, Position, Reason, SessionRecord, SessionStore

CACHED_SESSIONS = 10_000  # records of a shared store that are kept in this process
CACHED_BYTES = 64 * 2**20  # of these records


class SessionLimits(NamedTuple):
    sessions: int
    bytes: int  # of all together
    eviction: Literal["refuse", "lru"]


@dataclass(slots=True)
class SessionCounts:
    """What happened since the start, for the metrics."""

    opened: int = 0
    commits: int = 0
    steps: int = 0
    replays: int = 0
    conflicts: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # by reason


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that do not jump while the process lives, whatever is done to the system's clock."""
    begun, zero = time(), monotonic()
    return lambda: begun + monotonic() - zero


class SessionCache:
    """A store of sessions, and the records that this process has loaded from it if it is shared.

    Whether such a record is still right shows at the commit.
    """

    def __init__(self, store: SessionStore, limits: SessionLimits, clock: Callable[[], float]) -> None:
        self.store = store
        self.limits = limits
        self.clock = clock
        self.counts = SessionCounts()
        self._records: OrderedDict[str, SessionRecord] = OrderedDict()  # the least recently used first
        self._bytes = 0  # of these records

    async def find(self, session: str, owner: bytes | None, *, fresh: bool = False) -> SessionRecord:
        """A live session of an owner, None for the admin. Raises SessionNotFound, SessionGone.

        fresh: as it stands in the store; else another process may have advanced it since this one loaded it.
        """
        found = await self._load(session, fresh=fresh)
        if found is None or owner not in (None, found.owner):
            raise SessionNotFound(
                "there is no such session; it may have ended long ago, or belong to another key"
                + ("" if self.store.shared else ", and sessions do not outlive the process (RNN_SESSION_STORE)")
            )
        if isinstance(found, SessionRecord):
            if found.expires_at > self.clock():
                return found
            if self.store.shared and not fresh:  # another process may have used it
                return await self.find(session, owner, fresh=True)
            await self.end(session, "expired", found.created_at)
            found = Ended("expired", found.position.step, found.owner, self.clock())
        raise SessionGone(f"this session has ended ({found.reason}) after step {found.step}", found.reason, found.step)

    async def create(self, record: SessionRecord) -> SessionRecord | None:
        """As `SessionStore.create`. Raises SessionsFull."""
        try:
            await self._make_room(1, record.nbytes)
        except SessionsFull:
            if not isinstance(await self.store.load(record.id), SessionRecord):  # whose place it takes
                raise
        self._forget(record.id)
        replaced = await self.store.create(record)
        self._remember(record)
        self.counts.opened += 1
        self.counts.ended["restarted"] += replaced is not None
        return replaced

    async def commit(self, record: SessionRecord, before: Position, position: Position) -> bool:
        """Advance a session, if it still stands where it was before; says whether it did. Raises SessionsFull."""
        growth = position.nbytes - before.nbytes
        if growth > 0:
            await self._make_room(0, growth)
        kept = False
        try:
            kept = await self.store.commit(record.id, before, position)
        finally:
            self._forget(record.id)  # if it was not kept, or that is not known
            if kept:
                record.position = position
                self._remember(record)
        return kept

    async def end(self, session: str, reason: Reason, begun: float | None = None) -> SessionRecord | None:
        """As `SessionStore.end`."""
        self._forget(session)
        record = await self.store.end(session, reason, self.clock(), begun)
        if record is not None:
            self.counts.ended[reason] += 1
        return record

    async def sweep(self) -> bool:
        """End some sessions whose time is over; says whether there may be more."""
        now = self.clock()
        for record in [record for record in self._records.values() if record.expires_at <= now]:
            self._forget(record.id)
        ended, more = await self.store.expire(now)
        self.counts.ended["expired"] += ended
        return more

    async def _load(self, session: str, *, fresh: bool) -> SessionRecord | Ended | None:
        if not fresh and (record := self._records.get(session)):
            self._records.move_to_end(session)
            return record
        found = await self.store.load(session)
        self._forget(session)
        if isinstance(found, SessionRecord):
            self._remember(found)
        return found

    def _remember(self, record: SessionRecord) -> None:
        """Keep the record of a shared store, and forget the least recently used beyond the bounds."""
        if not self.store.shared:
            return
        self._records[record.id] = record
        self._bytes += record.nbytes
        while len(self._records) > CACHED_SESSIONS or self._bytes > min(CACHED_BYTES, self.limits.bytes):
            self._forget(next(iter(self._records)))

    def _forget(self, session: str) -> None:
        if record := self._records.pop(session, None):
            self._bytes -= record.nbytes

    async def _make_room(self, sessions: int, size: int) -> None:
        """Raise SessionsFull unless so much more fits, by ending others if that is the policy."""
        limits = self.limits
        while True:
            totals, evicted = self.store.totals, 0
            if totals.sessions + sessions <= limits.sessions and totals.bytes + size <= limits.bytes:
                return
            if limits.eviction == "lru" and size <= limits.bytes:  # what can never fit ends nobody
                evicted = await self.store.evict(1 + limits.sessions // 10_000, self.clock())
                self.counts.ended["evicted"] += evicted
            if not evicted:
                raise SessionsFull(
                    f"the service holds {totals.sessions} sessions of {totals.bytes} bytes; its limits are "
                    f"{limits.sessions} and {limits.bytes}"
                )
