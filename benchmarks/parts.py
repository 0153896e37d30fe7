"""The parts of the benchmark: each gives the units that it consists of."""

from collections.abc import Callable, Mapping

from benchmarks import arrivals, batching, beside, idle, memory, scaling, sessions, stages, streams
from benchmarks.batching import kernel_ms
from benchmarks.bodies import CELLS
from benchmarks.rounds import Load
from benchmarks.units import Bench, Unit


def load(bench: Bench) -> list[Unit]:
    """Closed loop, every server in turn; the arithmetic of the large cell alone, once for each round."""

    def kernel() -> None:
        bench.report.kernel_ms = [*bench.report.kernel_ms, kernel_ms(CELLS[-1])]

    units = Load(bench).units()
    turns = [number for number, unit in enumerate(units) if unit.subject == CELLS[-1].name]
    for number, turn in reversed([*enumerate(turns)]):
        name, there = f"round {number + 1}, kernel alone", number < len(bench.report.kernel_ms)
        units.insert(turn + 1, Unit(name, 0.5, there, kernel, "kernel"))
    return units


# What each is, and its units.
PARTS: Mapping[str, tuple[str, Callable[[Bench], list[Unit]]]] = {
    "load": ("closed loop, every server in turn", load),
    "open": (
        "fixed arrival rates: ours up to three times the capacity, the others to half as much again",
        arrivals.units,
    ),
    "beside": ("steps while large requests run beside them", beside.units),
    "streams": ("steps a second over 1, 16 and 1,000 streams, NDJSON and WebSocket", streams.units),
    "batching": ("rows of many clients together and one at a time", batching.units),
    "stages": ("where our service's time goes", stages.units),
    "cost": ("CPU time of our service against B, T, H and clients", scaling.units),
    "sessions": ("steps of sessions with every store, beside stateless ones; 10 and 10,000 live", sessions.units),
    "memory": ("peak memory of one large request", memory.units),
    "idle": ("memory of sessions that nobody uses, and of expired ones; restart with 100,000 in sqlite", idle.units),
}
# The fields of a report that each fills.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "load": ("rows", "resident", "kernel_ms"),
    "open": ("points",),
    "beside": ("beside",),
    "streams": ("streams",),
    "batching": ("gains",),
    "stages": ("stages",),
    "cost": ("costs",),
    "sessions": ("sessions",),
    "memory": ("peaks",),
    "idle": ("idle", "restarts"),
}
