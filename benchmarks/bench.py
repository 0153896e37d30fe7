"""The service beside what users would write or pick instead: `python -m benchmarks.bench --help`.

The rivals (LitServe, BentoML, Ray Serve) are measured if their environments exist: `python -m benchmarks.rivals`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS, Cell, write_models, write_replies
from benchmarks.memory import Peak, peak
from benchmarks.report import Report
from benchmarks.results import MIN_REQUESTS
from benchmarks.rounds import Load, Rounds
from benchmarks.scaling import AXES, costs, extra_cells
from benchmarks.servers import Server
from benchmarks.stages import breakdowns
from benchmarks.sweep import sweep
from benchmarks.table import OURS, missing, servers, with_doubles

QUIET = 0.5
NUMBERS = {
    "float32": "the shortest digits that give the float32 back, as orjson prints float32 arrays",
    "float64": "the 17 digits of its float64, as json.dumps prints array.tolist()",
}
PARTS = {
    "load": "closed loop, every server in turn",
    "memory": "peak memory of one large request",
    "open": "fixed arrival rates, up to three times the capacity",
    "stages": "where our service's time goes",
    "cost": "CPU time of our service against B, T, H and clients",
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


def measure(plan: Plan, load_before: float, console: Console) -> Report:
    """Run the parts that were asked for, one after the other."""
    with tempfile.TemporaryDirectory(prefix="rnn-bench-") as directory:
        places = models, scratch = Path(directory, "models"), Path(directory, "scratch")
        models.mkdir()
        scratch.mkdir()
        write_models(models, (*CELLS, *extra_cells()))
        write_replies(Path(directory, "replies"))
        ours = [server for server in plan.servers if server.name == OURS]
        loaded = "load" in plan.parts
        rows, residents = Load(plan.cells, plan.rounds, places, console).run(plan.servers if loaded else ())
        highest = peaks(plan, models, scratch) if "memory" in plan.parts else []
        points = sweep(plan.servers, plan.cells, plan.rounds, places, console) if "open" in plan.parts else []
        stages = [
            one
            for server in ours
            if "stages" in plan.parts
            for one in breakdowns(server, plan.cells, plan.rounds, places)
        ]
        axes = {name: cells[::3] if plan.quick else cells for name, cells in AXES.items()}
        spent = [
            one for server in ours if "cost" in plan.parts for one in costs(server, axes, plan.rounds, places, console)
        ]
    when, numbers = datetime.now(tz=UTC), NUMBERS[plan.numbers]
    return Report(when, load_before, plan.rounds.count, numbers, rows, residents, highest, points, stages, spent)


def peaks(plan: Plan, models: Path, scratch: Path) -> list[Peak]:
    """Peak memory of the largest cell in every dialect of every server."""
    cell = plan.cells[-1]
    return [
        peak(server, dialect, cell, models, scratch)
        for server in plan.servers
        for dialect in server.dialects
        if dialect.speaks(cell.name)
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        epilog="parts: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [server.name for server in servers()]
    cells = [cell.name for cell in CELLS]
    found.add_argument("--servers", nargs="+", choices=names, help="default: all whose environments exist")
    found.add_argument("--cells", nargs="+", choices=cells, default=cells, help="default: all")
    found.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    found.add_argument("--rounds", type=int, default=5, help="of the closed loop")
    found.add_argument("--seconds", type=int, default=4, help="shortest run of one server on one cell")
    found.add_argument("--numbers", choices=sorted(NUMBERS), default="float32", help="digits in the JSON bodies")
    found.add_argument("--quick", action="store_true", help="one short round, to try things out")
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
    lacking = {name for names in absent.values() for name in names}
    chosen = [
        server
        for server in servers()
        if server.name not in lacking and (not given.servers or server.name in given.servers)
    ]
    whole = not given.servers and not given.quick and given.cells == [cell.name for cell in CELLS]
    return Plan(
        servers=[with_doubles(server) for server in chosen] if given.numbers == "float64" else chosen,
        cells=[cell for cell in CELLS if cell.name in given.cells],
        parts=given.parts,
        rounds=Rounds(1, 2, 10) if given.quick else Rounds(given.rounds, given.seconds, MIN_REQUESTS),
        numbers=given.numbers,
        quick=given.quick,
        output=given.output or (Path() if whole and given.parts == list(PARTS) else None),
    )


def main() -> int:
    console = Console(stderr=True)
    plan = parse(console)
    load_before = os.getloadavg()[0]
    if load_before > QUIET:
        console.print(f"load average is {load_before:.2f}: the machine is not quiet, and the figures will be noisy")
    report = measure(plan, load_before, console)
    report.show()
    for path in report.write(plan.output) if plan.output else []:
        console.print(f"written: {path}")
    return 1 if any(row.errors for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
