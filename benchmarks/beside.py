"""Steps while large requests run beside them: what the long ones cost the short ones."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS, case
from benchmarks.load import background, drive
from benchmarks.openloop import PROGRAM, Arrivals, arrive
from benchmarks.programs import compiled
from benchmarks.results import Spread
from benchmarks.rounds import Rounds, entries
from benchmarks.servers import Server, running
from benchmarks.table import NAIVE, OURS

STEP, LARGE = CELLS[0], CELLS[-1]
ALONE = "nothing"
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
        pairs = zip(self.samples, alone.samples, strict=True)
        found = [mine.p99_ms / its.p99_ms for mine, its in pairs if mine.p99_ms and its.p99_ms]
        return Spread.of(found) if found else None


def beside(servers: Sequence[Server], rounds: Rounds, places: tuple[Path, Path], console: Console) -> Iterator[Beside]:
    """Our service and the naive one: steps at half of the rate reached in closed loop, alone and beside large ones.

    The large ones come from as many clients as in the closed loop.
    """
    models, scratch = places
    with compiled(PROGRAM) as program:
        for server in (server for server in servers if server.name in {OURS, NAIVE[-1]}):
            taken: dict[str, list[Arrivals]] = {ALONE: []}
            with running(server, models, scratch) as started:
                (step, *_) = entries(STEP, started, rounds, scratch)
                rate = drive(started, step.call, STEP.connections, step.seconds, scratch).rate / 2
                calls = {dialect.name: dialect.call(case(LARGE)) for dialect in reversed(server.dialects)}
                taken |= {name: [] for name in calls}
                for number in range(rounds.count):
                    for name, samples in taken.items():
                        with ExitStack() as stack:
                            if name != ALONE:
                                length = 2 * rounds.seconds + BEFORE_SECONDS
                                load = background(started, calls[name], LARGE.connections, length, scratch)
                                stack.enter_context(load)
                            sample = arrive(program, started, step.call, rate, rounds.seconds, settle=name == ALONE)
                        started.settle()
                        samples.append(sample)
                        outcome = f"p50 {sample.p50_ms} ms, p99 {sample.p99_ms} ms"
                        console.print(f"round {number + 1}: {server.name}, {rate:.0f} steps/s beside {name}: {outcome}")
            for name, samples in taken.items():
                yield Beside(server.name, name, rate, tuple(samples))
