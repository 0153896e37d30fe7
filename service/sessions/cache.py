"""The sessions' records as the rest of the service sees them: live, its caller's own, and within the limits."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal

from service.errors import SessionGone, SessionNotFound, SessionsFull
from service.stores.interface import Ended, Position, Reason, SessionRecord, SessionStore

NEAR_SESSIONS = 10_000
"""Records of a shared store that are kept at hand: whether one is still right shows at the commit."""

Eviction = Literal["refuse", "lru"]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions, of how many bytes together, and what happens to one too many."""

    sessions: int
    bytes: int
    eviction: Eviction


@dataclass(slots=True)
class SessionCounts:
    """What happened since the start, for the metrics. `ended` is by reason."""

    opened: int = 0
    commits: int = 0
    steps: int = 0
    replays: int = 0
    conflicts: int = 0
    ended: Counter[str] = field(default_factory=Counter)


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that do not jump while the process lives, whatever is done to the system's clock."""
    begun, zero = time(), monotonic()
    return lambda: begun + monotonic() - zero


class Shelf:
    """A store of sessions and what this process knows of it; used from one event loop."""

    def __init__(self, store: SessionStore, limits: SessionLimits, clock: Callable[[], float]) -> None:
        self.store = store
        self.limits = limits
        self.clock = clock
        self.counts = SessionCounts()
        # A store that is this process's own is as near as this.
        self._near: OrderedDict[str, SessionRecord] | None = OrderedDict() if store.shared else None

    @property
    def may_be_stale(self) -> bool:
        """Whether `find` may give a record that another process has moved on since, unless it is asked for afresh."""
        return self._near is not None

    async def find(self, session: str, owner: bytes | None, *, fresh: bool = False) -> SessionRecord:
        """A live session of an owner; None is the admin, whose all are. Raises SessionNotFound, SessionGone."""
        found = await self._load(session, fresh=fresh)
        if found is None or owner not in (None, found.owner):
            raise SessionNotFound(
                "there is no such session; it may have ended long ago, or belong to another key"
                + ("" if self.store.durable else ", and sessions do not outlive the process (RNN_SESSION_STORE)")
            )
        if isinstance(found, SessionRecord):
            if found.expires_at > self.clock():
                return found
            if self.may_be_stale and not fresh:  # another process may have used it
                return await self.find(session, owner, fresh=True)
            await self.end(session, "expired")
            found = Ended("expired", found.position.step, found.owner, self.clock())
        message = f"this session has ended ({found.reason}) after step {found.step}"
        raise SessionGone(message, found.reason, found.step)

    def find_held(self, session: str, owner: bytes | None) -> SessionRecord | None:
        """A live session that needs no waiting for, of a shared store perhaps stale.

        None sends the caller to `find`, which says what there is.
        """
        record = self.store.held(session) if self._near is None else self._nearby(session)
        if record is None or owner not in (None, record.owner) or record.expires_at <= self.clock():
            return None
        return record

    def commit_held(self, record: SessionRecord, position: Position) -> bool:
        """Advance what `find_held` gave just now of a store that is this process's own.

        False if there is no room, which `commit` may make.
        """
        growth = len(position.replies) - len(record.position.replies)
        if growth > 0 and self.store.totals.bytes + growth > self.limits.bytes:
            return False
        self.store.commit_held(record, position)
        return True

    async def create(self, record: SessionRecord) -> None:
        """Keep a new session. Raises SessionsFull."""
        await self._make_room(1, record.nbytes)
        await self.store.create(record)
        self.counts.opened += 1

    async def commit(self, record: SessionRecord, position: Position) -> bool:
        """Advance a session to a position computed from the revision before; says whether that was still right.

        Raises SessionsFull if it would grow beyond the limits.
        """
        growth = len(position.replies) - len(record.position.replies)
        if growth > 0:
            await self._make_room(0, growth)
        try:
            kept = await self.store.commit(record.id, position.revision - 1, position)
        except BaseException:  # whether it was kept is not known
            self._forget(record.id)
            raise
        if not kept:
            self._forget(record.id)
            return False
        if self._near is not None:
            record.position = position
        return True

    async def end(self, session: str, reason: Reason) -> SessionRecord | None:
        """End a session; gives its last record, or None if it was not live any more."""
        self._forget(session)
        record = await self.store.end(session, reason, self.clock())
        if record is not None:
            self.counts.ended[reason] += 1
        return record

    async def sweep(self, limit: int) -> bool:
        """End sessions whose time is over, at most so many; says whether there may be more."""
        ended = await self.store.expire(self.clock(), limit)
        self.counts.ended["expired"] += ended
        return ended == limit

    async def _load(self, session: str, *, fresh: bool) -> SessionRecord | Ended | None:
        near = self._near
        if near is None:
            return await self.store.load(session)
        if not fresh and (record := self._nearby(session)):
            return record
        found = await self.store.load(session)
        if isinstance(found, SessionRecord):
            near[session] = found
            if len(near) > NEAR_SESSIONS:
                near.popitem(last=False)
        else:
            self._forget(session)
        return found

    def _nearby(self, session: str) -> SessionRecord | None:
        """What is at hand of a shared store; it may be stale."""
        if self._near is None or session not in self._near:
            return None
        self._near.move_to_end(session)
        return self._near[session]

    def _forget(self, session: str) -> None:
        if self._near is not None:
            self._near.pop(session, None)

    async def _make_room(self, sessions: int, size: int) -> None:
        """Raise SessionsFull unless so much more fits, by ending others if that is the policy."""
        limits = self.limits
        totals = self.store.totals
        while totals.sessions + sessions > limits.sessions or totals.bytes + size > limits.bytes:
            evicted = 0
            if limits.eviction == "lru" and size <= limits.bytes:  # no room that could be made would do else
                evicted = await self.store.evict(1 + limits.sessions // 10_000, self.clock())
                self.counts.ended["evicted"] += evicted
            if not evicted:
                raise SessionsFull(
                    f"the service holds {totals.sessions} sessions of {totals.bytes} bytes; its limits are "
                    f"{limits.sessions} and {limits.bytes}"
                )
            totals = self.store.totals
