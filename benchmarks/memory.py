"""How much memory one request takes at its peak, beside the bytes that it sends and gets."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.bodies import CELLS, Cell, case
from benchmarks.rounds import start_seconds
from benchmarks.servers import Dialect, Running, Server, running
from benchmarks.units import Bench, Unit

# See proc_pid_clear_refs(5): writing 5 sets the peak (VmHWM) back to what is resident now.
RESET_PEAK = "5"


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes of one request, and the most that the server's resident memory rose while it ran."""

    server: str
    dialect: str
    cell: str
    body_bytes: int
    reply_bytes: int
    peak_bytes: int

    @property
    def ratio(self) -> float:
        """Peak memory in multiples of body + reply."""
        return self.peak_bytes / (self.body_bytes + self.reply_bytes)


def units(bench: Bench) -> list[Unit]:
    """The large cell, every server in every dialect."""
    cell = CELLS[-1]
    have = {(found.server, found.dialect) for found in bench.report.peaks}

    def measure(server: Server, dialect: Dialect) -> None:
        found = peak(server, dialect, cell, bench.fleet.models, bench.fleet.scratch)
        bench.console.print(f"{server.name} ({dialect.name}): {found.ratio:.1f} × body + reply", highlight=False)
        bench.report.peaks = [*bench.report.peaks, found]

    return [
        Unit(
            f"{server.name} ({dialect.name})",
            start_seconds(server) + 3,
            (server.name, dialect.name) in have,
            partial(measure, server, dialect),
            server.name,
        )
        for server in bench.servers
        for dialect in server.dialects
        if dialect.speaks(cell.name)
    ]


def peak(server: Server, dialect: Dialect, cell: Cell, models: Path, logs: Path) -> Peak:
    """Send one request of the cell to a fresh process.

    A single step for the same model comes first, so that weights and modules loaded at first use are not counted.
    """
    call, warm_up = dialect.call(case(cell)), dialect.call(case(replace(cell, batch=1, steps=1)))
    with running(server, models, logs) as started:
        started.post(warm_up)
        reset_peak(started)
        before = peak_bytes(started)
        reply = started.post(call)
        rise = peak_bytes(started) - before
    return Peak(server.name, dialect.name, cell.name, len(call.body), len(reply), rise)


def reset_peak(server: Running) -> None:
    for process in server.tree():
        Path(f"/proc/{process.pid}/clear_refs").write_text(RESET_PEAK)


def peak_bytes(server: Running) -> int:
    """Sum of VmHWM over the server's processes; their peaks need not have come at one moment."""
    return sum(high_water_bytes(process.pid) for process in server.tree())


def high_water_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kib)
