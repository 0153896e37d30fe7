"""The service beside what users would write or pick instead: `python -m benchmarks.bench --help`."""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS, Call, Case, Cell, case, largest_error, write_models
from benchmarks.load import Sample, drive
from benchmarks.memory import Peak, peak
from benchmarks.report import Report, Resident
from benchmarks.results import MIN_REQUESTS, Row
from benchmarks.servers import SERVERS, Dialect, Running, Server, running, with_doubles

TOLERANCE = 1e-5
WARM_UP_SECONDS = 2
MAX_SECONDS = 90
QUIET = 0.5
NUMBERS = {
    "float32": "the shortest digits that give the float32 back, as orjson prints float32 arrays",
    "float64": "the 17 digits of its float64, as json.dumps prints array.tolist()",
}


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A server in one dialect on one cell, ready to be driven."""

    cell: Cell
    server: Running
    dialect: Dialect
    call: Call

    def __str__(self) -> str:
        return f"{self.cell.name}, {self.server.server.name} ({self.dialect.name})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for on the command line."""

    servers: Sequence[Server]
    cells: Sequence[Cell]
    rounds: int
    seconds: int
    min_requests: int
    numbers: str
    memory: bool
    write: bool


def entries(cell: Cell, servers: Sequence[Running]) -> list[Entry]:
    """Every server and dialect on a cell, once its answer was found right.

    Raises ValueError naming the server and the difference if an answer is wrong.
    """
    values = case(cell)
    found = []
    for server in servers:
        for dialect in server.server.dialects:
            if dialect.speaks(cell.name):
                call = dialect.call(values)
                check(server, call, values)
                found.append(Entry(cell, server, dialect, call))
    return found


def check(server: Running, call: Call, values: Case) -> None:
    difference = largest_error(call, server.post(call), values)
    if not difference <= TOLERANCE:
        raise ValueError(f"{server.server.name} on {values.cell.name}: off by {difference:.2g}; at most {TOLERANCE:g}")


def run_length(entry: Entry, plan: Plan, scratch: Path) -> int:
    """Seconds in which the server answers enough requests; finding out warms it up."""
    warm_up = drive(entry.server, entry.call, entry.cell.connections, WARM_UP_SECONDS, scratch)
    enough = 1.3 * plan.min_requests * warm_up.seconds / max(warm_up.requests, 1)
    return min(max(plan.seconds, math.ceil(enough)), MAX_SECONDS)


def load(plan: Plan, models: Path, scratch: Path, console: Console) -> tuple[list[Row], list[Resident]]:
    """Drive every server on every cell, in turn, round after round."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(server, models, scratch)) for server in plan.servers]
        ready = {server.server.name: server.resident_bytes() for server in servers}
        groups = [entries(cell, servers) for cell in plan.cells]
        lengths = {entry: run_length(entry, plan, scratch) for group in groups for entry in group}
        samples: dict[Entry, list[Sample]] = {entry: [] for entry in lengths}
        for number in range(plan.rounds):
            for group in groups:
                shift = number % len(group)
                for entry in group[shift:] + group[:shift]:
                    taken = drive(entry.server, entry.call, entry.cell.connections, lengths[entry], scratch)
                    samples[entry].append(taken)
                    errors = f", {taken.errors} errors" if taken.errors else ""
                    outcome = f"{taken.rate:.1f} requests/s in {taken.seconds:.0f} s{errors}"
                    console.print(f"round {number + 1}: {entry}: {outcome}", highlight=False)
    rows = [Row(e.cell.name, e.server.server.name, e.dialect.name, tuple(taken)) for e, taken in samples.items()]
    highest = {name: max(s.resident_bytes for row in rows if row.server == name for s in row.samples) for name in ready}
    return rows, [Resident(name, ready[name], highest[name]) for name in ready]


def peaks(plan: Plan, models: Path, scratch: Path) -> list[Peak]:
    """Peak memory of the largest cell in every dialect of every server."""
    cell = plan.cells[-1]
    return [
        peak(server, dialect, cell, models, scratch)
        for server in plan.servers
        for dialect in server.dialects
        if dialect.speaks(cell.name)
    ]


def parse(argv: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    names = [server.name for server in SERVERS]
    cells = [cell.name for cell in CELLS]
    parser.add_argument("--servers", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--cells", nargs="+", choices=cells, default=cells, help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="shortest run of one server on one cell")
    parser.add_argument("--numbers", choices=sorted(NUMBERS), default="float32", help="digits in the JSON bodies")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory of a request out")
    parser.add_argument("--quick", action="store_true", help="one short round, to try things out; writes no files")
    given = parser.parse_args(argv)
    chosen = [server for server in SERVERS if server.name in given.servers]
    return Plan(
        servers=[with_doubles(server) for server in chosen] if given.numbers == "float64" else chosen,
        cells=[cell for cell in CELLS if cell.name in given.cells],
        rounds=1 if given.quick else given.rounds,
        seconds=2 if given.quick else given.seconds,
        min_requests=10 if given.quick else MIN_REQUESTS,
        numbers=given.numbers,
        memory=not given.no_memory,
        write=not given.quick and given.servers == names and given.cells == cells,
    )


def main() -> int:
    plan = parse()
    console = Console(stderr=True)
    load_before = os.getloadavg()[0]
    if load_before > QUIET:
        console.print(f"load average is {load_before:.2f}: the machine is not quiet, and the figures will be noisy")
    with tempfile.TemporaryDirectory(prefix="rnn-bench-") as directory:
        models, scratch = Path(directory, "models"), Path(directory, "scratch")
        models.mkdir()
        scratch.mkdir()
        write_models(models)
        rows, resident = load(plan, models, scratch, console)
        highest = peaks(plan, models, scratch) if plan.memory else []
    report = Report(datetime.now(tz=UTC), load_before, plan.rounds, NUMBERS[plan.numbers], rows, resident, highest)
    report.show()
    for path in report.write() if plan.write else []:
        console.print(f"written: {path}")
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
