"""Which store a URL names."""

from pathlib import Path

from service.stores.interface import SessionStore, StoreError
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_file import Synchronous
from service.stores.valkey import ValkeyStore


def store_from(url: str, *, max_ended: int, sqlite_synchronous: Synchronous = "normal") -> SessionStore:
    """The store of a URL, not opened yet. Raises StoreError if the URL names none.

    sqlite:///sessions.db is a path from the working directory, sqlite:////var/lib/sessions.db one from the root.
    """
    scheme, separator, rest = url.partition("://")
    if url == "memory://":
        return MemoryStore(max_ended)
    if scheme == "sqlite" and rest.startswith("/") and rest[1:]:
        return SqliteStore(Path(rest[1:]), max_ended, sqlite_synchronous)
    if scheme in ("valkey", "valkeys", "redis", "rediss") and separator:
        return ValkeyStore(url, max_ended)
    # The URL itself may hold a password.
    raise StoreError("a session store is memory://, sqlite:///path or valkey://[user:password@]host[:port][/db]")
