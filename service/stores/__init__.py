"""Where the state of sessions lives: in memory, in SQLite, in Valkey; one small interface for all."""

from pathlib import Path

from service.stores.interface import SessionStore, StoreError
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_file import Synchronous
from service.stores.valkey import ValkeyStore


def store_from(url: str, *, max_ended: int, sqlite_synchronous: Synchronous = "normal") -> SessionStore:
    """Make a store, not opened yet; sqlite:///a.db is a relative path. Raises StoreError if the URL names none."""
    scheme, _, rest = url.partition("://")
    if url == "memory://":
        return MemoryStore(max_ended)
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        return SqliteStore(Path(rest[1:]), max_ended, sqlite_synchronous)
    if scheme in ("valkey", "valkeys", "redis", "rediss") and rest:
        return ValkeyStore(url, max_ended)
    # The URL itself may hold a password.
    raise StoreError("a session store is memory://, sqlite:///path or valkey://[user:password@]host[:port][/db]")
