"""Sessions on a Valkey (or Redis) server, not a cluster: several hosts may share them.

The calls of one tick, and all that come while a batch is on its way, are one pipeline. How durable they are is the
server's matter: with `appendonly yes` they outlive it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from valkey.asyncio import Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import AuthenticationError, NoScriptError, ResponseError, ValkeyError

from service.errors import StoreUnavailable
from service.stores.batches import Batches, unavailable
from service.stores.interface import (
    ENDED_SECONDS,
    Ended,
    Position,
    Reason,
    SessionRecord,
    SessionStore,
    StoreError,
    Totals,
    Weights,
)
from service.stores.valkey_scripts import (
    COMMIT,
    CREATE,
    END,
    EVICT,
    EXPIRE,
    FORGET,
    IN_USE,
    LOAD,
    PAGE,
    Script,
)

Value = bytes | str | int | float

OLDEST_SERVER = 7
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 2.0
LOOKS = 500
"""Sessions that a script looks at, as the server runs nothing else meanwhile."""


# The event loop's words for a connection that is closed under a read or a write are its own: EOFError, RuntimeError.
BROKEN = (ValkeyError, OSError, EOFError, RuntimeError)


class Call(NamedTuple):
    """A script and its arguments."""

    script: Script
    values: Sequence[Value]


class ValkeyStore(SessionStore):
    """Sessions on a server. While it is away calls raise StoreUnavailable; when it is back they work again.

    A batch whose answer was lost is not sent again, as it may have run: StoreUnavailable, then, means "load and see".
    """

    durable = True
    shared = True

    def __init__(self, url: str, max_ended: int) -> None:
        """url: valkey://[user:password@]host[:port][/db], valkeys:// with TLS; redis:// and rediss:// are the same."""
        try:
            self._server: Valkey = Valkey.from_url(
                url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
                client_name="rnn-service",
            )
        except ValueError:  # its message may hold a part of the password
            raise StoreError("the session store's URL is not valkey://[user:password@]host[:port][/db]") from None
        self._max_ended = max_ended
        self._totals = Totals(0, 0)
        self._calls: Batches[Call] = Batches(self._run)

    @property
    def totals(self) -> Totals:
        """As of this process's last batch."""
        return self._totals

    async def open(self) -> None:
        """Look at the server; one that cannot be reached yet is no error."""
        try:
            about: dict[str, Any] = await self._server.info()
        except (AuthenticationError, ResponseError) as error:
            raise StoreError(f"the session store's server refuses this service: {error}") from None
        except BROKEN:
            return
        if int(str(about.get("redis_version", OLDEST_SERVER)).partition(".")[0]) < OLDEST_SERVER:
            raise StoreError(f"the session store's server is too old: take Valkey, or Redis {OLDEST_SERVER} or newer")
        if about.get("cluster_enabled"):
            raise StoreError("the session store's server is part of a cluster: take one that is not")
        if about.get("maxmemory") and str(about.get("maxmemory_policy")).startswith("allkeys"):
            raise StoreError("the session store's server may drop sessions: set its maxmemory-policy to noeviction")
        with suppress(StoreUnavailable):
            await self.in_use()  # and learn the totals

    async def close(self) -> None:
        """Finish what has been called, and hang up."""
        await self._calls.close()
        await self._server.aclose()

    async def create(self, record: SessionRecord) -> None:
        """Keep a new session."""
        opened = (record.owner, _packed(record.weights), record.ttl_seconds, record.created_at)
        await self._call(CREATE, record.id, record.expires_at, *opened, record.initial, *record.position)

    async def load(self, session: str) -> SessionRecord | Ended | None:
        """The session, or what is remembered of it."""
        found = await self._call(LOAD, session)
        if isinstance(found, bytes):
            reason, step, at, owner = found.split(b":", 3)
            return Ended(cast("Reason", reason.decode()), int(step), owner, float(at))
        return _record(session, found) if found else None

    async def commit(self, session: str, revision: int, position: Position) -> bool:
        """Replace the position."""
        return bool(await self._call(COMMIT, session, revision, *position))

    async def end(self, session: str, reason: Reason, at: float) -> SessionRecord | None:
        """End a session."""
        found = await self._call(END, session, reason, at, self._max_ended)
        return _record(session, found) if found else None

    async def expire(self, now: float, limit: int) -> int:
        """End what is due, some in each batch."""
        while await self._call(FORGET, now - ENDED_SECONDS, LOOKS) == LOOKS:
            pass
        ended, looked_at = 0, LOOKS
        while looked_at == LOOKS and ended < limit:
            some, looked_at = await self._call(EXPIRE, now, limit - ended, LOOKS, self._max_ended)
            ended += some
        return ended

    async def evict(self, count: int, now: float) -> int:
        """End the least recently used, some in each batch."""
        evicted = 0
        while evicted < count:
            room = min(count - evicted, LOOKS)
            some: int = await self._call(EVICT, room, now, self._max_ended)
            evicted += some
            if some < room:
                break
        return evicted

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        """Live sessions by id."""
        return [_record(session.decode(), found) for session, found in await self._call(PAGE, after, limit)]

    async def in_use(self) -> Mapping[Weights, int]:
        """Live sessions by weights."""
        flat: list[bytes] = await self._call(IN_USE)
        return {_weights(weights): int(sessions) for weights, sessions in zip(flat[::2], flat[1::2], strict=True)}

    async def _call(self, script: Script, *values: Value) -> Any:
        return await self._calls.call(Call(script, values))

    async def _run(self, calls: list[Call]) -> list[Any]:
        """Answers of all calls, or StoreUnavailable in their place."""
        try:
            answers = await self._send(calls, known=True)
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:  # a server that has started anew knows no scripts; none of these has run
                again = await self._send([calls[i] for i in unknown], known=False)
                for i, answer in zip(unknown, again, strict=True):
                    answers[i] = answer
        except BROKEN as error:
            return [unavailable(error) for _ in calls]
        return [unavailable(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _send(self, calls: Sequence[Call], known: bool) -> list[Any]:
        """Raw answers of the calls, in one pipeline; and hear of the totals."""
        pipeline = self._server.pipeline(transaction=False)
        for script, values in calls:
            if known:
                pipeline.execute_command("EVALSHA", script.digest, 0, *values)
            else:
                pipeline.execute_command("EVAL", script.text, 0, *values)
        pipeline.execute_command("HMGET", "rnn:totals", "sessions", "bytes")
        answers: list[Any]
        *answers, totals = await pipeline.execute(raise_on_error=False)
        if not isinstance(totals, Exception):
            self._totals = Totals(*(int(total or 0) for total in totals))
        return answers


def _record(session: str, found: Sequence[bytes]) -> SessionRecord:
    owner, weights, ttl_seconds, created_at, initial, revision, step, state, replies, used_at = found
    return SessionRecord(
        *(session, owner, _weights(weights), float(ttl_seconds), float(created_at), initial),
        Position(int(revision), int(step), state, replies, float(used_at)),
    )


def _weights(packed: bytes) -> Weights:
    model, version, fingerprint = packed.split(b"\0", 2)
    return Weights(model.decode(), version.decode(), fingerprint)


def _packed(weights: Weights) -> bytes:
    return b"\0".join((weights.model.encode(), weights.version.encode(), weights.fingerprint))
