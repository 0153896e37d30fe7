"""Rows a second of 64 clients at a scheduler in one process: `python benchmarks/batching.py SECONDS`.

Prints the rate with the rows of all clients together, and with one row a turn. It imports nothing from this folder, so
that PYTHONPATH chooses the checkout whose scheduler is measured.
"""

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from service.engine.interface import Rows
from service.engine.native.engine import NativeEngine
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

CLIENTS, STEPS, INPUT_SIZE, HIDDEN_SIZE = 64, 64, 128, 256


async def rate(engine: NativeEngine, seconds: float) -> float:
    """Rows a second; each client sends its next row when it has its results."""
    inputs = np.zeros((STEPS, INPUT_SIZE), np.float32)

    async def client(scheduler: Scheduler, end: float) -> int:
        states, done = np.zeros((1, 1, HIDDEN_SIZE), np.float32), 0
        row = Rows(inputs, np.array([0]), np.array([STEPS]), states, None, None, None)
        while time.monotonic() < end:
            await scheduler.run(row)
            done += 1
        return done

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        scheduler, begun = Scheduler(engine, pool), time.monotonic()
        done = await asyncio.gather(*(client(scheduler, begun + seconds) for _ in range(CLIENTS)))
        return sum(done) / (time.monotonic() - begun)


if __name__ == "__main__":
    network = torch.nn.RNN(INPUT_SIZE, HIDDEN_SIZE).requires_grad_(False)
    weights = {name: array.numpy() for name, array in network.state_dict().items()}
    spec, threads = ModelSpec("rnn", INPUT_SIZE, HIDDEN_SIZE), len(os.sched_getaffinity(0))
    for turn_rows in (NativeEngine.turn_rows, 1):
        NativeEngine.turn_rows = turn_rows
        print(asyncio.run(rate(NativeEngine(spec, weights, threads=threads), float(sys.argv[1]))))
