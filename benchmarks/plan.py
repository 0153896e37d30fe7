"""What is to be measured: the command line of `python -m benchmarks.bench`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS, Cell
from benchmarks.parts import PARTS
from benchmarks.results import MIN_REQUESTS
from benchmarks.rounds import Rounds
from benchmarks.servers import Server
from benchmarks.table import missing, servers, with_doubles

NUMBERS = {
    "float32": "the shortest digits that give the float32 back, as orjson prints float32 arrays",
    "float64": "the 17 digits of its float64, as json.dumps prints array.tolist()",
}
ABOUT = """\
The service beside what users would write or pick instead.

Every result is written as soon as it is there, to the file of --onto; the same command goes on where a run was cut.
The rivals (LitServe, BentoML, Ray Serve) are measured if their environments exist: `python -m benchmarks.rivals`.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. Results go to `onto`, tables and pictures to docs/ under `output`, if there is one."""

    servers: Sequence[Server]
    cells: Sequence[Cell]
    parts: Sequence[str]
    rounds: Rounds
    numbers: str
    quick: bool
    onto: Path | None
    output: Path | None
    again: bool
    estimate: bool


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=ABOUT,
        epilog="parts:\n" + "\n".join(f"  {name:9} {about}" for name, (about, _) in PARTS.items()),
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
    found.add_argument("--onto", type=Path, help="results (JSON): what is there is kept, what is not is measured")
    found.add_argument("--again", action="store_true", help="measure the parts anew that are there already")
    found.add_argument("--estimate", action="store_true", help="say how long it would take, and end")
    found.add_argument(
        "--output", type=Path, help="folder under which docs/ is written; default: this one, if nothing was left out"
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
        if server.name not in cannot and (server.name in given.servers if given.servers else not server.on_request)
    ]
    whole = not given.servers and not given.quick and (given.cells, given.parts) == ([c.name for c in CELLS], [*PARTS])
    return Plan(
        servers=[with_doubles(server) for server in chosen] if given.numbers == "float64" else chosen,
        cells=[cell for cell in CELLS if cell.name in given.cells],
        parts=given.parts,
        rounds=Rounds(1, 1, 10) if given.quick else Rounds(given.rounds, given.seconds, MIN_REQUESTS),
        numbers=given.numbers,
        quick=given.quick,
        onto=given.onto,
        output=given.output or (Path() if whole else None),
        again=given.again,
        estimate=given.estimate,
    )
