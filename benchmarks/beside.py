"""Steps while large requests run beside them: what the long ones cost the short ones."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.bodies import CELLS, case
from benchmarks.load import background, drive
from benchmarks.openloop import PROGRAM, Arrivals, arrive
from benchmarks.results import Spread, Turns
from benchmarks.rounds import entries
from benchmarks.servers import Server
from benchmarks.table import NAIVE, OURS
from benchmarks.units import Bench, Unit

STEP, LARGE = CELLS[0], CELLS[-1]
ALONE = "nothing"
SECONDS = 2
BEFORE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Beside:
    """Steps of one server at `rate` a second while large requests in one format ("nothing": none) kept it busy."""

    server: str
    beside: str
    rate: float
    samples: tuple[Arrivals, ...]

    @property
    def p99_ms(self) -> Spread | None:
        """p99 of the steps, milliseconds; None if there were too few."""
        found = [sample.p99_ms for sample in self.samples if sample.p99_ms is not None]
        return Spread.of(found) if found else None

    def over(self, alone: "Beside") -> Spread | None:
        """Ratio of the p99s, each round by itself."""
        pairs = zip(self.samples, alone.samples, strict=False)
        found = [mine.p99_ms / its.p99_ms for mine, its in pairs if mine.p99_ms and its.p99_ms]
        return Spread.of(found) if found else None


def units(bench: Bench) -> list[Unit]:
    """Our service and the naive one: steps at half of the rate reached in closed loop, alone and beside large ones.

    The large ones come from as many clients as in the closed loop.
    """
    turns: Turns[tuple[str, str], Arrivals] = Turns(
        {(one.server, one.beside): one.samples for one in bench.report.beside}
    )
    rates = {one.server: one.rate for one in bench.report.beside}
    found = []
    for number in range(bench.rounds.count):
        for server in filter(None, map(bench.server, (NAIVE[-1], OURS))):
            names = [ALONE, *(dialect.name for dialect in reversed(server.dialects))]
            keys = [(server.name, name) for name in names]
            run = partial(measure, bench, server, turns, rates)
            there, seconds = not turns.lack(keys, number), len(keys) * (SECONDS + 1.5)
            found.append(Unit(f"round {number + 1}, {server.name}", seconds, there, run, server.name))
    return found


def measure(bench: Bench, server: Server, turns: "Turns[tuple[str, str], Arrivals]", rates: dict[str, float]) -> None:
    """One round of a server."""
    started, scratch = bench.fleet.server(server), bench.fleet.scratch
    (step, *_) = entries(STEP, started, bench.rounds, scratch, known=dict.fromkeys([step_key(server)], SECONDS))
    if server.name not in rates:
        rates[server.name] = drive(started, step.call, STEP.connections, SECONDS, scratch).rate / 2
    rate, samples = rates[server.name], {}
    calls = {dialect.name: dialect.call(case(LARGE)) for dialect in reversed(server.dialects)}
    for name in (ALONE, *calls):
        with ExitStack() as stack:
            if name != ALONE:
                length = 2 * SECONDS + BEFORE_SECONDS
                stack.enter_context(background(started, calls[name], LARGE.connections, length, scratch))
            program = bench.fleet.program(PROGRAM)
            sample = arrive(program, started, step.call, rate, SECONDS, settle=name == ALONE)
        started.settle()
        samples[server.name, name] = sample
        outcome = f"p50 {sample.p50_ms} ms, p99 {sample.p99_ms} ms"
        bench.console.print(f"{server.name}, {rate:.0f} steps/s beside {name}: {outcome}", highlight=False)
    for key, sample in samples.items():
        turns.add(key, sample)
    bench.report.beside = [Beside(*key, rates[key[0]], tuple(taken)) for key, taken in turns.samples.items() if taken]


def step_key(server: Server) -> tuple[str, str, str]:
    return STEP.name, server.name, server.dialects[0].name
