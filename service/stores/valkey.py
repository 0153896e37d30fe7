"""Sessions on a Valkey (or Redis) server, not a cluster: several hosts may share them.

The calls of one tick, and all that come while a batch is on its way, are one pipeline. The server decides how durable
they are: with `appendonly yes` they outlive it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from valkey.asyncio import Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import AuthenticationError, NoScriptError, ResponseError, ValkeyError

from service.errors import StoreUnavailable
from service.stores.batches import Batches, unavailable
from service.stores.interface import Ended, Position, Reason, SessionRecord, StoreError, Totals, Weights
from service.stores.valkey_script import DIGEST, SCRIPT

LOOKS = 500  # sessions that a sweep looks at in one call, as the server runs nothing else meanwhile

# A connection that is closed during a read or a write raises the event loop's own errors: EOFError, RuntimeError.
BROKEN = (ValkeyError, OSError, EOFError, RuntimeError)

Call = tuple[bytes | str | float, ...]  # a name in the script, and what it takes


class ValkeyStore:
    """While the server is away calls raise StoreUnavailable; a batch whose answer was lost is not sent again."""

    shared = True
    lost = False
    totals = Totals(0, 0)  # of the last batch

    def __init__(self, url: str, max_ended: int) -> None:
        try:
            self._server: Valkey = Valkey.from_url(
                url,
                socket_connect_timeout=1.0,
                socket_timeout=2.0,
                retry=Retry(NoBackoff(), 0),
                client_name="rnn-service",
            )
        except ValueError:  # its message may hold a part of the password
            raise StoreError("the session store's URL is not valkey://[user:password@]host[:port][/db]") from None
        self._max_ended = max_ended
        self._calls: Batches[Call] = Batches(self._run)

    async def open(self) -> None:
        try:
            about: dict[str, Any] = await self._server.info()
        except (AuthenticationError, ResponseError) as error:
            raise StoreError(f"the session store's server refuses this service: {error}") from None
        except BROKEN:  # it may be reached later
            return
        if int(str(about.get("redis_version", 7)).partition(".")[0]) < 7:
            raise StoreError("the session store's server is too old: take Valkey, or Redis 7 or newer")
        if about.get("cluster_enabled"):
            raise StoreError("the session store's server is part of a cluster: take one that is not")
        if about.get("maxmemory") and str(about.get("maxmemory_policy")).startswith("allkeys"):
            raise StoreError("the session store's server may drop sessions: set its maxmemory-policy to noeviction")
        with suppress(StoreUnavailable):
            await self.in_use()  # and learn the totals

    async def close(self) -> None:
        await self._calls.close()
        await self._server.aclose()

    async def create(self, record: SessionRecord) -> SessionRecord | None:
        model, version, fingerprint = record.weights
        weights = b"\0".join((model.encode(), version.encode(), fingerprint))
        values = (record.owner, weights, record.ttl_seconds, record.created_at, record.initial, *record.position)
        old = await self._call("create", record.id, record.expires_at, *values)
        return _record(record.id, old) if old else None

    async def load(self, session: str) -> SessionRecord | Ended | None:
        found = await self._call("load", session)
        if isinstance(found, bytes):
            reason, step, at, owner = found.split(b":", 3)
            return Ended(cast("Reason", reason.decode()), int(step), owner, float(at))
        return _record(session, found) if found else None

    async def commit(self, session: str, before: Position, position: Position) -> bool:
        return bool(await self._call("commit", session, before.revision, position.nbytes - before.nbytes, *position))

    async def end(self, session: str, reason: Reason, at: float, begun: float | None = None) -> SessionRecord | None:
        found = await self._call("end", session, reason, at, *(() if begun is None else (begun,)))
        return _record(session, found) if found else None

    async def expire(self, now: float) -> tuple[int, bool]:
        ended, looked_at = await self._call("expire", now, LOOKS)
        return ended, looked_at == LOOKS

    async def evict(self, count: int, now: float) -> int:
        return int(await self._call("evict", count, now))

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        return [_record(session.decode(), found) for session, found in await self._call("page", after, limit)]

    async def in_use(self) -> Mapping[Weights, int]:
        flat: list[bytes] = await self._call("in_use")
        return {_weights(packed): int(sessions) for packed, sessions in zip(flat[::2], flat[1::2], strict=True)}

    async def _call(self, *call: bytes | str | float) -> Any:
        return await self._calls.call(call)

    async def _run(self, calls: list[Call]) -> list[Any]:
        try:
            answers = await self._send(calls)
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:  # a server that has started anew knows no script; none of these has run
                await self._server.script_load(SCRIPT)
                for i, answer in zip(unknown, await self._send([calls[i] for i in unknown]), strict=True):
                    answers[i] = answer
        except BROKEN as error:
            raise unavailable(error) from error
        return [unavailable(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        pipeline = self._server.pipeline(transaction=False)
        for values in calls:
            pipeline.execute_command("EVALSHA", DIGEST, 0, self._max_ended, *values)
        pipeline.execute_command("HMGET", "rnn:totals", "sessions", "bytes")
        answers: list[Any]
        *answers, totals = await pipeline.execute(raise_on_error=False)
        if not isinstance(totals, Exception):
            self.totals = Totals(*(int(total or 0) for total in totals))
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
