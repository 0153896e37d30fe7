"""Closed-loop load: every server on every cell, in turn, round after round."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import Call, Case, Cell, case, largest_error
from benchmarks.load import Sample, drive
from benchmarks.results import Resident, Row
from benchmarks.servers import Dialect, Running, Server, running

TOLERANCE = 1e-5
WARM_UP_SECONDS = 1
WARM_UP_REQUESTS = 20
MAX_SECONDS = 5


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
    """Samples as they come in; servers that run alone are started for their turn in each round."""

    def __init__(self, cells: Sequence[Cell], rounds: Rounds, places: tuple[Path, Path], console: Console) -> None:
        self._cells = cells
        self._rounds = rounds
        self._models, self._scratch = places
        self._console = console
        self._samples: dict[tuple[str, str, str], list[Sample]] = {}
        self._ready: dict[str, int] = {}
        self._lengths: dict[tuple[str, str, str], int] = {}

    def run(self, servers: Sequence[Server]) -> tuple[list[Row], list[Resident]]:
        """Drive all servers; rows by cell, then by server."""
        with ExitStack() as stack:
            kept = [stack.enter_context(self._started(server)) for server in servers if not server.alone]
            groups = [self._entries(cell, kept) for cell in self._cells] if kept else []
            for number in range(self._rounds.count):
                for group in groups:
                    shift = number % len(group)
                    self._drive(number, group[shift:] + group[:shift])
                for server in servers:
                    if server.alone:
                        self._drive_alone(number, server)
        return self._rows(servers), self._residents()

    @contextmanager
    def _started(self, server: Server) -> Iterator[Running]:
        with running(server, self._models, self._scratch) as started:
            self._ready.setdefault(server.name, started.resident_bytes())
            yield started

    def _entries(self, cell: Cell, servers: Iterable[Running]) -> list[Entry]:
        found = []
        for server in servers:
            found += entries(cell, server, self._rounds, self._scratch, known=self._lengths)
        self._lengths |= {entry.key: entry.seconds for entry in found}
        return found

    def _drive_alone(self, number: int, server: Server) -> None:
        with self._started(server) as started:
            for cell in self._cells:
                self._drive(number, self._entries(cell, [started]))

    def _drive(self, number: int, group: Iterable[Entry]) -> None:
        for entry in group:
            taken = drive(entry.server, entry.call, entry.cell.connections, entry.seconds, self._scratch)
            self._samples.setdefault(entry.key, []).append(taken)
            errors = f", {taken.errors} errors" if taken.errors else ""
            outcome = f"{taken.rate:.1f} requests/s in {taken.seconds:.0f} s{errors}"
            self._console.print(f"round {number + 1}: {entry}: {outcome}", highlight=False)

    def _rows(self, servers: Sequence[Server]) -> list[Row]:
        cells = [cell.name for cell in self._cells]
        names = [server.name for server in servers]
        order = sorted(self._samples, key=lambda key: (cells.index(key[0]), names.index(key[1])))
        return [Row(*key, tuple(self._samples[key])) for key in order]

    def _residents(self) -> list[Resident]:
        highest: dict[str, int] = {}
        for (_, name, _), taken in self._samples.items():
            highest[name] = max(highest.get(name, 0), *(sample.resident_bytes for sample in taken))
        return [Resident(name, ready, highest[name]) for name, ready in self._ready.items()]
