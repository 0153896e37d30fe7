"""Throughput against latency: every server under fixed arrival rates, from a fifth of its capacity to three times."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.apart import apart, on_the_last_core
from benchmarks.bodies import Cell
from benchmarks.load import drive
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.openloop import PROGRAM, Arrivals, arrive
from benchmarks.programs import compiled
from benchmarks.rounds import Entry, Rounds, entries
from benchmarks.servers import Server, running
from benchmarks.table import OURS

# Of the rate that the server reached in closed loop just before.
FRACTIONS = (0.2, 0.5, 0.8, 1.0, 1.5, 3.0)
FULL, OVERLOAD = 1.0, FRACTIONS[-1]
# Servers beside ours are asked less, so that a run takes minutes: what they do before, near and past their limit.
FEWER_FRACTIONS = (0.2, 0.5, 0.8, 1.0, 1.5)
FEWER_CELLS = ("step", "small", "medium")
# Enough for a p99, if they come in time.
MIN_ARRIVALS = 600
MAX_SECONDS = 3
# Long enough for every queue to fill: what comes after that is what counts.
OVERLOAD_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Point:
    """A server in one dialect on one cell, under arrivals at `fraction` of its `capacity` in requests a second.

    `peak_bytes` is the most resident memory that the server had meanwhile.
    """

    cell: str
    server: str
    dialect: str
    capacity: float
    fraction: float
    arrivals: Arrivals
    peak_bytes: int


def sweep(
    servers: Sequence[Server], cells: Sequence[Cell], rounds: Rounds, places: tuple[Path, Path], console: Console
) -> list[Point]:
    """All points, one server after the other, each alone on its cores; cells of a single client are left out.

    Capacity and arrivals are measured alike: the load has the last core for itself, and the server all others. Our
    service on all cells, the others on fewer.
    """
    models, scratch = places
    points = []
    with compiled(PROGRAM) as program:
        for server in servers:
            chosen = [cell for cell in cells if cell.connections > 1]
            if server.name != OURS:
                chosen = [cell for cell in chosen if cell.name in FEWER_CELLS]
            fractions = FRACTIONS if server.name == OURS else FEWER_FRACTIONS
            with running(apart(server), models, scratch) as started, on_the_last_core():
                for cell in chosen:
                    for entry in entries(cell, started, rounds, scratch):
                        points += curve(program, entry, fractions, rounds, scratch, console)
    return points


def curve(
    program: Path, entry: Entry, fractions: Sequence[float], rounds: Rounds, scratch: Path, console: Console
) -> list[Point]:
    """One server's points on one cell, in one dialect."""
    capacity = drive(entry.server, entry.call, entry.cell.connections, entry.seconds, scratch).rate
    points = []
    for fraction in fractions:
        rate = fraction * capacity
        seconds = min(max(rounds.seconds, MIN_ARRIVALS / max(rate, 1e-3)), MAX_SECONDS)
        seconds = OVERLOAD_SECONDS if fraction == OVERLOAD else seconds
        reset_peak(entry.server)
        taken = arrive(program, entry.server, entry.call, rate, seconds)
        points.append(Point(*entry.key, capacity, fraction, taken, peak_bytes(entry.server)))
        outcome = f"{taken.goodput:.1f} answered a second, {taken.refused} refused, {taken.failed} failed"
        console.print(f"{entry}: {rate:.1f} arrivals a second: {outcome}", highlight=False)
    return points
