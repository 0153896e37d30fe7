"""When requests are due. The times are fixed before anything is sent, so that a slow server cannot thin them out."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Process = Literal["poisson", "constant"]

BLOCK = 1024


def arrivals(process: Process, rate: float, seconds: float, limit: int | None, seed: int = 0) -> Iterator[float]:
    """Times in seconds after the start, rising, all before `seconds`, at most `limit` of them, `rate` a second.

    constant: i / rate. poisson: exponential gaps of mean 1 / rate, as independent clients produce them.
    """
    times = _constant(rate) if process == "constant" else _poisson(rate, seed)
    for index, time in enumerate(times):
        if time >= seconds or index == limit:
            return
        yield time


def _constant(rate: float) -> Iterator[float]:
    index = 0
    while True:
        yield index / rate
        index += 1


def _poisson(rate: float, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    start = 0.0
    while True:
        times = start + random.exponential(1 / rate, BLOCK).cumsum()
        start = float(times[-1])
        yield from times.tolist()
