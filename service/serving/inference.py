"""Running rows through a model: at once if that is quicker than handing them over, else on a compute thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic, perf_counter

from service.engine.interface import Engine, Rows
from service.errors import DeadlinePassed, ServiceFull
from service.serving.registry import ModelVersion, Registry

INLINE_SECONDS = 200e-6
"""Work of up to this runs where it stands: handing it to another thread and back costs about as much under load."""


@dataclass(slots=True)
class Timings:
    """Where the time went, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


class Inference:
    """Runs rows on compute threads, with a bounded queue before them."""

    def __init__(self, registry: Registry, *, workers: int, max_queued_requests: int, max_queued_bytes: int) -> None:
        self.registry = registry
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="compute")
        self._max_queued_requests = max_queued_requests
        self._max_queued_bytes = max_queued_bytes
        self.queued_requests = 0
        self.queued_bytes = 0

    async def run(self, model: ModelVersion, rows: Rows, deadline: float | None = None) -> Timings:
        """Run rows; results are in their own arrays when this returns.

        deadline is a time of `monotonic()`. Raises ServiceFull, DeadlinePassed (nothing ran), ModelFailed.
        """
        engine = model.engine or await self.registry.engine(model)
        if deadline is not None and monotonic() > deadline:
            raise _passed()
        if engine.estimate(rows) <= INLINE_SECONDS:
            begun = perf_counter()
            engine.run([rows])
            return Timings(compute=perf_counter() - begun)
        return await self._run_in_pool(engine, rows, deadline)

    def close(self) -> None:
        """Wait for what is running and end the threads."""
        self._pool.shutdown(wait=True)

    async def _run_in_pool(self, engine: Engine, rows: Rows, deadline: float | None) -> Timings:
        size = rows.inputs.nbytes + sum(part.nbytes for part in (rows.outputs, rows.predictions) if part is not None)
        if self.queued_requests >= self._max_queued_requests or self.queued_bytes + size > self._max_queued_bytes:
            raise ServiceFull(f"{self.queued_requests} requests are waiting for compute; try again in a second")
        self.queued_requests += 1
        self.queued_bytes += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, _timed(engine, rows, deadline))
        finally:
            self.queued_requests -= 1
            self.queued_bytes -= size


def _timed(engine: Engine, rows: Rows, deadline: float | None) -> Callable[[], Timings]:
    submitted = perf_counter()

    def work() -> Timings:
        begun = perf_counter()
        if deadline is not None and monotonic() > deadline:
            raise _passed()
        engine.run([rows])
        return Timings(queue=begun - submitted, compute=perf_counter() - begun)

    return work


def _passed() -> DeadlinePassed:
    return DeadlinePassed("the deadline in X-Request-Timeout-Ms passed before the request ran; it did not run")
