"""Rows a second of 64 clients at a scheduler in one process: `python benchmarks/batching.py SECONDS`.

Prints the rate with the rows of all clients together, and with one row a turn. It imports nothing from this
folder, so that PYTHONPATH chooses the checkout whose scheduler is measured.
"""

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from service.engine.interface import Rows
from service.engine.native import NativeEngine
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

CLIENTS, STEPS, INPUT_SIZE, HIDDEN_SIZE = 64, 64, 128, 256


async def rate(turn_rows: int, seconds: float) -> float:
    """Rows a second, with so many rows in a turn; each client sends its next row when it has its results."""
    NativeEngine.turn_rows = turn_rows
    torch.manual_seed(0)
    threads = len(os.sched_getaffinity(0))
    network = torch.nn.RNN(INPUT_SIZE, HIDDEN_SIZE)
    weights = {name: array.numpy() for name, array in network.state_dict().items()}
    engine = NativeEngine(ModelSpec("rnn", INPUT_SIZE, HIDDEN_SIZE), weights, threads=threads)
    inputs = np.random.default_rng(0).standard_normal((STEPS, INPUT_SIZE), dtype=np.float32)
    done = 0

    def row() -> Rows:
        states = np.zeros((1, 1, HIDDEN_SIZE), np.float32)
        return Rows(inputs, np.array([0]), np.array([STEPS]), states, None, None, None)

    async def client(scheduler: Scheduler, end: float) -> None:
        nonlocal done
        mine = row()
        while time.monotonic() < end:
            await scheduler.run(mine)
            done += 1

    with ThreadPoolExecutor(threads) as pool:
        scheduler = Scheduler(engine, pool)
        await scheduler.run(row())
        begun = time.monotonic()
        await asyncio.gather(*(client(scheduler, begun + seconds) for _ in range(CLIENTS)))
        return done / (time.monotonic() - begun)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    print(*(asyncio.run(rate(turn_rows, float(sys.argv[1]))) for turn_rows in (NativeEngine.turn_rows, 1)))
