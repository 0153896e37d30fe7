"""What running together brings: 64 clients, each with one row at a time, `python -m benchmarks.batching`.

At the scheduler, without HTTP: rows a second through `Scheduler`, against the same rows each alone, on as many threads.
Over HTTP: the service against itself with turns of one row (`python -m benchmarks.batching alone …` starts that one);
safetensors, `returns: ["h_n"]`, so that the reply is small. Best of the rounds would flatter: medians, in turn.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import safetensors.numpy

from benchmarks.bodies import Call, Case, Cell, case, network, write_models
from benchmarks.load import drive
from benchmarks.servers import Dialect, Server, running
from benchmarks.table import service
from service.cli import build_app
from service.engine.cores import available_cores
from service.engine.interface import Engine, Rows
from service.engine.native.engine import NativeEngine
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

CELL = Cell("together", "/rnn/forward", 1, 64, 128, 256, connections=64)
ROUNDS = 5
SECONDS = 3

Run = Callable[[Rows], Awaitable[object]]


def h_n_call(case: Case) -> Call:
    """The case in safetensors, with nothing but the final state asked for."""
    body = safetensors.numpy.save(case.fields, metadata={"model": case.cell.name, "returns": "h_n"})
    return Call(case.cell.path, "application/vnd.safetensors", body, safetensors.numpy.load)


def rows_of(case: Case) -> Rows:
    """The case as an engine takes it."""
    inputs = np.ascontiguousarray(case.fields["inputs"][0])
    length = np.array([len(inputs)])
    return Rows(inputs, np.zeros(1, np.int64), length, h=case.fields["h0"].copy())


async def rate(run: Run, rows: Rows, seconds: float) -> float:
    """Rows a second with as many clients as the cell has."""
    done = 0
    end = perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        mine = replace(rows, h=rows.h.copy())
        while perf_counter() < end:
            await run(mine)
            done += 1

    begun = perf_counter()
    await asyncio.gather(*(client() for _ in range(CELL.connections)))
    return done / (perf_counter() - begun)


async def at_the_scheduler() -> tuple[list[float], list[float]]:
    """Rows a second together, and each alone, round by round."""
    spec = ModelSpec("rnn", CELL.input_size, CELL.hidden_size)
    weights = {name: tensor.numpy() for name, tensor in network(CELL).state_dict().items()}
    threads, rows = available_cores(), rows_of(case(CELL))
    loop = asyncio.get_running_loop()
    together, alone = [], []
    with ThreadPoolExecutor(threads) as pool:
        engine = NativeEngine(spec, weights, threads=threads)
        turns = Scheduler(engine, pool)
        for _ in range(ROUNDS):
            together.append(await rate(turns.run, rows, SECONDS))
            alone.append(await rate(lambda one: loop.run_in_executor(pool, engine.run, [one]), rows, SECONDS))
    return together, alone


def over_http() -> tuple[list[float], list[float]]:
    """Requests a second of the service, and of the service with turns of one row, round by round."""
    usual = service("together")
    one_row = replace(
        usual, name="alone", command=(sys.executable, "-m", "benchmarks.batching", "alone", *_options(usual))
    )
    call = h_n_call(case(CELL))
    found: dict[str, list[float]] = {"together": [], "alone": []}
    with tempfile.TemporaryDirectory(prefix="rnn-bench-") as directory, ExitStack() as stack:
        models, scratch = Path(directory, "models"), Path(directory, "scratch")
        models.mkdir()
        scratch.mkdir()
        write_models(models, (CELL,))
        servers = [
            stack.enter_context(running(replace(server, dialects=(Dialect("h_n", h_n_call),)), models, scratch))
            for server in (usual, one_row)
        ]
        for _ in range(ROUNDS):
            for server in servers:
                server.post(call)
                found[server.server.name].append(drive(server, call, CELL.connections, SECONDS, scratch).rate)
    return found["together"], found["alone"]


def _options(server: Server) -> tuple[str, ...]:
    return server.command[server.command.index("service") + 1 :]


def show(where: str, together: list[float], alone: list[float]) -> None:
    """Medians, and the ratio within the rounds with its spread."""
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    print(
        f"{where}: {median(together):,.0f} rows/s together, {median(alone):,.0f} alone: "
        f"{median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"
    )


def main() -> None:
    if sys.argv[1:2] == ["alone"]:
        Engine.turn_rows = 1
        build_app()(sys.argv[2:])
        return
    show("at the scheduler", *asyncio.run(at_the_scheduler()))
    show("over HTTP", *over_http())


if __name__ == "__main__":
    main()
