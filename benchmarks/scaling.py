"""What a request costs our service as it grows: CPU time against B, T, H and the number of clients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.bodies import Cell
from benchmarks.load import Sample, drive
from benchmarks.results import Spread, Turns
from benchmarks.rounds import entries
from benchmarks.servers import Server
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit

BASE = Cell("medium", "/rnn/forward", 8, 64, 32, 64, connections=4)
HIDDEN = (16, 64, 256, 512)
AXES = {
    "B": [replace(BASE, batch=value) for value in (1, 2, 4, 8, 16, 32, 64)],
    "T": [replace(BASE, steps=value) for value in (8, 32, 128, 512)],
    "H": [replace(BASE, name=f"hidden-{value}", hidden_size=value) for value in HIDDEN],
    "clients": [replace(BASE, connections=value) for value in (1, 4, 16, 64)],
}


# The part of the error that two lines may leave, if there is to be a bend.
BENT = 0.5
Floats = NDArray[np.float64]
# More take long, and the line goes through all of them.
MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """One point of an axis: a cell of the given sizes, and what driving it took in each round."""

    axis: str
    value: int
    dialect: str
    cell: Cell
    samples: tuple[Sample, ...]

    @property
    def cpu_ms(self) -> Spread:
        """CPU milliseconds of a request."""
        return Spread.of(sample.cpu_ms for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Line:
    """cost = `fixed_ms` + `per_step_us` · B·T, by least squares of the relative error; `worst` is its largest.

    `bend_at` is the B·T at which two lines that meet fit best: `before_us` and `after_us` a step. `error` and
    `bent_error` are the root mean squares of the relative errors without and with it.
    """

    dialect: str
    fixed_ms: float
    per_step_us: float
    worst: float
    worst_at: int
    error: float
    bend_at: int
    before_us: float
    after_us: float
    bent_error: float

    @property
    def bends(self) -> bool:
        """Whether the second line explains most of what the first does not."""
        return self.bent_error < BENT * self.error


def extra_cells() -> tuple[Cell, ...]:
    """Cells whose models the benchmark's own cells do not have."""
    return tuple(AXES["H"])


def axis_value(axis: str, cell: Cell) -> int:
    sizes = {"B": cell.batch, "T": cell.steps, "H": cell.hidden_size, "clients": cell.connections}
    return sizes[axis]


def units(bench: Bench) -> list[Unit]:
    """Every cell of the axes in every dialect, an axis at a time, round after round; the service runs alone."""
    server = bench.server(OURS)
    if not server:
        return []
    axes = {name: cells[::3] if bench.quick else cells for name, cells in AXES.items()}
    taken = {(cost.axis, cost.value, cost.dialect): cost.samples for cost in bench.report.costs}
    turns: Turns[tuple[str, int, str], Sample] = Turns(taken)
    found = []
    for number in range(min(bench.rounds.count, MOST_ROUNDS)):
        for axis, cells in axes.items():
            keys = [(axis, axis_value(axis, cell), dialect.name) for cell in cells for dialect in server.dialects]
            run = partial(measure, bench, server, axis, cells, turns)
            found.append(Unit(f"round {number + 1}, {axis}", 2.0 * len(keys), not turns.lack(keys, number), run, axis))
    return found


def measure(
    bench: Bench, server: Server, axis: str, cells: Sequence[Cell], turns: "Turns[tuple[str, int, str], Sample]"
) -> None:
    """One round of an axis."""
    started, scratch, rounds, samples = bench.fleet.server(server), bench.fleet.scratch, bench.rounds, {}
    for cell in cells:
        known = {(cell.name, server.name, dialect.name): rounds.seconds for dialect in server.dialects}
        # A dialect that is measured on some cells only is measured on all of these.
        for entry in entries(cell, started, rounds, scratch, everywhere=True, known=known):
            value = axis_value(axis, cell)
            sample = drive(started, entry.call, cell.connections, entry.seconds, scratch)
            bench.console.print(f"{axis} = {value}: {entry}: {sample.cpu_ms:.2f} ms", highlight=False)
            samples[axis, value, entry.dialect.name] = sample
    for key, sample in samples.items():
        turns.add(key, sample)
    sizes = {(name, axis_value(name, cell)): cell for name, line in AXES.items() for cell in line}
    bench.report.costs = [
        Cost(*key, sizes[key[0], key[1]], tuple(taken)) for key, taken in turns.samples.items() if taken
    ]


def lines(measured: Sequence[Cost]) -> list[Line]:
    """The line through the costs against B·T, for each dialect, where it is furthest off, and where it bends."""
    found = []
    for dialect in dict.fromkeys(cost.dialect for cost in measured):
        points = [cost for cost in measured if cost.dialect == dialect and cost.axis in {"B", "T"}]
        work = np.array([cost.cell.batch * cost.cell.steps for cost in points], dtype=float)
        cpu = np.array([cost.cpu_ms.median for cost in points])
        (fixed, slope), off = fit(cpu, work)
        worst = int(np.abs(off).argmax())
        # Not next to an end, where a single point would be a line of its own.
        inner = np.unique(work)[1:-1] if len(np.unique(work)) > 3 else np.unique(work)
        bent = {at: fit(cpu, work, np.maximum(work - at, 0)) for at in inner}
        at = min(bent, key=lambda at: rms(bent[at][1]))
        (_, before, more), rest = bent[at]
        slopes = (1e3 * before, 1e3 * (before + more))
        straight = (dialect, fixed, 1e3 * slope, float(off[worst]), int(work[worst]), rms(off))
        found.append(Line(*straight, int(at), *slopes, rms(rest)))
    return found


def fit(cpu: Floats, *terms: Floats) -> tuple[list[float], Floats]:
    """Coefficients of 1 and the terms with the least squares of the relative error, and that error at each point."""
    design = np.stack([np.ones_like(cpu), *terms], axis=1)
    coefficients, *_ = np.linalg.lstsq(design / cpu[:, None], np.ones_like(cpu), rcond=None)
    return coefficients.tolist(), design @ coefficients / cpu - 1


def rms(errors: Floats) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(errors**2)))
