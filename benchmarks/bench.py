"""The service beside what users would write or pick instead: `python -m benchmarks.bench --help`.

The rivals (LitServe, BentoML, Ray Serve) are measured if their environments exist: `python -m benchmarks.rivals`.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.batching import CELL as BATCH
from benchmarks.batching import gains, kernel_ms
from benchmarks.beside import beside
from benchmarks.bodies import CELLS, Cell, write_models, write_replies
from benchmarks.idle import idle, restarts
from benchmarks.memory import peak
from benchmarks.report import Report
from benchmarks.results import MIN_REQUESTS
from benchmarks.rounds import Load, Rounds
from benchmarks.scaling import AXES, costs, extra_cells
from benchmarks.servers import Server
from benchmarks.sessions import FEW, MANY, sessions
from benchmarks.stages import breakdowns
from benchmarks.stores import MEMORY, SQLITE, lacking
from benchmarks.streams import streams
from benchmarks.sweep import sweep
from benchmarks.table import OURS, missing, servers, with_doubles
from service.settings import Settings

QUIET = 0.5
NUMBERS = {
    "float32": "the shortest digits that give the float32 back, as orjson prints float32 arrays",
    "float64": "the 17 digits of its float64, as json.dumps prints array.tolist()",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for on the command line."""

    servers: Sequence[Server]
    cells: Sequence[Cell]
    parts: Sequence[str]
    rounds: Rounds
    numbers: str
    quick: bool
    output: Path | None
    onto: Path | None

    @property
    def ours(self) -> Server | None:
        """Our service in one process, if it is to be measured."""
        return next((server for server in self.servers if server.name == OURS), None)


@dataclass(frozen=True, slots=True)
class Bench:
    """A run: the plan, where models and temporary files are, and the report that every part adds to."""

    plan: Plan
    part: str
    places: tuple[Path, Path]
    report: Report
    console: Console

    def load(self) -> None:
        """Closed loop, every server in turn."""
        plan = self.plan
        self.report.kernel_ms = kernel_ms(CELLS[-1])
        self.report.rows, self.report.resident = Load(plan.cells, plan.rounds, self.places, self.console).run(
            plan.servers
        )

    def memory(self) -> None:
        """Peak memory of one large request."""
        cell = self.plan.cells[-1]
        self.report.peaks = [
            peak(server, dialect, cell, *self.places)
            for server in self.plan.servers
            for dialect in server.dialects
            if dialect.speaks(cell.name)
        ]

    def open(self) -> None:
        """Fixed arrival rates, up to three times the capacity."""
        self.report.points = sweep(self.plan.servers, self.plan.cells, self.plan.rounds, self.places, self.console)

    def stages(self) -> None:
        """Where our service's time goes."""
        if server := self.plan.ours:
            self.report.stages = breakdowns(server, self.plan.cells, self.plan.rounds, self.places)

    def cost(self) -> None:
        """CPU time of our service against B, T, H and clients."""
        axes = {name: cells[::3] if self.plan.quick else cells for name, cells in AXES.items()}
        rounds = Rounds(1, 1, self.plan.rounds.min_requests)
        if server := self.plan.ours:
            self.report.costs = list(costs(server, axes, rounds, self.places, self.console))

    def beside(self) -> None:
        """Steps while large requests run beside them."""
        self.report.beside = list(beside(self.plan.servers, self.plan.rounds, self.places, self.console))

    def batching(self) -> None:
        """Rows of many clients together and one at a time."""
        if server := self.plan.ours:
            self.report.gains = list(gains(server, self.plan.rounds, self.places, self.console))

    def streams(self) -> None:
        """Steps a second over 1, 16 and 1,000 streams, NDJSON and WebSocket."""
        self.report.streams, left_out = streams(self.plan.servers, self.plan.rounds, self.places, self.console)
        self.leave_out(left_out)

    def sessions(self) -> None:
        """Steps of sessions with every store, beside stateless ones; with 10 and with 10,000 live."""
        if server := self.plan.ours:
            many = 10 * FEW if self.plan.quick else MANY
            found = sessions(server, self.plan.rounds, self.places, self.console, many=many)
            self.report.sessions, left_out = found
            self.leave_out(left_out)

    def idle(self) -> None:
        """Memory of sessions that nobody uses, and of expired ones; restart with 100,000 in sqlite."""
        absent = lacking(set(Settings.model_fields))
        self.leave_out(
            f"idle sessions in {name}: {absent[name]}" for name in (MEMORY.name, SQLITE.name) if name in absent
        )
        if (server := self.plan.ours) and MEMORY.name not in absent:
            self.report.idle = list(idle(server, self.places, self.console, quick=self.plan.quick))
        if (server := self.plan.ours) and SQLITE.name not in absent:
            count = self.plan.rounds.count
            self.report.restarts = restarts(server, self.places, count, self.console, quick=self.plan.quick)

    def leave_out(self, what: Sequence[str] | Iterator[str]) -> None:
        """Say that something was not measured."""
        for line in what:
            self.console.print(f"left out: {line}", highlight=False)
            self.report.left_out.setdefault(self.part, []).append(line)


