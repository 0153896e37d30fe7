"""Open loop in units: our service a cell at a time, every other server at once, since some take long to start."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.bodies import Cell
from benchmarks.rounds import keys, start_seconds
from benchmarks.servers import Server
from benchmarks.sweep import FEWER_CELLS, FEWER_FRACTIONS, FRACTIONS, MAX_SECONDS, OVERLOAD_SECONDS, sweep
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit

# Without a limit to reach, or the same as another one's.
LEFT_OUT = ("step-1", "batch")
# So long, ours has enough answers for a p99.9 of most rates.
OUR_SECONDS = 3
# Between two rates, and what finding out the capacity takes.
PAUSE_SECONDS, FIRST_SECONDS = 0.7, 4


def units(bench: Bench) -> list[Unit]:
    """Fixed arrival rates: shares of what each server did in closed loop just before."""
    have = {(point.cell, point.server) for point in bench.report.points}
    cells = [cell for cell in bench.cells if cell.name not in LEFT_OUT]
    found = []
    for server in bench.servers:
        ours = server.name == OURS
        chosen = [cell for cell in cells if keys(server, cell) and (ours or cell.name in FEWER_CELLS)]
        for group in [[cell] for cell in chosen] if ours else [chosen] if chosen else []:
            names = ", ".join(cell.name for cell in group)
            there = all((cell.name, server.name) in have for cell in group)
            run = partial(measure, bench, server, group)
            found.append(Unit(f"{server.name}, {names}", seconds(server, group), there, run, server.name))
    return found


def measure(bench: Bench, server: Server, cells: Sequence[Cell]) -> None:
    """The curves of a server on some cells, in every dialect."""
    rounds, fleet = bench.rounds, bench.fleet
    if server.name == OURS and not bench.quick:
        rounds = replace(rounds, seconds=OUR_SECONDS)
    points = sweep([server], cells, rounds, (fleet.models, fleet.scratch), bench.console)
    bench.report.points = [*bench.report.points, *points]


def seconds(server: Server, cells: Sequence[Cell]) -> float:
    """What it takes, about."""
    curves = [key for cell in cells for key in keys(server, cell)]
    if server.name == OURS:
        one = FIRST_SECONDS + (len(FRACTIONS) - 1) * (OUR_SECONDS + PAUSE_SECONDS) + 1.5 * OVERLOAD_SECONDS
        return 2 + one * len(curves)
    lengths = [MAX_SECONDS if cell == "medium" else 1 for cell, _, _ in curves]
    curve = sum(FIRST_SECONDS + len(FEWER_FRACTIONS) * (length + PAUSE_SECONDS) for length in lengths)
    return start_seconds(server) + curve
