"""A store's calls in SQL; every method runs inside a transaction that the caller has begun."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from service.stores.interface import ENDED_SECONDS, Ended, Position, Reason, SessionRecord, Totals, Weights

RECORD = """SELECT id, owner, model, version, fingerprint, ttl_seconds, created_at, initial,
    revision, step, state, replies, used_at FROM sessions JOIN weights ON weights.key = sessions.weights"""

SIZES = """WITH batch (id, revision) AS (VALUES {rows})
    SELECT id, length(state) + length(replies) FROM batch CROSS JOIN sessions USING (id, revision)"""

COMMITS = """WITH batch (id, old, revision, step, state, replies, used_at) AS (VALUES {rows})
    UPDATE sessions SET revision = batch.revision, step = batch.step, state = batch.state, replies = batch.replies,
        used_at = batch.used_at
    FROM batch WHERE sessions.id = batch.id AND sessions.revision = batch.old"""

LARGEST_BATCH = 512


class Commit(NamedTuple):
    """A new position for a session, if it still is at `revision`."""

    session: str
    revision: int
    position: Position


class SessionTables:
    """The tables in one transaction, with what the totals have changed by so far."""

    def __init__(self, connection: sqlite3.Connection, max_ended: int) -> None:
        self._execute = connection.execute
        self._max_ended = max_ended
        self._sessions = self._bytes = self._ended = 0

    def create(self, record: SessionRecord) -> None:
        position = record.position
        (weights,) = self._one(
            """INSERT INTO weights (model, version, fingerprint, sessions) VALUES (?, ?, ?, 1)
            ON CONFLICT DO UPDATE SET sessions = sessions + 1 RETURNING key""",
            record.weights,
        )
        self._execute(
            """INSERT INTO sessions (id, owner, weights, ttl_seconds, created_at, initial, revision, step, state,
                replies, used_at, seen_at, sweep_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                *(record.id, record.owner, weights, record.ttl_seconds, record.created_at, record.initial),
                *position,
                *(position.used_at, record.expires_at),
            ),
        )
        self._sessions += 1
        self._bytes += record.nbytes

    def load(self, session: str) -> SessionRecord | Ended | None:
        if row := self._one(f"{RECORD} WHERE id = ?", (session,)):
            return _record(row)
        row = self._one("SELECT reason, step, owner, at FROM ended WHERE id = ?", (session,))
        return Ended(*row) if row else None

    def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """Replace positions; says of each whether it was kept.

        Two statements for many: each lets go of the interpreter, and has to wait for it again when others are busy.
        """
        kept: list[bool] = []
        for batch in _batches(commits):
            revisions = [(commit.session, commit.revision) for commit in batch.values()]
            sizes = dict(self._many(SIZES, revisions))  # of those that will be kept
            self._many(COMMITS, [(*commit[:2], *commit.position) for commit in batch.values()])
            for commit in batch.values():
                if commit.session in sizes:
                    position = commit.position
                    self._bytes += len(position.state) + len(position.replies) - sizes[commit.session]
                kept.append(commit.session in sizes)
        return kept

    def end(self, session: str, reason: Reason, at: float) -> SessionRecord | None:
        row = self._one(f"{RECORD} WHERE id = ?", (session,))
        if row is None:
            return None
        record = _record(row)
        self._execute("DELETE FROM sessions WHERE id = ?", (session,))
        self._execute(
            "UPDATE weights SET sessions = sessions - 1 WHERE model = ? AND version = ? AND fingerprint = ?",
            record.weights,
        )
        self._execute(
            "INSERT INTO ended (id, reason, step, owner, at) VALUES (?, ?, ?, ?, ?)",
            (session, reason, record.position.step, record.owner, at),
        )
        self._sessions -= 1
        self._bytes -= record.nbytes
        self._ended += 1
        return record

    def expire(self, now: float, limit: int, looks: int) -> tuple[int, bool]:
        """Look at `looks` sessions that may be due, and end those that are; gives how many, and if more may be due.

        Also forgets as many that ended long ago.
        """
        self._ended -= self._execute(
            "DELETE FROM ended WHERE at <= ? AND key IN (SELECT key FROM ended ORDER BY key LIMIT ?)",
            (now - ENDED_SECONDS, looks),
        ).rowcount
        rows = self._execute(
            "SELECT id, used_at + ttl_seconds FROM sessions WHERE sweep_at <= ? ORDER BY sweep_at LIMIT ?",
            (now, looks),
        ).fetchall()
        ended = 0
        for session, expires_at in rows:
            if expires_at > now:
                self._execute("UPDATE sessions SET sweep_at = used_at + ttl_seconds WHERE id = ?", (session,))
            elif ended < limit:
                self.end(session, "expired", now)
                ended += 1
        return ended, len(rows) == looks

    def evict(self, count: int, now: float, looks: int) -> int | None:
        """End the `count` least recently used sessions, if that order is known for the `looks` that come first.

        Gives how many there were, or None if the order had to be updated: then call again.
        """
        rows = self._execute(
            "SELECT id, seen_at <> used_at FROM sessions ORDER BY seen_at LIMIT ?", (looks,)
        ).fetchall()
        used = [session for session, was_used in rows if was_used]
        for session in used:
            self._execute("UPDATE sessions SET seen_at = used_at WHERE id = ?", (session,))
        if used:
            return None
        for session, _ in rows[:count]:
            self.end(session, "evicted", now)
        return len(rows[:count])

    def page(self, after: str, limit: int) -> list[SessionRecord]:
        return [_record(row) for row in self._execute(f"{RECORD} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))]

    def in_use(self) -> dict[Weights, int]:
        rows = self._execute("SELECT model, version, fingerprint, sessions FROM weights WHERE sessions > 0")
        return {Weights(*weights): sessions for *weights, sessions in rows}

    def settle(self) -> Totals:
        """Update the totals, and keep the number of ended sessions within its limit; the last call of a transaction."""
        if not (self._sessions or self._bytes or self._ended):
            return Totals(*self._one("SELECT sessions, bytes FROM totals"))
        sessions, charged, ended = self._one(
            """UPDATE totals SET sessions = sessions + ?, bytes = bytes + ?, ended = ended + ?
            RETURNING sessions, bytes, ended""",
            (self._sessions, self._bytes, self._ended),
        )
        if (surplus := ended - self._max_ended) > 0:
            self._execute("DELETE FROM ended WHERE key IN (SELECT key FROM ended ORDER BY key LIMIT ?)", (surplus,))
            self._execute("UPDATE totals SET ended = ended - ?", (surplus,))
        return Totals(sessions, charged)

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._execute(statement, values).fetchone()

    def _many(self, statement: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Run a statement over rows, padded to a power of two: few statements serve all counts, and stay prepared."""
        width, count = len(rows[0]), 1 << (len(rows) - 1).bit_length()
        places = ",".join([f"({','.join('?' * width)})"] * count)
        values = [value for row in rows for value in row] + [None] * width * (count - len(rows))
        return self._execute(statement.replace("{rows}", places), values).fetchall()


def _batches(commits: Sequence[Commit]) -> Iterator[dict[str, Commit]]:
    """The commits by session, cut where one would stand twice in a batch: the second builds on the first."""
    batch: dict[str, Commit] = {}
    for commit in commits:
        if commit.session in batch or len(batch) == LARGEST_BATCH:
            yield batch
            batch = {}
        batch[commit.session] = commit
    yield batch


def _record(row: Sequence[Any]) -> SessionRecord:
    session, owner, model, version, fingerprint, ttl_seconds, created_at, initial, *position = row
    weights = Weights(model, version, fingerprint)
    return SessionRecord(session, owner, weights, ttl_seconds, created_at, initial, Position(*position))
