"""What a request costs our service as it grows: CPU time against B, T, H and the number of clients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.bodies import Cell
from benchmarks.load import Sample, drive
from benchmarks.rounds import Rounds, entries
from benchmarks.servers import Server, running

BASE = Cell("medium", "/rnn/forward", 8, 64, 32, 64, connections=4)
HIDDEN = (16, 64, 256, 512)
AXES = {
    "B": [replace(BASE, batch=value) for value in (1, 2, 4, 8, 16, 32, 64)],
    "T": [replace(BASE, steps=value) for value in (8, 16, 32, 64, 128, 256, 512)],
    "H": [replace(BASE, name=f"hidden-{value}", hidden_size=value) for value in HIDDEN],
    "clients": [replace(BASE, connections=value) for value in (1, 2, 4, 16, 64)],
}


@dataclass(frozen=True, slots=True)
class Cost:
    """One point of an axis: a cell of the given sizes, and what driving it took."""

    axis: str
    value: int
    dialect: str
    cell: Cell
    sample: Sample


@dataclass(frozen=True, slots=True)
class Line:
    """cost = `fixed_ms` + `per_step_us` · B·T, by least squares of the relative error; `worst` is its largest."""

    dialect: str
    fixed_ms: float
    per_step_us: float
    worst: float
    worst_at: int


def extra_cells() -> tuple[Cell, ...]:
    """Cells whose models the benchmark's own cells do not have."""
    return tuple(AXES["H"])


def axis_value(axis: str, cell: Cell) -> int:
    sizes = {"B": cell.batch, "T": cell.steps, "H": cell.hidden_size, "clients": cell.connections}
    return sizes[axis]


def costs(
    server: Server, axes: Mapping[str, Sequence[Cell]], rounds: Rounds, places: tuple[Path, Path], console: Console
) -> Iterator[Cost]:
    """Every cell of the axes in every dialect; the service runs alone."""
    models, scratch = places
    with running(server, models, scratch) as started:
        for axis, cells in axes.items():
            for cell in cells:
                # A dialect that is measured on some cells only is measured on all of these.
                for entry in entries(cell, started, rounds, scratch, everywhere=True):
                    sample = drive(started, entry.call, cell.connections, entry.seconds, scratch)
                    console.print(
                        f"{axis} = {axis_value(axis, cell)}: {entry}: {sample.cpu_ms:.2f} ms", highlight=False
                    )
                    yield Cost(axis, axis_value(axis, cell), entry.dialect.name, cell, sample)


def lines(measured: Sequence[Cost]) -> list[Line]:
    """The straight line through the costs against B·T, for each dialect, and where it is furthest off."""
    found = []
    for dialect in dict.fromkeys(cost.dialect for cost in measured):
        points = [cost for cost in measured if cost.dialect == dialect and cost.axis in {"B", "T"}]
        work = np.array([cost.cell.batch * cost.cell.steps for cost in points], dtype=float)
        cpu = np.array([cost.sample.cpu_ms for cost in points])
        design = np.stack([1 / cpu, work / cpu], axis=1)
        (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(cpu), rcond=None)
        off = (fixed + slope * work) / cpu - 1
        worst = int(np.abs(off).argmax())
        found.append(Line(dialect, float(fixed), float(1e3 * slope), float(off[worst]), int(work[worst])))
    return found
