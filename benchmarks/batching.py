"""What running the rows of many clients together gains, over HTTP and in the scheduler; what a kernel takes alone."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import safetensors.numpy

from benchmarks.bodies import CELLS, Call, Case, Cell, case, network
from benchmarks.load import drive
from benchmarks.results import Spread, Turns
from benchmarks.rounds import check
from benchmarks.servers import Server
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit
from service.engine.interface import Rows
from service.engine.load import available_cores
from service.engine.native import NativeEngine
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

CELL = next(cell for cell in CELLS if cell.name == "batch")
SCHEDULER, HTTP = "scheduler", "HTTP, safetensors"
# The service as it is, but a turn holds one long job.
ALONE = (
    "from service.engine.native import NativeEngine; NativeEngine.turn_rows = 1; from service.cli import main; main()"
)


@dataclass(frozen=True, slots=True)
class Gain:
    """Rows a second with the rows of all clients together, and with one at a time; a pair for each round."""

    where: str
    together: tuple[float, ...]
    alone: tuple[float, ...]

    @property
    def ratio(self) -> Spread:
        """Together over alone, each round by itself."""
        return Spread.of(mine / its for mine, its in zip(self.together, self.alone, strict=False))


def units(bench: Bench) -> list[Unit]:
    """64 clients, each with one row of 64 steps, at the scheduler and over HTTP (only h_n comes back)."""
    server, rounds = bench.server(OURS), bench.rounds
    if not server:
        return []
    taken = {gain.where: list(zip(gain.together, gain.alone, strict=True)) for gain in bench.report.gains}
    turns: Turns[str, tuple[float, float]] = Turns(taken)
    found = []
    for where, measure in ((SCHEDULER, at_scheduler), (HTTP, over_http)):
        for number in range(rounds.count):
            run, there = (
                partial(add, bench, turns, where, partial(measure, bench, server)),
                not turns.lack([where], number),
            )
            found.append(Unit(f"round {number + 1}, {where}", 4 * rounds.seconds, there, run, where))
    return found


def add(
    bench: Bench, turns: "Turns[str, tuple[float, float]]", where: str, measure: Callable[[], tuple[float, float]]
) -> None:
    """One round."""
    together, alone = measure()
    bench.console.print(f"{where}: {together:,.0f} rows/s together, {alone:,.0f} one at a time", highlight=False)
    turns.add(where, (together, alone))
    bench.report.gains = [Gain(name, *zip(*pairs, strict=True)) for name, pairs in turns.samples.items() if pairs]


def at_scheduler(bench: Bench, _: Server) -> tuple[float, float]:
    """Rows a second in this process, together and one at a time."""
    together = scheduled(bench.rounds.seconds / 2)
    with one_at_a_time():
        return together, scheduled(bench.rounds.seconds / 2)


def over_http(bench: Bench, server: Server) -> tuple[float, float]:
    """Rows a second of two services."""
    command = tuple(part for part in server.command if part not in {"-m", "service"})
    single = replace(server, name=f"{server.name}, one row at a time", command=(command[0], "-c", ALONE, *command[1:]))
    values = case(CELL)
    call = last_states(replace(values, answers={"h_n": values.answers["h_n"]}))
    rates = []
    for one in (server, single):
        started = bench.fleet.server(one)
        check(started, call, replace(values, answers={"h_n": values.answers["h_n"]}))
        rates.append(drive(started, call, CELL.connections, bench.rounds.seconds, bench.fleet.scratch).rate)
    together, alone = rates
    return together, alone


def last_states(values: Case) -> Call:
    """The cell in safetensors, asked for h_n alone."""
    metadata = {"model": values.cell.name, "returns": '["h_n"]'}
    body = safetensors.numpy.save(values.fields, metadata=metadata)
    return Call(values.cell.path, "application/vnd.safetensors", body, safetensors.numpy.load)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Turns of a single row, in this process."""
    before = NativeEngine.turn_rows
    NativeEngine.turn_rows = 1
    try:
        yield
    finally:
        NativeEngine.turn_rows = before


def scheduled(seconds: float) -> float:
    """Rows a second of 64 clients at a scheduler of this process, each with its next row when it has its results."""
    native, done = engine(CELL), 0

    async def client(runs: Scheduler, end: float) -> None:
        nonlocal done
        rows = replace(rows_of(CELL), outputs=None)
        while time.monotonic() < end:
            await runs.run(rows)
            done += 1

    async def all_clients() -> None:
        with ThreadPoolExecutor(available_cores()) as pool:
            runs = Scheduler(native, pool)
            await runs.run(rows_of(CELL))
            end = time.monotonic() + seconds
            await asyncio.gather(*(client(runs, end) for _ in range(CELL.connections)))

    begun = time.monotonic()
    asyncio.run(all_clients())
    return done / (time.monotonic() - begun)


def kernel_ms(cell: Cell, repeats: int = 50) -> float:
    """Median milliseconds of the cell's arithmetic alone, on all cores, in this process."""
    native, rows, times = engine(cell), rows_of(cell), []
    for _ in range(repeats):
        begun = time.perf_counter()
        native.run([rows])
        times.append(time.perf_counter() - begun)
    return 1e3 * median(times)


def engine(cell: Cell) -> NativeEngine:
    spec = ModelSpec("rnn", cell.input_size, cell.hidden_size)
    weights = {name: array.numpy() for name, array in network(cell).state_dict().items()}
    return NativeEngine(spec, weights, threads=available_cores())


def rows_of(cell: Cell) -> Rows:
    """The cell's request as the engine takes it."""
    inputs = case(cell).fields["inputs"].reshape(cell.batch * cell.steps, -1)
    h = np.zeros((1, cell.batch, cell.hidden_size), np.float32)
    starts, lengths = np.arange(cell.batch) * cell.steps, np.full(cell.batch, cell.steps)
    return Rows(inputs, starts, lengths, h, None, np.empty((len(inputs), cell.hidden_size), np.float32))