PARTS: dict[str, Callable[[Bench], None]] = {
    "load": Bench.load,
    "memory": Bench.memory,
    "open": Bench.open,
    "stages": Bench.stages,
    "cost": Bench.cost,
    "beside": Bench.beside,
    "batching": Bench.batching,
    "streams": Bench.streams,
    "sessions": Bench.sessions,
    "idle": Bench.idle,
}


def measure(plan: Plan, report: Report, console: Console) -> bool:
    """Run the parts that were asked for, one after the other; says whether all could be.

    What is there is written after each of them, since a run takes long.
    """
    fine = True
    with folders() as places:
        for name in plan.parts:
            begun = time.monotonic()
            report.left_out.pop(name, None)
            try:
                PARTS[name](Bench(plan, name, places, report, console))
            except (RuntimeError, ValueError, OSError) as error:
                fine = False
                console.print(f"[red]{name} failed: {error}", highlight=False)
                report.left_out.setdefault(name, []).append(f"{name}: {str(error).splitlines()[0]}")
            console.print(f"{name}: {time.monotonic() - begun:.0f} s")
            if plan.output:
                report.write(plan.output)
    return fine


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """The model repository of all cells, and a place for temporary files."""
    with tempfile.TemporaryDirectory(prefix="rnn-bench-") as directory:
        models, scratch = Path(directory, "models"), Path(directory, "scratch")
        models.mkdir()
        scratch.mkdir()
        write_models(models, (*CELLS, *extra_cells(), BATCH))
        write_replies(Path(directory, "replies"))
        yield models, scratch


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        epilog="parts:\n" + "\n".join(f"  {name:9} {part.__doc__}" for name, part in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [server.name for server in servers()]
    cells = [cell.name for cell in CELLS]
    found.add_argument("--servers", nargs="+", choices=names, help="default: all whose environments exist")
    found.add_argument("--cells", nargs="+", choices=cells, default=cells, help="default: all")
    found.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    found.add_argument("--rounds", type=int, default=5, help="in which the servers take turns")
    found.add_argument("--seconds", type=int, default=1, help="shortest run of one server on one cell")
    found.add_argument("--numbers", choices=sorted(NUMBERS), default="float32", help="digits in the JSON bodies")
    found.add_argument("--quick", action="store_true", help="one short round, to try things out")
    found.add_argument("--onto", type=Path, help="results (JSON) of an earlier run, whose other parts are kept")
    found.add_argument(
        "--output",
        type=Path,
        help="folder under which docs/ and benchmarks/results/ are written; default: this one, if nothing was left out",
    )
    return found


def parse(console: Console, argv: Sequence[str] | None = None) -> Plan:
    """The plan; says which servers cannot be measured, and what to do about it."""
    commands = parser()
    given = commands.parse_args(argv)
    absent = missing()
    for environment, names in absent.items():
        left_out = [name for name in names if not given.servers or name in given.servers]
        if left_out:
            hint = f"create its environment with `python -m benchmarks.rivals {environment}`"
            if given.servers:
                commands.error(f"{', '.join(left_out)} cannot be started: {hint}")
            console.print(f"left out: {', '.join(left_out)}; {hint}", highlight=False)
    cannot = {name for names in absent.values() for name in names}
    chosen = [
        server
        for server in servers()
        if server.name not in cannot and (not given.servers or server.name in given.servers)
    ]
    whole = not given.servers and not given.quick and given.cells == [cell.name for cell in CELLS]
    return Plan(
        servers=[with_doubles(server) for server in chosen] if given.numbers == "float64" else chosen,
        cells=[cell for cell in CELLS if cell.name in given.cells],
        parts=given.parts,
        rounds=Rounds(1, 1, 10) if given.quick else Rounds(given.rounds, given.seconds, MIN_REQUESTS),
        numbers=given.numbers,
        quick=given.quick,
        output=given.output or (Path() if whole and (given.onto or given.parts == list(PARTS)) else None),
        onto=given.onto,
    )


def main() -> int:
    console = Console(stderr=True)
    plan = parse(console)
    # A client and its server have a descriptor each for every one of many thousand connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load_before = os.getloadavg()[0]
    if load_before > QUIET:
        console.print(f"load average is {load_before:.2f}: the machine is not quiet, and the figures will be noisy")
    if plan.onto:
        report = Report.read(plan.onto)
    else:
        report = Report(datetime.now(tz=UTC), load_before, plan.rounds.count, NUMBERS[plan.numbers])
    fine = measure(plan, report, console)
    report.show()
    for path in report.write(plan.output) if plan.output else []:
        console.print(f"written: {path}")
    return 1 if not fine or any(row.errors for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
