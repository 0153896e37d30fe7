"""Our service with each of its session stores."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.servers import Server, free_port

# Far more than is opened here: the caps are not what is measured.
ROOM = (("RNN_MAX_SESSIONS", "2000000"), ("RNN_MAX_SESSION_BYTES", str(8 * 2**30)))
VALKEY = shutil.which("valkey-server") or shutil.which("redis-server")
VALKEY_START_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Store:
    """A session store by its name here, its URL ({folder}, {port}), and what else the service is told."""

    name: str
    url: str
    env: tuple[tuple[str, str], ...] = ()


MEMORY = Store("memory", "memory://")
SQLITE = Store("sqlite, synchronous=NORMAL", "sqlite:///{folder}/normal.sqlite3")
SQLITE_FULL = Store(
    "sqlite, synchronous=FULL", "sqlite:///{folder}/full.sqlite3", (("RNN_SQLITE_SYNCHRONOUS", "full"),)
)
REMOTE = Store("valkey", "valkey://127.0.0.1:{port}")
STORES = (MEMORY, SQLITE, SQLITE_FULL, REMOTE)


def using(server: Server, store: Store, folder: Path, port: int = 0) -> Server:
    """The server with its sessions in a store."""
    url = store.url.format(folder=folder.absolute(), port=port)
    return replace(server, env=(*server.env, *ROOM, ("RNN_SESSION_STORE", url), *store.env))


@contextmanager
def valkey(folder: Path) -> Iterator[int]:
    """A Valkey server that keeps an append-only file, synced once a second; its port."""
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder.absolute(), "save": "", "appendonly": "yes"}
    command = [
        VALKEY or "valkey-server",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    log = folder / "valkey.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + VALKEY_START_SECONDS
        while b"ready to accept connections" not in log.read_bytes().lower():
            if time.monotonic() > end or child.poll() is not None:
                raise RuntimeError(f"Valkey did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield port
    finally:
        child.terminate()
        child.wait()
