"""The benchmark in units: each is measured whole and then written, so that a run which is cut can go on."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.fleet import Fleet
from benchmarks.servers import FAILURES, Server

if TYPE_CHECKING:
    from benchmarks.bodies import Cell
    from benchmarks.report import Report
    from benchmarks.rounds import Rounds

# Before so many seconds of work are done, their pace says little.
MIN_PACED = 60
# A unit that takes so many times as long as expected, and a minute, hangs.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class Unit:
    """What is measured in one go, and for how many seconds about; `there`: an earlier run has done it.

    Once a unit has failed, later ones of the same `subject` are left out.
    """

    name: str
    seconds: float
    there: bool
    run: Callable[[], None]
    subject: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part of the benchmark gets; it adds what it measures to the report."""

    servers: Sequence[Server]
    cells: Sequence["Cell"]
    rounds: "Rounds"
    quick: bool
    report: "Report"
    console: Console
    fleet: Fleet

    def server(self, name: str) -> Server | None:
        """A server that is to be measured, by its name."""
        return next((server for server in self.servers if server.name == name), None)


class Pace:
    """Seconds that are expected and spent, for the time left."""

    def __init__(self, expected: float) -> None:
        self._left = expected
        self._done = 0.0
        self._begun = time.monotonic()

    def did(self, seconds: float) -> None:
        """Work that was expected to take so long is done."""
        self._left -= seconds
        self._done += seconds

    @property
    def spent(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds that the rest takes, if it goes on as it went so far."""
        return self._left * (self.spent / self._done if self._done >= MIN_PACED else 1)


def run(parts: Mapping[str, Sequence[Unit]], bench: Bench, save: Callable[[], object]) -> bool:
    """Run all units that are not there yet, in order; says whether all could be. Saves after each of them."""
    pace, failed, fine = Pace(expected(parts)), set[tuple[str, str]](), True
    with bar(bench.console, expected(parts)) as advance:
        for part, units in parts.items():
            with bench.fleet:
                for unit in units:
                    if unit.there or (part, unit.subject) in failed:
                        continue
                    begun = time.monotonic()
                    try:
                        with within(60 + PATIENCE * unit.seconds):
                            unit.run()
                    except FAILURES as error:
                        fine = False
                        failed.add((part, unit.subject))
                        leave_out(bench, part, f"{part}, {unit.name}: {str(error).splitlines()[0]}")
                    save()
                    pace.did(unit.seconds)
                    took = f"{time.monotonic() - begun:.0f} s ({unit.seconds:.0f} expected)"
                    left = f"{clock(pace.spent)} gone, about {clock(pace.left)} left"
                    bench.console.print(f"{part}, {unit.name}: {took}; {left}", highlight=False, style="bold")
                    advance(unit.seconds, f"{part}; about {clock(pace.left)} left")
    return fine


def expected(parts: Mapping[str, Sequence[Unit]]) -> float:
    """Seconds of all that is not there yet."""
    return sum(unit.seconds for units in parts.values() for unit in units if not unit.there)


def leave_out(bench: Bench, part: str, what: str) -> None:
    """Say that something was not measured."""
    bench.console.print(f"left out: {what}", highlight=False)
    lines = bench.report.left_out.setdefault(part, [])
    if what not in lines:
        lines.append(what)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, so that nobody need watch; only in the main thread."""

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02}"


@contextmanager
def bar(console: Console, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, nothing elsewhere; what it gives advances it by so many seconds and sets its text."""
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as shown:
        task = shown.add_task("", total=total)
        yield lambda seconds, text: shown.update(task, advance=seconds, description=text)
