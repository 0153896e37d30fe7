"""A store's calls in SQL; every method runs inside a transaction that the caller has begun."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from service.stores.interface import ENDED_SECONDS, Ended, Position, Reason, SessionRecord, Totals, Weights

RECORD = """SELECT id, owner, model, version, fingerprint, ttl_seconds, created_at, initial,
    revision, step, state, replies, used_at FROM sessions JOIN weights ON weights.key = sessions.weights"""

COMMITS = """WITH batch (id, old, revision, step, state, replies, used_at) AS (VALUES {rows})
    UPDATE sessions SET revision = batch.revision, step = batch.step, state = batch.state, replies = batch.replies,
        used_at = batch.used_at
    FROM batch WHERE sessions.id = batch.id AND sessions.revision = batch.old RETURNING sessions.id"""

LARGEST_BATCH = 512


class Commit(NamedTuple):
    session: str
    before: Position
    position: Position


Call = Commit | Callable[["SessionTables"], Any]


class SessionTables:
    def __init__(self, connection: sqlite3.Connection, max_ended: int) -> None:
        self._execute = connection.execute
        self._max_ended = max_ended
        self._sessions = self._bytes = self._ended = 0  # what the totals have changed by so far

    def run(self, calls: Sequence[Call]) -> list[Any]:
        answers: list[Any] = []
        commits: dict[str, Commit] = {}
        for call in calls:
            # A second commit of a session builds on the first.
            if not isinstance(call, Commit) or call.session in commits or len(commits) == LARGEST_BATCH:
                answers += self._commit(commits)
                commits = {}
            if isinstance(call, Commit):
                commits[call.session] = call
            else:
                answers.append(call(self))
        return answers + self._commit(commits)

    def create(self, record: SessionRecord) -> SessionRecord | None:
        old = None
        if record.position.revision:
            old = self._remove(record.id)
            self._ended -= self._execute("DELETE FROM ended WHERE id = ?", (record.id,)).rowcount
        (weights,) = self._one(
            """INSERT INTO weights (model, version, fingerprint, sessions) VALUES (?, ?, ?, 1)
            ON CONFLICT DO UPDATE SET sessions = sessions + 1 RETURNING key""",
            record.weights,
        )
        opened = (record.id, record.owner, weights, record.ttl_seconds, record.created_at, record.initial)
        self._execute(
            """INSERT INTO sessions (id, owner, weights, ttl_seconds, created_at, initial, revision, step, state,
                replies, used_at, seen_at, sweep_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (*opened, *record.position, record.position.used_at, record.expires_at),
        )
        self._sessions += 1
        self._bytes += record.nbytes
        return old

    def load(self, session: str) -> SessionRecord | Ended | None:
        if row := self._one(f"{RECORD} WHERE id = ?", (session,)):
            return _record(row)
        row = self._one("SELECT reason, step, owner, at FROM ended WHERE id = ?", (session,))
        return Ended(*row) if row else None

    def _commit(self, commits: Mapping[str, Commit]) -> list[bool]:
        """Say of each commit whether it was kept.

        One statement for many: each lets go of the interpreter, and has to wait for it again when others are busy. It
        is padded to a power of two: few statements serve all counts, and stay prepared.
        """
        if not commits:
            return []
        values: list[Any] = []
        for session, before, position in commits.values():
            values += (session, before.revision, *position)
        width, places = len(values) // len(commits), 1 << (len(commits) - 1).bit_length()
        values += [None] * (width * places - len(values))
        rows = ",".join([f"({','.join('?' * width)})"] * places)
        kept = {session for (session,) in self._execute(COMMITS.replace("{rows}", rows), values)}
        for session in kept:
            self._bytes += commits[session].position.nbytes - commits[session].before.nbytes
        return [session in kept for session in commits]

    def end(self, session: str, reason: Reason, at: float, begun: float | None = None) -> SessionRecord | None:
        if record := self._remove(session, begun):
            self._execute(
                "INSERT INTO ended (id, reason, step, owner, at) VALUES (?, ?, ?, ?, ?)",
                (session, reason, record.position.step, record.owner, at),
            )
            self._ended += 1
        return record

    def _remove(self, session: str, begun: float | None = None) -> SessionRecord | None:
        record = self.load(session)
        if not isinstance(record, SessionRecord) or begun not in (None, record.created_at):
            return None
        weights = self._one("DELETE FROM sessions WHERE id = ? RETURNING weights", (session,))
        self._execute("UPDATE weights SET sessions = sessions - 1 WHERE key = ?", weights)
        self._sessions -= 1
        self._bytes -= record.nbytes
        return record

    def expire(self, now: float, looks: int) -> tuple[int, bool]:
        self._ended -= self._execute(
            "DELETE FROM ended WHERE at <= ? AND key IN (SELECT key FROM ended ORDER BY key LIMIT ?)",
            (now - ENDED_SECONDS, looks),
        ).rowcount
        later = self._execute(
            """UPDATE sessions SET sweep_at = used_at + ttl_seconds WHERE used_at + ttl_seconds > ? AND key IN
                (SELECT key FROM sessions WHERE sweep_at <= ? ORDER BY sweep_at LIMIT ?)""",
            (now, now, looks),
        ).rowcount
        due = "SELECT id FROM sessions WHERE sweep_at <= ? ORDER BY sweep_at LIMIT ?"
        ended = self._end_all(due, (now, looks - later), "expired", now)
        return ended, later + ended == looks

    def evict(self, count: int, now: float, looks: int) -> int | None:
        """End the least recently used sessions; None if the order of the first `looks` was old: then call again."""
        used = self._execute(
            """UPDATE sessions SET seen_at = used_at WHERE seen_at <> used_at AND key IN
                (SELECT key FROM sessions ORDER BY seen_at LIMIT ?)""",
            (looks,),
        ).rowcount
        if used:
            return None
        return self._end_all("SELECT id FROM sessions ORDER BY seen_at LIMIT ?", (count,), "evicted", now)

    def _end_all(self, which: str, values: Sequence[Any], reason: Reason, at: float) -> int:
        sessions = self._execute(which, values).fetchall()
        for (session,) in sessions:
            self.end(session, reason, at)
        return len(sessions)

    def page(self, after: str, limit: int) -> list[SessionRecord]:
        return [_record(row) for row in self._execute(f"{RECORD} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))]

    def in_use(self) -> dict[Weights, int]:
        rows = self._execute("SELECT model, version, fingerprint, sessions FROM weights WHERE sessions > 0")
        return {Weights(*weights): sessions for *weights, sessions in rows}

    def settle(self) -> Totals:
        """The last call of a transaction."""
        if self._sessions or self._bytes or self._ended:
            self._execute(
                "UPDATE totals SET sessions = sessions + ?, bytes = bytes + ?, ended = ended + ?",
                (self._sessions, self._bytes, self._ended),
            )
        sessions, charged, ended = self._one("SELECT sessions, bytes, ended FROM totals")
        if (surplus := ended - self._max_ended) > 0:
            self._execute("DELETE FROM ended WHERE key IN (SELECT key FROM ended ORDER BY key LIMIT ?)", (surplus,))
            self._execute("UPDATE totals SET ended = ended - ?", (surplus,))
        return Totals(sessions, charged)

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._execute(statement, values).fetchone()


def _record(row: Sequence[Any]) -> SessionRecord:
    session, owner, model, version, fingerprint, ttl_seconds, created_at, initial, *position = row
    weights = Weights(model, version, fingerprint)
    return SessionRecord(session, owner, weights, ttl_seconds, created_at, initial, Position(*position))
