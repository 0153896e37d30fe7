"""Sessions that nobody uses: the memory of each, memory when they have expired, and a restart with many of them."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.bodies import CELLS, Cell
from benchmarks.live import PROGRAM, Client, openings
from benchmarks.results import Spread
from benchmarks.servers import Running, Server, running
from benchmarks.stores import MEMORY, SQLITE, using
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit

SMALL, LARGE = CELLS[0], CELLS[-1]
# Enough for the bytes of each; a million takes minutes to open and as long to expire.
COUNTS = {SMALL.name: 100_000, LARGE.name: 50_000}
STORED = 100_000
OPENED_PER_SECOND, STORED_PER_SECOND = 5_000, 3_000
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


def units(bench: Bench) -> list[Unit]:
    """Memory of sessions with a small and a larger state; then starts with a full and an empty sqlite store."""
    server = bench.server(OURS)
    if not server:
        return []
    have = {one.hidden_size for one in bench.report.idle}
    found = [
        Unit(
            f"sessions with H {cell.hidden_size}",
            (COUNTS[cell.name] / OPENED_PER_SECOND) * (2.4 if cell is SMALL else 1) + 10,
            cell.hidden_size in have,
            partial(measure, bench, server, cell),
            cell.name,
        )
        for cell in (SMALL, LARGE)
    ]
    seconds = STORED / STORED_PER_SECOND + 6.0 * bench.rounds.count
    run = partial(restarts, bench, server)
    return [*found, Unit("restarts", seconds, bench.report.restarts is not None, run, "restarts")]


def measure(bench: Bench, server: Server, cell: Cell) -> None:
    """Open many sessions; wait until those with the small state have expired."""
    fleet, wanted = bench.fleet, COUNTS[cell.name] // (50 if bench.quick else 1)
    client = Client(fleet.program(PROGRAM), fleet.scratch)
    with running(using(server, MEMORY, fleet.scratch), fleet.models, fleet.scratch) as started:
        # Learn how quickly they open, and have all code loaded and every pool at its size before the count.
        rate = float(open_some(client, started, cell, 1, LONG))
        # None may expire before the last is open.
        life = 1.2 * wanted / rate + 10 if cell is SMALL else LONG
        before, begun, opened = started.resident_bytes(), time.monotonic(), 0
        while opened < wanted:
            opened += open_some(client, started, cell, max((wanted - opened) / rate, 0.5), life)
        seconds, full = time.monotonic() - begun, started.resident_bytes()
        text = f"{opened:,} sessions, H {cell.hidden_size}: {(full - before) / opened:,.0f} bytes each"
        bench.console.print(text, highlight=False)
        left = lowest(started, life, before) if cell is SMALL else None
    bench.report.idle = [*bench.report.idle, Idle(cell.hidden_size, opened, seconds, before, full, left)]


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


def restarts(bench: Bench, server: Server) -> None:
    """Start the service with a full and with an empty sqlite store, in turn."""
    fleet, wanted = bench.fleet, STORED // (50 if bench.quick else 1)
    full, empty = fleet.scratch / "full", fleet.scratch / "empty"
    full.mkdir(exist_ok=True)
    empty.mkdir(exist_ok=True)
    client, opened, rate = Client(fleet.program(PROGRAM), fleet.scratch), 0, 0.0
    with running(using(server, SQLITE, full), fleet.models, fleet.scratch) as started:
        while opened < wanted:
            seconds = max((wanted - opened) / rate, 0.5) if rate else 1.0
            some = open_some(client, started, SMALL, seconds, LONG)
            opened, rate = opened + some, some / seconds
    times: dict[Path, list[float]] = {full: [], empty: []}
    for _ in range(bench.rounds.count):
        for folder, taken in times.items():
            begun = time.monotonic()
            with running(using(server, SQLITE, folder), fleet.models, fleet.scratch):
                taken.append(time.monotonic() - begun)
    stored, none = (", ".join(f"{seconds:.2f}" for seconds in taken) for taken in times.values())
    bench.console.print(f"ready with {opened:,} in sqlite after {stored} s, with none after {none} s", highlight=False)
    bench.report.restarts = Restarts(opened, tuple(times[full]), tuple(times[empty]))
