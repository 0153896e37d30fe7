"""A run: sends what is due, when it is due, and sees every request to its end.

Open loop: requests are due at times that were fixed before, whatever the service does; those that find every connection
busy wait in the backlog, and their latency counts the wait. Closed loop: each connection's next request is due when its
last one has ended.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, process_time

from service.loadgen.alarm import Alarm
from service.loadgen.arrivals import Process, arrivals
from service.loadgen.exchanges import Exchanges
from service.loadgen.link import TIMED_OUT, Link
from service.loadgen.stream import Stream
from service.loadgen.tally import Failure, Tally
from service.loadgen.target import Target
from service.loadgen.traffic import Traffic

WATCH_SECONDS = 0.5
SWEEP_SECONDS = 0.05
PAUSE_SECONDS = 0.1
FINISH_SECONDS = 2.0
MAX_BURST = 32
"""Requests sent at a time if the generator is late: replies must be read between them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests arrive. rate None: closed loop; requests None: as many as fit; window: in flight on a connection."""

    rate: float | None
    process: Process
    connections: int
    window: int
    seconds: float
    requests: int | None
    timeout_seconds: float


class Run:
    """One run against one target; `tally` may be read at any time from the loop's thread."""

    def __init__(self, target: Target, traffic: Traffic, plan: Plan, *, model_loaded: bool) -> None:
        self.target, self.traffic, self.plan, self.model_loaded = target, traffic, plan, model_loaded
        self.tally = Tally()
        self.elapsed_seconds = 0.0
        self.cpu_seconds = 0.0
        self.interrupted = False
        self._links: set[Link] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._free: deque[Link] = deque()  # a link stands here once for each request that it has room for
        self._backlog: deque[float] = deque()
        self._schedule: Iterator[float] = iter(())
        self._next: float | None = None
        self._started = self._last = self._ended = 0.0
        self._running = False
        self._over = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that are sent and not answered."""
        return self.tally.outstanding - len(self._backlog)

    @property
    def running_seconds(self) -> float:
        """Time since the start."""
        return perf_counter() - self._started

    async def run(self, watch: Callable[[], None] | None) -> None:
        """Run to the end; `watch` is called twice a second. The connections are opened before the clock starts."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._open() for _ in range(self.plan.connections)))
        # Slots in turn, so that the first requests go to different streams.
        self._free = deque(link for _ in range(self.plan.window) for link in self._links)
        gc.freeze()
        cpu = process_time()
        self._alarm = Alarm(loop, self._ring)
        chores = [asyncio.create_task(self._sweep())]
        if watch is not None:
            chores.append(asyncio.create_task(_repeat(watch)))
        try:
            if not self.interrupted:
                self._start()
            await self._over.wait()
            self.elapsed_seconds = max(self._last - self._started, self._ended - self._started)
            self.cpu_seconds = process_time() - cpu
        finally:
            self._alarm.close()
            for task in [*chores, *self._opening]:
                task.cancel()
            gc.unfreeze()
        await self._finish()

    def interrupt(self) -> None:
        """Stop now; what has not ended is cut off."""
        self.interrupted = True
        self._end()
        self.tally.cut_off = self.tally.outstanding
        self._over.set()

    def succeeded(self, link: Link, due: float) -> None:
        """A link's oldest request was answered."""
        if self._over.is_set():
            return
        self._last = perf_counter()
        self.tally.latency.record(self._last - due)
        if link.alive:
            self._vacate(link)
        self._check()

    def failed(self, link: Link, due: float, failure: Failure) -> None:
        """A link's oldest request failed."""
        if self._over.is_set():
            return
        self._fail(due, failure)
        if link.alive:
            self._vacate(link)
        self._check()

    def closed(self, link: Link) -> None:
        """A link is gone: another takes its place where there is something to send."""
        self._links.discard(link)
        self._replace(PAUSE_SECONDS if link.broken else 0)

    def _start(self) -> None:
        plan = self.plan
        self._started = self._last = self._ended = perf_counter()
        self._running = True
        if plan.rate is None:
            self._alarm.set(plan.seconds)
            links, self._free = self._free, deque()
            for link in links:
                self._vacate(link)
            for _ in range(plan.connections - len(self._links)):
                self._open_soon()
        else:
            self._schedule = arrivals(plan.process, plan.rate, plan.seconds, plan.requests)
            self._next = next(self._schedule, None)
            self._ring()

    def _ring(self) -> None:
        """Send what is due, and sleep until the next; at the end of the time, end."""
        for _ in range(MAX_BURST):
            now = self.running_seconds
            if self._next is None or self._next > now:
                break
            self.tally.due += 1
            self.tally.lag.record(now - self._next)
            self._dispatch(self._started + self._next)
            self._next = next(self._schedule, None)
        wake = self.plan.seconds if self._next is None else self._next
        if self._next is None and (self.tally.due == self.plan.requests or wake <= self.running_seconds):
            self._end()
        else:
            self._alarm.set(wake - self.running_seconds)

    def _dispatch(self, due: float) -> None:
        """Send on a free connection; else wait for one, or for a new one while there may be more."""
        while self._free:
            # Streams take turns. Of other connections few stay hot, so that a low rate is not spread over idle ones.
            link = self._free.popleft() if self.traffic.streaming else self._free.pop()
            if link.alive:
                link.send(due)
                return
        self._backlog.append(due)
        if len(self._links) + len(self._opening) < self.plan.connections:
            self._open_soon()
        else:
            self.tally.waited += 1

    def _vacate(self, link: Link) -> None:
        """A link has room for one more."""
        due = self._take()
        if due is None:
            self._free.append(link)
        else:
            link.send(due)

    def _take(self) -> float | None:
        """A request that is due and waits; in a closed loop there always is one."""
        if self._backlog:
            return self._backlog.popleft()
        if not self._running or self.plan.rate is not None:
            return None
        self.tally.due += 1
        if self.tally.due == self.plan.requests:
            self._end()
        return perf_counter()

    def _end(self) -> None:
        """Nothing more will be due."""
        if self._running:
            self._running, self._next = False, None
            self._ended = perf_counter()
            self._check()

    def _fail(self, due: float, failure: Failure) -> None:
        self._last = perf_counter()
        self.tally.fail(failure, self._last - due)

    def _check(self) -> None:
        if not self._running and not self.tally.outstanding:
            self._over.set()

    def _open_soon(self) -> None:
        if self._over.is_set() or len(self._links) + len(self._opening) >= self.plan.connections:
            return
        task = asyncio.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        """Open a connection. One that fails is the failure of the request that waits longest."""
        kind = Stream if self.traffic.streaming else Exchanges
        loop, target = asyncio.get_running_loop(), self.target
        try:
            async with asyncio.timeout(self.plan.timeout_seconds):
                _, link = await loop.create_connection(
                    lambda: kind(self.traffic, self.tally, self), target.host, target.port, ssl=target.ssl_context
                )
        except OSError as error:  # TimeoutError is one
            self._not_opened(Failure(0, f"cannot connect: {error.strerror or type(error).__name__}"))
            return
        self._links.add(link)
        for _ in range(self.plan.window):
            self._vacate(link)

    def _not_opened(self, failure: Failure) -> None:
        if (due := self._take()) is not None:
            self._fail(due, failure)
            self._check()
        self._replace(PAUSE_SECONDS)

    def _replace(self, delay_seconds: float) -> None:
        """Open another connection where something waits, or would be sent."""
        if self._backlog or (self._running and self.plan.rate is None):
            asyncio.get_running_loop().call_later(delay_seconds, self._open_soon)

    async def _sweep(self) -> None:
        """Give up what has taken too long, from the time when it was due."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = perf_counter() - self.plan.timeout_seconds
            for link in [link for link in self._links if link.in_flight and link.in_flight[0] < oldest]:
                link.abort(TIMED_OUT)
            while self._backlog and self._backlog[0] < oldest:
                self._fail(self._backlog.popleft(), TIMED_OUT)
            self._check()

    async def _finish(self) -> None:
        """Close every connection, streams by the end of their bodies."""
        links = list(self._links)
        for link in links:
            link.finish()
        if links:
            await asyncio.wait([link.ended for link in links], timeout=FINISH_SECONDS)
        for link in links:
            link.abort(TIMED_OUT)


async def _repeat(action: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        action()
