"""The life of sessions: opened, used, forked, reset, deleted, and swept away when their time is over.

A session runs on the weights that it was opened with, until it ends: the registry keeps them loaded as long as a
session uses them. After a restart a session waits until they are there, and ends if their files hold others.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import count
from secrets import token_urlsafe
from typing import Any, NamedTuple

from service.engine.interface import Engine, Floats
from service.errors import ModelFailed, ModelInUse, SessionGone, StoreUnavailable, WeightsUnavailable
from service.serving.registry import ModelVersion, Registry
from service.sessions.cache import SessionCache
from service.sessions.queue import SessionQueue
from service.sessions.replay import decode_state, encode_state, zero_state
from service.stores.interface import Position, SessionRecord, Weights

SWEEP_SECONDS = 1.0  # between two endings of expired sessions
SWEEPS_PER_COUNT = 5  # every fifth time live sessions are counted by weights


class Lifetimes(NamedTuple):
    """How long a session lives since its last step, and the most that a client may ask for."""

    default_seconds: float
    longest_seconds: float


class Session(NamedTuple):
    record: SessionRecord
    model: ModelVersion
    engine: Engine


class Sessions:
    """What clients do with sessions beside stepping them."""

    def __init__(self, cache: SessionCache, queue: SessionQueue, registry: Registry, lifetimes: Lifetimes) -> None:
        self.cache = cache
        self.queue = queue
        self.lifetimes = lifetimes
        self._registry = registry
        self._users: Counter[Weights] = Counter()
        self._known: set[Weights] = set()
        self._interned: dict[Any, Any] = {}  # owners and weights, which many sessions have in common
        registry.sessions_on = self.on
        registry.sessions_elsewhere = cache.store.shared

    def on(self, version: ModelVersion) -> int:
        """How many live sessions run on a version, as far as this process knows."""
        return self._users[weights_of(version)]

    async def use(self, session: str, owner: bytes | None, *, fresh: bool = False) -> Session:
        """As `SessionCache.find`, with what it runs on. Raises SessionNotFound, SessionGone, WeightsUnavailable."""
        record = await self.cache.find(session, owner, fresh=fresh)
        try:
            model = await self._registry.pinned(*record.weights)
        except ModelFailed as error:
            raise WeightsUnavailable(f"the session waits for its weights: {error}") from None
        if model is None or model.engine is None:
            if not fresh:  # another process may have begun it anew
                return await self.use(session, owner, fresh=True)
            await self.cache.end(session, "model-replaced", record.created_at)
            message = f"version {record.weights.version} of model {record.weights.model!r} has other weights now"
            raise SessionGone(f"this session has ended: {message}", "model-replaced", record.position.step)
        return Session(record, model, model.engine)

    async def open(
        self, model: ModelVersion, owner: bytes, ttl_seconds: float | None, h: Floats | None, c: Floats | None
    ) -> SessionRecord:
        """A new session at step 0, from h (L,1,P) and c (L,1,H), or as its model begins.

        Raises ModelInUse, ModelFailed, SessionsFull.
        """
        initial = b"" if h is None else encode_state(h, c)
        return await self.keep((await self.draft(token_urlsafe(16), model, owner, ttl_seconds, initial)).record)

    async def draft(
        self, session_id: str, model: ModelVersion, owner: bytes, ttl_seconds: float | None = None, initial: bytes = b""
    ) -> Session:
        """A session of this id that is not stored yet. Raises ModelInUse, ModelFailed."""
        if model.draining:
            one = f"version {model.version} of model {model.name!r}"
            raise ModelInUse(f"{one} is being drained: it opens no new sessions")
        engine = await self._registry.engine(model)
        owner, weights = (self._interned.setdefault(one, one) for one in (owner, weights_of(model)))
        initial, now = initial or _beginning(model), self.cache.clock()
        position = Position(0, 0, initial or zero_state(model.spec), b"", now)
        ttl_seconds = ttl_seconds or self.lifetimes.default_seconds
        return Session(SessionRecord(session_id, owner, weights, ttl_seconds, now, initial, position), model, engine)

    async def fork(self, session: str, owner: bytes | None) -> SessionRecord:
        """A new session at step 0, from this one's state; it belongs to the same owner. Raises as `open` does."""
        async with self.queue.turn(session):
            record, model, _ = await self.use(session, owner, fresh=True)
        initial = record.position.state
        fork = await self.draft(token_urlsafe(16), model, record.owner, record.ttl_seconds, initial)
        return await self.keep(fork.record)

    async def reset(self, session: str, owner: bytes | None) -> SessionRecord:
        """Back to the initial state; the count of steps goes on."""
        async with self.queue.turn(session):
            while True:
                record, model, _ = await self.use(session, owner, fresh=True)
                before, state = record.position, record.initial or zero_state(model.spec)
                position = Position(before.revision + 1, before.step, state, b"", self.cache.clock())
                if await self.cache.commit(record, before, position):
                    return record

    async def delete(self, session: str, owner: bytes | None) -> SessionRecord:
        """Give the last record. Steps that wait find the session gone."""
        while True:
            await self.cache.find(session, owner, fresh=True)
            if record := await self.cache.end(session, "deleted"):
                self._users[record.weights] -= 1
                return record

    async def keep(self, record: SessionRecord) -> SessionRecord:
        """Store a drafted session. Raises SessionsFull."""
        if replaced := await self.cache.create(record):
            self._users[replaced.weights] -= 1
        self._users[record.weights] += 1
        return record

    async def finish(self, record: SessionRecord) -> None:
        """End a session, unless another one has begun in its place."""
        if await self.cache.end(record.id, "deleted", record.created_at):
            self._users[record.weights] -= 1

    async def keep_sweeping(self) -> None:
        """For ever: end sessions whose time is over, and release what they used."""
        for sweep in count():
            with suppress(StoreUnavailable):  # which the store logs
                while await self.cache.sweep():
                    pass  # the store lets others run in between
                if sweep % SWEEPS_PER_COUNT == 0:
                    await self._count_users()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _count_users(self) -> None:
        self._users = Counter(await self.cache.store.in_use())
        self._registry.release()
        for weights in self._users.keys() - self._known if self.cache.store.shared else ():
            # Opened by another process: this one loads them, too, before the files are replaced.
            with suppress(ModelFailed):  # which the registry logs; tried again
                await self._registry.pinned(*weights)
                self._known.add(weights)


def weights_of(version: ModelVersion) -> Weights:
    return Weights(version.name, version.version, version.fingerprint)


def _beginning(model: ModelVersion) -> bytes:
    """The state that a model's file holds, empty for zeros."""
    if all(stored is None for stored in model.states):
        return b""
    h, c = decode_state(model.spec, zero_state(model.spec))
    for state, stored in zip((h, c), model.states, strict=True):
        if state is not None and stored is not None:
            state[:] = stored[:, None]
    return encode_state(h, c)
