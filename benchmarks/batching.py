"""What running the rows of many clients together gains, over HTTP and in the scheduler; what a kernel takes alone."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import safetensors.numpy
from rich.console import Console

from benchmarks.bodies import Call, Case, Cell, case, network
from benchmarks.load import drive
from benchmarks.results import Spread
from benchmarks.rounds import Rounds, check
from benchmarks.servers import Server, running
from service.engine.cores import available_cores
from service.engine.interface import Rows
from service.engine.native import NativeEngine
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

CELL = Cell("batch", "/rnn/forward", 1, 64, 128, 256, connections=64)
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
        return Spread.of(mine / its for mine, its in zip(self.together, self.alone, strict=True))


def gains(server: Server, rounds: Rounds, places: tuple[Path, Path], console: Console) -> Iterator[Gain]:
    """64 clients, each with one row of 64 steps; over HTTP only the last states come back."""
    together, alone = [], []
    for _ in range(rounds.count):
        together.append(scheduled(rounds.seconds / 2))
        with one_at_a_time():
            alone.append(scheduled(rounds.seconds / 2))
    console.print(f"scheduler: {median(together):,.0f} rows/s together, {median(alone):,.0f} one at a time")
    yield Gain("scheduler", tuple(together), tuple(alone))
    models, scratch = places
    command = tuple(part for part in server.command if part not in {"-m", "service"})
    single = replace(server, name=f"{server.name}, one row at a time", command=(command[0], "-c", ALONE, *command[1:]))
    values = case(CELL)
    values = Case(CELL, values.fields, {"h_n": values.answers["h_n"]})
    rates: dict[str, list[float]] = {server.name: [], single.name: []}
    with ExitStack() as stack:
        started = [stack.enter_context(running(one, models, scratch)) for one in (server, single)]
        for one in started:
            check(one, last_states(values), values)
        for _ in range(rounds.count):
            for one in started:
                sample = drive(one, last_states(values), CELL.connections, rounds.seconds, scratch)
                rates[one.server.name].append(sample.rate)
    together, alone = rates.values()
    console.print(f"HTTP: {median(together):,.0f} rows/s together, {median(alone):,.0f} one at a time")
    yield Gain("HTTP, safetensors", tuple(together), tuple(alone))


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
