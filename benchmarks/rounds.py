"""Closed-loop load: every server on every cell, in turn, round after round."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import table
from benchmarks.bodies import CELLS, Call, Case, Cell, case, largest_error
from benchmarks.load import Sample, drive
from benchmarks.results import Resident, Row, Turns
from benchmarks.servers import Dialect, Running, Server, running
from benchmarks.units import Bench, Unit

TOLERANCE = 1e-5
WARM_UP_SECONDS = 1
WARM_UP_REQUESTS = 20
# However slow a server is: some then answer a dozen large requests in a round, and the table says so.
MAX_SECONDS = 3
# What comes on top of a run: until the server has settled, and the start and end of one that runs alone.
OVERHEAD_SECONDS = 0.5
START_SECONDS = 2
ALONE_SECONDS = {"LitServe": 6, "BentoML": 9, "Ray Serve": 19}
QUICK = (table.OURS, table.OURS_TWICE, table.ECHO)


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often and how long: a run takes `seconds`, or longer until it has `min_requests`."""

    count: int
    seconds: int
    min_requests: int


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A server in one dialect on one cell, found right, warmed up, and for how many seconds it is driven."""

    cell: Cell
    server: Running
    dialect: Dialect
    call: Call
    seconds: int

    def __str__(self) -> str:
        return f"{self.cell.name}, {self.server.server.name} ({self.dialect.name})"

    @property
    def key(self) -> tuple[str, str, str]:
        """Names of cell, server and dialect."""
        return self.cell.name, self.server.server.name, self.dialect.name


def entries(
    cell: Cell,
    server: Running,
    rounds: Rounds,
    scratch: Path,
    *,
    everywhere: bool = False,
    known: Mapping[tuple[str, str, str], int] | None = None,
) -> list[Entry]:
    """A server in the dialects of a cell, or all `everywhere`, once its answers were found right.

    `known` has the seconds of entries that were found before: those are warmed up by a few requests.

    Raises ValueError naming the server and the difference if an answer is wrong.
    """
    values = case(cell)
    found = []
    for dialect in server.server.dialects:
        if everywhere or dialect.speaks(cell.name):
            call = dialect.call(values)
            check(server, call, values)
            seconds = (known or {}).get((cell.name, server.server.name, dialect.name))
            if seconds is None:
                seconds = run_length(server, call, cell, rounds, scratch)
            else:
                warm_up(server, call)
            found.append(Entry(cell, server, dialect, call, seconds))
    return found


def check(server: Running, call: Call, values: Case) -> None:
    difference = largest_error(call, server.post(call), values)
    if not difference <= TOLERANCE:
        raise ValueError(f"{server.server.name} on {values.cell.name}: off by {difference:.2g}; at most {TOLERANCE:g}")


def warm_up(server: Running, call: Call) -> None:
    """A few requests, one after the other; not for long."""
    end = time.monotonic() + WARM_UP_SECONDS
    for _ in range(WARM_UP_REQUESTS):
        if time.monotonic() < end:
            server.post(call)


def run_length(server: Running, call: Call, cell: Cell, rounds: Rounds, scratch: Path) -> int:
    """Seconds in which the server answers enough requests; finding out warms it up."""
    first = drive(server, call, cell.connections, WARM_UP_SECONDS, scratch)
    enough = 1.3 * rounds.min_requests * first.seconds / max(first.requests, 1)
    return min(max(rounds.seconds, math.ceil(enough)), MAX_SECONDS)


class Load:
    """Samples as they come in, a unit for each cell and round; servers that run alone have their own turns."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._cells = [cell for cell in bench.cells if any(keys(server, cell) for server in bench.servers)]
        taken = {(row.cell, row.server, row.dialect): row.samples for row in bench.report.rows}
        self._turns: Turns[tuple[str, str, str], Sample] = Turns(taken)
        self._ready = {line.server: line.ready_bytes for line in bench.report.resident}
        self._lengths: dict[tuple[str, str, str], int] = {}
        self._groups: dict[str, list[Entry]] = {}

    def units(self) -> list[Unit]:
        """Rounds one after the other; in each, the cells, and then the servers that run alone."""
        kept = [server for server in self._bench.servers if not server.alone]
        alone = [server for server in self._bench.servers if server.alone]
        found = []
        for number in range(self._bench.rounds.count):
            for cell in self._cells if kept else []:
                group = [key for server in kept for key in keys(server, cell)]
                run = partial(self._drive_kept, number, cell, kept)
                there = not self._turns.lack(group, number)
                first = len(group) * (START_SECONDS if cell is self._cells[0] else WARM_UP_SECONDS)
                seconds = sum(map(self._seconds, group)) + (first if number == 0 else 0)
                found.append(Unit(f"round {number + 1}, {cell.name}", seconds, there, run, cell.name))
            for server in alone:
                group = [key for cell in self._cells for key in keys(server, cell)]
                run = partial(self._drive_alone, number, server)
                there = not self._turns.lack(group, number)
                seconds = start_seconds(server) + sum(self._seconds(key) + WARM_UP_SECONDS / 2 for key in group)
                found.append(Unit(f"round {number + 1}, {server.name}", seconds, there, run, server.name))
        return found

    def _seconds(self, key: tuple[str, str, str]) -> float:
        """What a run takes, about: the slow ones as long as they may."""
        cell, server, dialect = key
        slow = cell == "large" and dialect == "json" and server not in QUICK
        return OVERHEAD_SECONDS + (MAX_SECONDS + 1 if slow else self._bench.rounds.seconds)

    def _drive_kept(self, number: int, cell: Cell, servers: Sequence[Server]) -> None:
        if cell.name not in self._groups:
            self._groups[cell.name] = self._entries(cell, [self._started(server) for server in servers])
        group = self._groups[cell.name]
        shift = number % len(group)
        self._drive(number, group[shift:] + group[:shift])

    def _drive_alone(self, number: int, server: Server) -> None:
        fleet = self._bench.fleet
        with running(server, fleet.models, fleet.scratch) as started:
            self._ready.setdefault(server.name, started.resident_bytes())
            for cell in self._cells:
                self._drive(number, self._entries(cell, [started]))

    def _started(self, server: Server) -> Running:
        started = self._bench.fleet.server(server)
        self._ready.setdefault(server.name, started.resident_bytes())
        return started

    def _entries(self, cell: Cell, servers: Iterable[Running]) -> list[Entry]:
        found = []
        for server in servers:
            found += entries(cell, server, self._bench.rounds, self._bench.fleet.scratch, known=self._lengths)
        self._lengths |= {entry.key: entry.seconds for entry in found}
        return found

    def _drive(self, number: int, group: Iterable[Entry]) -> None:
        samples = {}
        for entry in group:
            taken = drive(entry.server, entry.call, entry.cell.connections, entry.seconds, self._bench.fleet.scratch)
            samples[entry.key] = taken
            errors = f", {taken.errors} errors" if taken.errors else ""
            outcome = f"{taken.rate:.1f} requests/s in {taken.seconds:.0f} s{errors}"
            self._bench.console.print(f"round {number + 1}: {entry}: {outcome}", highlight=False)
        # Together, or not at all: a group of which a part failed would compare different moments.
        for key, taken in samples.items():
            self._turns.add(key, taken)
        self._bench.report.rows, self._bench.report.resident = self._rows(), self._residents()

    def _rows(self) -> list[Row]:
        cells = [cell.name for cell in CELLS]
        names = [server.name for server in table.servers()]
        order = sorted(self._turns.samples, key=lambda key: (cells.index(key[0]), names.index(key[1])))
        return [Row(*key, tuple(self._turns.samples[key])) for key in order if self._turns.samples[key]]

    def _residents(self) -> list[Resident]:
        highest: dict[str, int] = {}
        for (_, name, _), taken in self._turns.samples.items():
            highest[name] = max([highest.get(name, 0), *(sample.resident_bytes for sample in taken)])
        return [Resident(name, ready, highest[name]) for name, ready in self._ready.items() if name in highest]


def start_seconds(server: Server) -> float:
    """Start and end of a server, about."""
    return next((seconds for name, seconds in ALONE_SECONDS.items() if server.name.startswith(name)), START_SECONDS)


def keys(server: Server, cell: Cell) -> list[tuple[str, str, str]]:
    """A server's rows on a cell."""
    return [(cell.name, server.name, dialect.name) for dialect in server.dialects if dialect.speaks(cell.name)]
