"""Throughput against latency: every server under fixed arrival rates, from a quarter of its capacity to three times."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import Cell
from benchmarks.load import drive
from benchmarks.openloop import Arrivals, arrive, client
from benchmarks.rounds import Entry, Rounds, entries
from benchmarks.servers import Server, running

# Of the rate that the server reached in closed loop just before.
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 3.0)
OVERLOAD = FRACTIONS[-1]
MIN_ARRIVALS = 50
MAX_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Point:
    """A server in one dialect on one cell, under arrivals at `fraction` of its `capacity` in requests a second."""

    cell: str
    server: str
    dialect: str
    capacity: float
    fraction: float
    arrivals: Arrivals


def sweep(
    servers: Sequence[Server], cells: Sequence[Cell], rounds: Rounds, places: tuple[Path, Path], console: Console
) -> list[Point]:
    """All points, one server after the other, each alone on the machine; cells of a single client are left out."""
    models, scratch = places
    points = []
    with client() as program:
        for server in servers:
            with running(server, models, scratch) as started:
                for cell in (cell for cell in cells if cell.connections > 1):
                    for entry in entries(cell, started, rounds, scratch):
                        points += curve(program, entry, rounds, scratch, console)
    return points


def curve(program: Path, entry: Entry, rounds: Rounds, scratch: Path, console: Console) -> list[Point]:
    """One server's points on one cell, in one dialect."""
    capacity = drive(entry.server, entry.call, entry.cell.connections, entry.seconds, scratch).rate
    points = []
    for fraction in FRACTIONS:
        rate = fraction * capacity
        seconds = min(max(rounds.seconds, MIN_ARRIVALS / max(rate, 1e-3)), MAX_SECONDS)
        taken = arrive(program, entry.server, entry.cell, entry.call, rate, seconds)
        points.append(Point(*entry.key, capacity, fraction, taken))
        outcome = f"{taken.goodput:.1f} answered a second, {taken.refused} refused, {taken.failed} failed"
        console.print(f"{entry}: {rate:.1f} arrivals a second: {outcome}", highlight=False)
    return points
