"""Sessions that nobody uses: the memory of each, memory when they have expired, and a restart with many of them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS, Cell
from benchmarks.live import PROGRAM, Client, openings
from benchmarks.programs import compiled
from benchmarks.results import Spread
from benchmarks.servers import Running, Server, running
from benchmarks.stores import MEMORY, SQLITE, using

SMALL, LARGE = CELLS[0], CELLS[-1]
COUNTS = {SMALL.name: 1_000_000, LARGE.name: 100_000}
STORED = 100_000
CLIENTS = 16
LONG = 86_400
SWEEP_SECONDS = 15
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Idle:
    """Sessions opened over HTTP in an otherwise idle service; resident bytes before, with them, and when they expired.

    `expired_bytes` is None where their end was not awaited.
    """

    hidden_size: int
    count: int
    seconds: float
    before_bytes: int
    with_bytes: int
    expired_bytes: int | None

    @property
    def bytes_each(self) -> float:
        """Resident bytes of one session."""
        return (self.with_bytes - self.before_bytes) / self.count

    @property
    def state_bytes(self) -> int:
        """What its state alone takes."""
        return 4 * self.hidden_size


@dataclass(frozen=True, slots=True)
class Restarts:
    """Seconds from the start of the process until it is ready, with so many sessions in sqlite and with none."""

    count: int
    stored: tuple[float, ...]
    empty: tuple[float, ...]

    @property
    def later(self) -> Spread:
        """How much later it is ready with them, each pair by itself."""
        return Spread.of(mine - its for mine, its in zip(self.stored, self.empty, strict=True))


def idle(server: Server, places: tuple[Path, Path], console: Console, *, quick: bool) -> Iterator[Idle]:
    """Open many sessions with a small and with a larger state; wait until those with the small one have expired."""
    models, scratch = places
    with compiled(PROGRAM) as program:
        client = Client(program, scratch)
        for cell in (SMALL, LARGE):
            wanted = COUNTS[cell.name] // (50 if quick else 1)
            with running(using(server, MEMORY, scratch), models, scratch) as started:
                # Learn how quickly they open, and have all code loaded and every pool at its size before the count.
                warm_up = open_some(client, started, cell, 1, LONG)
                rate = warm_up / 1.0
                # None may expire before the last is open.
                life = 1.2 * wanted / rate + 10 if cell is SMALL else LONG
                before, begun, opened = started.resident_bytes(), time.monotonic(), 0
                while opened < wanted:
                    opened += open_some(client, started, cell, max((wanted - opened) / rate, 0.5), life)
                seconds, full = time.monotonic() - begun, started.resident_bytes()
                console.print(f"{opened:,} sessions, H {cell.hidden_size}: {(full - before) / opened:,.0f} bytes each")
                left = lowest(started, life, before) if cell is SMALL else None
            yield Idle(cell.hidden_size, opened, seconds, before, full, left)


def open_some(client: Client, server: Running, cell: Cell, seconds: float, life: float) -> int:
    """Open sessions for some seconds; how many."""
    flow, _ = client.run(server, [openings(cell, life)] * CLIENTS, seconds)
    if flow.errors:
        raise RuntimeError(f"{server.server.name} refused to open sessions")
    return flow.steps + CLIENTS


def lowest(server: Running, life: float, before: int) -> int:
    """Resident bytes when they are back, or the least that were seen until all must have expired and been swept."""
    end, least = time.monotonic() + life + SWEEP_SECONDS, server.resident_bytes()
    while time.monotonic() < end and least > before:
        time.sleep(1)
        least = min(least, server.resident_bytes())
    return least


def restarts(server: Server, places: tuple[Path, Path], rounds: int, console: Console, *, quick: bool) -> Restarts:
    """Start the service with a full and with an empty sqlite store, in turn."""
    models, scratch = places
    wanted = STORED // (50 if quick else 1)
    full, empty = scratch / "full", scratch / "empty"
    full.mkdir(exist_ok=True)
    empty.mkdir(exist_ok=True)
    opened = 0
    with compiled(PROGRAM) as program, running(using(server, SQLITE, full), models, scratch) as started:
        client, rate = Client(program, scratch), 0.0
        while opened < wanted:
            seconds = max((wanted - opened) / rate, 0.5) if rate else 1.0
            some = open_some(client, started, SMALL, seconds, LONG)
            opened, rate = opened + some, some / seconds
    times: dict[Path, list[float]] = {full: [], empty: []}
    for _ in range(rounds):
        for folder, taken in times.items():
            begun = time.monotonic()
            with running(using(server, SQLITE, folder), models, scratch):
                taken.append(time.monotonic() - begun)
    console.print(f"ready with {opened:,} sessions in sqlite after {times[full]} s, with none after {times[empty]} s")
    return Restarts(opened, tuple(times[full]), tuple(times[empty]))
