"""The life of sessions: opened, forked, reset, ended, and swept away when their time is over.

A session runs on the weights that it was opened with, until it ends: the registry keeps them loaded as long as a
session uses them, and a session whose weights are not there any more, after a restart, ends.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import Any

import structlog

from service.engine.interface import Floats
from service.errors import ModelFailed, ModelInUse, SessionGone, StoreUnavailable
from service.serving.registry import ModelVersion, Registry
from service.sessions.cache import Shelf
from service.sessions.queue import Lanes
from service.sessions.state import decoded, encoded, zeros
from service.stores.interface import Position, SessionRecord, Weights

SWEEP_SECONDS = 1.0
SWEEP_SESSIONS = 1_000
"""Sessions that one call of the sweeper ends."""

MANY_SESSIONS = 50_000
"""So many ended sessions leave memory that is worth giving back."""

USERS_SECONDS = 5.0
"""How old the count of sessions by weights may be."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds that a session lives since its last step, and the most that a client may ask for."""

    default_seconds: float
    longest_seconds: float


@dataclass(frozen=True, slots=True)
class Session:
    """A live session: its record, and the version that it runs on."""

    record: SessionRecord
    model: ModelVersion


class Sessions:
    """What clients do with sessions beside stepping them; give_memory_back is called after many have ended."""

    def __init__(
        self,
        shelf: Shelf,
        lanes: Lanes,
        registry: Registry,
        lifetimes: Lifetimes,
        give_memory_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.shelf = shelf
        self.lanes = lanes
        self.lifetimes = lifetimes
        self._registry = registry
        self._give_memory_back = give_memory_back
        self._users: Counter[Weights] = Counter()
        self._known: set[Weights] = set()
        # What many sessions have alike, held once.
        self._alike: dict[Any, Any] = {}
        self._log = structlog.get_logger()
        registry.sessions_on = self.on
        registry.sessions_elsewhere = shelf.may_be_stale

    def on(self, version: ModelVersion) -> int:
        """How many live sessions run on a version, as far as this process knows."""
        return self._users[weights_of(version)]

    async def use(self, session: str, owner: bytes | None, *, fresh: bool = False) -> Session:
        """A live session of an owner, None for the admin. Raises SessionNotFound, SessionGone.

        fresh: as it stands in the store; else it may be as this process saw it last, which a commit will tell.
        """
        record = await self.shelf.find(session, owner, fresh=fresh)
        model = await self._registry.pinned(*record.weights)
        if model is None:
            await self.shelf.end(session, "model-replaced")
            message = f"version {record.weights.version} of model {record.weights.model!r} has other weights now"
            raise SessionGone(f"this session has ended: {message}", "model-replaced", record.position.step)
        return Session(record, model)

    async def open(
        self, model: ModelVersion, owner: bytes, ttl_seconds: float | None, h: Floats | None, c: Floats | None
    ) -> SessionRecord:
        """A new session at step 0, from h (L,1,P) and c (L,1,H), zeros if None. Raises ModelInUse, SessionsFull."""
        _refuse_if_draining(model)
        await self._registry.engine(model)
        initial = b""
        if h is not None or c is not None:
            start_h, start_c = decoded(model.spec, zeros(model.spec))
            initial = encoded(start_h if h is None else h, start_c if c is None else c)
        ttl_seconds = ttl_seconds or self.lifetimes.default_seconds
        return await self._create(weights_of(model), owner, ttl_seconds, initial, initial or zeros(model.spec))

    async def fork(self, session: str, owner: bytes | None) -> SessionRecord:
        """A new session at step 0, from this one's state; it belongs to the same owner. Raises as `open` does."""
        found = await self.use(session, owner)
        _refuse_if_draining(found.model)
        async with self.lanes.turn(session):
            record = await self.shelf.find(session, owner, fresh=self.shelf.may_be_stale)
        state = record.position.state
        return await self._create(weights_of(found.model), record.owner, record.ttl_seconds, state, state)

    async def reset(self, session: str, owner: bytes | None) -> SessionRecord:
        """Back to the initial state; the count of steps goes on."""
        found = await self.use(session, owner)
        async with self.lanes.turn(session):
            while True:
                record = await self.shelf.find(session, owner, fresh=self.shelf.may_be_stale)
                before, state = record.position, record.initial or zeros(found.model.spec)
                position = Position(before.revision + 1, before.step, state, b"", self.shelf.clock())
                if await self.shelf.commit(record, position):
                    return await self.shelf.find(session, owner)

    async def delete(self, session: str, owner: bytes | None) -> SessionRecord:
        """End a session; gives its last record. Steps that wait find it gone."""
        while True:
            await self.shelf.find(session, owner, fresh=self.shelf.may_be_stale)
            if record := await self.shelf.end(session, "deleted"):
                self._users[record.weights] -= 1
                return record

    async def keep_sweeping(self) -> None:
        """End sessions whose time is over, and release what they used; for ever."""
        ended = rounds = 0
        while True:
            more = False
            try:
                more = await self.shelf.sweep(SWEEP_SESSIONS)
                if not more and rounds % round(USERS_SECONDS / SWEEP_SECONDS) == 0:
                    await self._count_users()
            except StoreUnavailable as error:
                self._log.warning("store_unavailable", reason=str(error))
            if more:
                await asyncio.sleep(0)  # others have their turn in between
                continue
            rounds += 1
            if self.shelf.counts.ended.total() - ended > MANY_SESSIONS:
                ended = self.shelf.counts.ended.total()
                self._give_memory_back()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _count_users(self) -> None:
        self._users = Counter(await self.shelf.store.in_use())
        self._registry.release()
        for weights in self._users.keys() - self._known if self.shelf.may_be_stale else ():
            # Opened by another process: to be had here, too, before the files are replaced.
            self._known.add(weights)
            with suppress(ModelFailed):  # which the registry logs
                await self._registry.pinned(*weights)

    async def _create(
        self, weights: Weights, owner: bytes, ttl_seconds: float, initial: bytes, state: bytes
    ) -> SessionRecord:
        now = self.shelf.clock()
        position = Position(0, 0, state, b"", now)
        owner, weights = (self._alike.setdefault(one, one) for one in (owner, weights))
        record = SessionRecord(token_urlsafe(16), owner, weights, ttl_seconds, now, initial, position)
        await self.shelf.create(record)
        self._users[weights] += 1
        return record


def weights_of(version: ModelVersion) -> Weights:
    """What a session remembers of the version that it runs on."""
    return Weights(version.name, version.version, version.fingerprint)


def _refuse_if_draining(model: ModelVersion) -> None:
    if model.draining:
        raise ModelInUse(f"version {model.version} of model {model.name!r} is being drained: it opens no new sessions")
