"""Taking requests on, and running their rows: at once if that is quicker than handing them over, else in turns."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import monotonic

from service.engine.interface import Engine, Rows
from service.engine.pooling import pooled
from service.errors import ClientFull, ClientGone, ServiceFull
from service.serving.generation import Generation
from service.serving.registry import ModelVersion, Registry
from service.serving.scheduler import Scheduler, Timings, passed

# Work of up to this runs where it stands: handing it to another thread and back costs about as much under load.
INLINE_SECONDS = 200e-6
PART_ROWS = 4096  # of one request that wait and run together: what a turn does for each row takes time and memory
CLIENT_SHARE = 0.75  # of all places, or bytes, what one client may take: others always find some

HungUp = Callable[[], Awaitable[None]]


class Admission:
    """Requests under way, from their headers to the end of their reply; bounded before a body is read."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._max_of_client = ceil(CLIENT_SHARE * max_requests)
        self._of_client: Counter[str] = Counter()
        self._clients: dict[Hashable, str] = {}

    def enter(self, request: Hashable, client: str) -> None:
        """Take a request on until it leaves. Raises ServiceFull, or ClientFull if only this client has too many."""
        under_way = len(self._clients)
        if under_way >= self._max_requests:
            raise ServiceFull(f"{under_way} requests are under way; try again in a second")
        if (held := self._of_client[client]) >= self._max_of_client:
            raise ClientFull(f"{held} of this client's requests are under way; try again in a second")
        self._clients[request] = client
        self._of_client[client] += 1

    def leave(self, request: Hashable) -> None:
        client = self._clients.pop(request, None)
        if client is not None:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]


@dataclass(eq=False)
class Inference:
    """Runs rows, those of much work through a bounded queue. on_turn hears how many rows a turn had."""

    registry: Registry
    workers: int
    max_queued_requests: int
    max_queued_bytes: int
    on_turn: Callable[[int], None] = lambda _: None
    queued_requests: int = 0
    queued_bytes: int = 0

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="compute")

    async def run(
        self,
        model: ModelVersion,
        rows: Rows,
        deadline: float | None = None,
        hung_up: HungUp | None = None,
        engine: Engine | None = None,
    ) -> Timings:
        """Run rows; results are in their own arrays when this returns.

        deadline is a time of `monotonic()`; hung_up returns when nobody waits for the results any more; engine is one
        that the caller holds (a stream stays on the weights that it began with), else the model's.
        Raises ServiceFull, DeadlinePassed (nothing ran), ClientGone, ModelFailed.
        """
        engine = engine or self.registry.loaded(model)
        if engine is None or engine.estimate(rows) > INLINE_SECONDS:
            arrays = (rows.inputs, rows.h, rows.c, rows.outputs, rows.predictions, rows.pooled)
            with self._queued(sum(array.nbytes for array in arrays if array is not None)):
                return await _unless(hung_up, self._run_in_turns(model, rows, deadline, engine))
        begun = monotonic()
        if deadline is not None and begun > deadline:
            raise passed()
        engine.run([rows])
        if rows.pooled is not None:
            _predict(engine, rows)
        ended = monotonic()
        return Timings(begun, begun, ended, ended - begun)

    async def generate(
        self,
        model: ModelVersion,
        generation: Generation,
        deadline: float | None = None,
        hung_up: HungUp | None = None,
        engine: Engine | None = None,
        *,
        by_turn: bool = False,
    ) -> AsyncGenerator[Timings, None]:
        """Run a generation that has begun to its end; gives the timings of all, or by_turn of each turn, after it.

        Arguments and errors are those of `run`; what is left early must be closed.
        """
        engine = engine or self.registry.loaded(model)
        if engine is not None and generation.estimate(engine) <= INLINE_SECONDS:
            begun = monotonic()
            if deadline is not None and begun > deadline:
                raise passed()
            seconds = generation.run(engine)
            yield Timings(begun, begun, begun + seconds, seconds)
            return
        with self._queued(generation.nbytes):
            engine = engine or await self.registry.engine(model)
            scheduler = self._scheduler(model, engine)
            while generation.live:
                yield await _unless(hung_up, scheduler.generate(generation, deadline, by_turn=by_turn))
                deadline = None

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    @contextmanager
    def _queued(self, size: int) -> Iterator[None]:
        if self.queued_requests >= self.max_queued_requests or self.queued_bytes + size > self.max_queued_bytes:
            raise ServiceFull(f"{self.queued_requests} requests are waiting for compute; try again in a second")
        self.queued_requests += 1
        self.queued_bytes += size
        try:
            yield
        finally:
            self.queued_requests -= 1
            self.queued_bytes -= size

    async def _run_in_turns(
        self, model: ModelVersion, rows: Rows, deadline: float | None, engine: Engine | None
    ) -> Timings:
        engine = engine or await self.registry.engine(model)
        scheduler, timings = self._scheduler(model, engine), Timings()
        for first in range(0, rows.lengths.size, PART_ROWS):
            ran = await scheduler.run(rows.part(first, first + PART_ROWS), deadline)
            ran.compute += timings.compute
            if first:
                ran.submitted, ran.begun = timings.submitted, timings.begun
            timings = ran
            deadline = None  # what has begun runs to its end
        if rows.pooled is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, _predict, engine, rows)
        return timings

    def _scheduler(self, model: ModelVersion, engine: Engine) -> Scheduler:
        scheduler = model.scheduler
        if scheduler is None or scheduler.engine is not engine:
            scheduler = Scheduler(engine, self._pool, self.on_turn)
            if model.engine is engine:
                model.scheduler = scheduler
        return scheduler


def _predict(engine: Engine, rows: Rows) -> None:
    """The head over what is pooled of rows that have run."""
    rows.pooled[...] = engine.predict(pooled(engine.spec, rows))  # type: ignore[index]  # the caller has looked


async def _unless(hung_up: HungUp | None, running: Awaitable[Timings]) -> Timings:
    """The result of `running`, or ClientGone as soon as hung_up returns; `running` is then cancelled."""
    if hung_up is None:
        return await running
    run, gone = asyncio.ensure_future(running), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            return run.result()
        gone.result()  # what went wrong in watching is not a hang-up
        raise ClientGone
    finally:
        gone.cancel()
        run.cancel()
