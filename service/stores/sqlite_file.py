"""The SQLite file of sessions: its schema, and how it is opened."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Literal

from service.stores.interface import StoreError

Synchronous = Literal["normal", "full"]

APPLICATION_ID = 0x524E4E53
VERSION = 1

# A page that many commits have written is copied to the database once a checkpoint: the more seldom, the less is
# written; 16 MiB are read again in well under 0.1 s after a crash.
CHECKPOINT_PAGES = 4000
WAL_BYTES = 64 * 2**20
CACHE_KIB = 16 * 1024

# sweep_at and seen_at are what was known when somebody last looked; a commit moves neither, so that it writes to no
# index. Rows of `ended` are numbered in the order in which sessions ended. IF NOT EXISTS: another process
# may have been quicker.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS totals (sessions INTEGER NOT NULL, bytes INTEGER NOT NULL, ended INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TABLE IF NOT EXISTS weights (
    key INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    sessions INTEGER NOT NULL,
    UNIQUE (model, version, fingerprint)
);
CREATE TABLE IF NOT EXISTS sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner BLOB NOT NULL,
    weights INTEGER NOT NULL REFERENCES weights (key),
    ttl_seconds REAL NOT NULL,
    created_at REAL NOT NULL,
    sweep_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    revision INTEGER NOT NULL,
    step INTEGER NOT NULL,
    used_at REAL NOT NULL,
    state BLOB NOT NULL,
    replies BLOB NOT NULL,
    initial BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_sweep ON sessions (sweep_at);
CREATE INDEX IF NOT EXISTS sessions_by_use ON sessions (seen_at);
CREATE TABLE IF NOT EXISTS ended (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    reason TEXT NOT NULL,
    step INTEGER NOT NULL,
    owner BLOB NOT NULL,
    at REAL NOT NULL
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT
"""  # noqa: S608  # of constants alone


def connect(path: Path, synchronous: Synchronous, busy_seconds: float) -> sqlite3.Connection:
    """Open the file, making it if it is not there; transactions are begun and ended by hand.

    Raises StoreError if it is not ours, cannot be used as a store, or stays locked.
    """
    try:
        # Made here, as what it holds is nobody else's to read; SQLite gives the files beside it the same permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"the session store {path} cannot be opened: {error.strerror}") from None
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        ours = _is_ours(connection, path)  # before anything is written
        _use_wal(connection, path, busy_seconds)
        if not ours:
            connection.executescript(SCHEMA)
        connection.executescript(
            f"""PRAGMA synchronous = {synchronous};
            PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
            PRAGMA journal_size_limit = {WAL_BYTES};
            PRAGMA cache_size = -{CACHE_KIB}"""
        )
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise StoreError(f"the session store {path} cannot be used: {error}") from None
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    """Switch to write-ahead logging; where several processes do so at once, SQLite refuses without waiting."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreError(f"the session store {path} lies where SQLite cannot use write-ahead logging")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a file of ours, False for an empty one. Raises StoreError for any other."""
    application, version, tables = connection.execute(
        """SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
        FROM pragma_application_id, pragma_user_version"""
    ).fetchone()
    if (application, version) == (APPLICATION_ID, VERSION):
        return True
    if application == APPLICATION_ID:
        raise StoreError(
            f"the session store {path} has version {version}; this service reads version {VERSION}: give it a new file"
        )
    if application or version or tables:
        raise StoreError(f"{path} is a database of another application: give the session store a file of its own")
    return False
