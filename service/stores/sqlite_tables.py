"""What the calls of a store are in SQL; every method runs inside a transaction that the caller has begun."""

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.stores.interface import (
    ENDED_SECONDS,
    Ended,
    Position,
    Reason,
    SessionRecord,
    Totals,
    Weights,
)

RECORD = """SELECT id, owner, model, version, fingerprint, ttl_seconds, created_at, initial,
    revision, step, state, replies, used_at FROM sessions JOIN weights ON weights.key = sessions.weights"""

COMMIT = """UPDATE sessions SET revision = ?, step = ?, state = ?, replies = ?, used_at = ?
    WHERE id = ? AND revision = ?"""

LARGEST_BATCH = 512


class Commit(NamedTuple):
    """A new position for a session, if it still is at `revision`."""

    session: str
    revision: int
    position: Position


class NotAllKept(Exception):
    """Of several commits one came from a revision that does not stand any more."""


class SessionTables:
    """The tables of one transaction, with what the totals have changed by so far."""

    def __init__(self, connection: sqlite3.Connection, max_ended: int) -> None:
        self._execute = connection.execute
        self._max_ended = max_ended
        self._sessions = self._bytes = self._ended = 0

    def create(self, record: SessionRecord) -> None:
        """Keep a new session. An id that is not new raises sqlite3.IntegrityError, and all must be undone."""
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
        """The session, or what is remembered of it."""
        if row := self._one(f"{RECORD} WHERE id = ?", (session,)):
            return _record(row)
        row = self._one("SELECT reason, step, owner, at FROM ended WHERE id = ?", (session,))
        return Ended(*row) if row else None

    def commit(self, commit: Commit) -> bool:
        """Replace a position."""
        (before,) = self._one(
            "SELECT total(length(state) + length(replies)) FROM sessions WHERE id = ?", (commit.session,)
        )
        kept = self._execute(COMMIT, (*commit.position, commit.session, commit.revision)).rowcount == 1
        if kept:
            self._bytes += len(commit.position.state) + len(commit.position.replies) - int(before)
        return kept

    def commit_all(self, commits: Sequence[Commit]) -> list[bool]:
        """Replace many positions in one statement. Raises NotAllKept if one is not; then all must be undone.

        One, as every statement lets go of the interpreter, and has to wait for it again when others are busy.
        """
        for first in range(0, len(commits), LARGEST_BATCH):
            some = commits[first : first + LARGEST_BATCH]
            # Padded to powers of two, so that few statements do for all, and stay prepared.
            padding = (1 << (len(some) - 1).bit_length()) - len(some)
            ids: list[Any] = [value for commit in some for value in (commit.session, commit.revision)]
            (before,) = self._one(_sizes(len(some) + padding), ids + [None, None] * padding)
            values: list[Any] = [value for commit in some for value in (*commit[:2], *commit.position)]
            changed = self._execute(_commits(len(some) + padding), values + [None] * 7 * padding).rowcount
            if changed != len(some):
                raise NotAllKept
            after = sum(len(commit.position.state) + len(commit.position.replies) for commit in some)
            self._bytes += after - int(before)
        return [True] * len(commits)

    def end(self, session: str, reason: Reason, at: float) -> SessionRecord | None:
        """End a session."""
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
        """Look at so many sessions that may be due, and end those that are; gives how many, and if more may be due."""
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

    def forget(self, now: float, limit: int) -> bool:
        """Forget at most so many that ended long ago; says whether there may be more."""
        rows = self._execute("SELECT key, at FROM ended ORDER BY key LIMIT ?", (limit,)).fetchall()
        old = 0
        while old < len(rows) and rows[old][1] <= now - ENDED_SECONDS:
            old += 1
        if old:
            self._execute("DELETE FROM ended WHERE key <= ?", (rows[old - 1][0],))
            self._ended -= old
        return 0 < old == limit

    def evict(self, count: int, now: float, looks: int) -> tuple[int, bool]:
        """End at most so many least recently used sessions, if that order is known for the `looks` that come first.

        Gives how many were ended, and whether the order had to be put right: then call again.
        """
        rows = self._execute(
            "SELECT id, seen_at <> used_at FROM sessions ORDER BY seen_at LIMIT ?", (looks,)
        ).fetchall()
        moved = [(session,) for session, used in rows if used]
        for session in moved:
            self._execute("UPDATE sessions SET seen_at = used_at WHERE id = ?", session)
        if moved:
            return 0, True
        for session, _ in rows[:count]:
            self.end(session, "evicted", now)
        return len(rows[:count]), False

    def page(self, after: str, limit: int) -> list[SessionRecord]:
        """Live sessions by id."""
        return [_record(row) for row in self._execute(f"{RECORD} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))]

    def in_use(self) -> dict[Weights, int]:
        """Live sessions by weights."""
        rows = self._execute("SELECT model, version, fingerprint, sessions FROM weights WHERE sessions > 0")
        return {Weights(*weights): sessions for *weights, sessions in rows}

    def settle(self) -> Totals:
        """Write the totals down, and keep the number of ended ones within its cap; the last thing in a transaction."""
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


def _record(row: Sequence[Any]) -> SessionRecord:
    session, owner, model, version, fingerprint, ttl_seconds, created_at, initial, *position = row
    return SessionRecord(
        session, owner, Weights(model, version, fingerprint), ttl_seconds, created_at, initial, Position(*position)
    )


def _sizes(count: int) -> str:
    return _SIZES.replace("{rows}", ",".join(["(?,?)"] * count))


def _commits(count: int) -> str:
    return _COMMITS.replace("{rows}", ",".join(["(?,?,?,?,?,?,?)"] * count))


_SIZES = """WITH batch (id, old) AS (VALUES {rows})
    SELECT total(length(state) + length(replies)) FROM batch CROSS JOIN sessions
    WHERE sessions.id = batch.id AND sessions.revision = batch.old"""

# Not `WITH batch (id, …) AS`: of a statement that does not begin with UPDATE, sqlite3 gives no `rowcount`.
_COMMITS = """UPDATE sessions SET revision = batch.column3, step = batch.column4, state = batch.column5,
        replies = batch.column6, used_at = batch.column7
    FROM (VALUES {rows}) AS batch WHERE sessions.id = batch.column1 AND sessions.revision = batch.column2"""
