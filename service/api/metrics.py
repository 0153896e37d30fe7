"""What Prometheus reads: counters and histograms of the requests, gauges of what is loaded and waiting."""

import asyncio
import os
from collections import Counter as Count
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import process_time, time
from typing import Literal

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.api.problems import STATUS, slug
from service.api.readiness import Readiness
from service.api.request import STAGES, Request
from service.serving.inference import Inference
from service.sessions.lifecycle import Sessions

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LIVES = (0.1, 1, 10, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Tally:
    """Observations of one histogram, kept as they are and counted together now and then.

    A histogram of prometheus-client takes a microsecond for each observation (locks; with several workers, writes into
    mapped files): several of them are a good part of a small step.
    """

    __slots__ = ("_bounds", "_histogram", "_values", "observe")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._values: list[float] = []
        self.observe = self._values.append

    def flush(self) -> tuple[int, float]:
        """Move what was observed to the histogram; gives how much that was, and its sum.

        By its own parts: to observe n values at once is not among its methods. It adds up what is below each bound
        when it is read.
        """
        observed, total = len(self._values), sum(self._values)
        if not observed:
            return 0, 0.0
        counts = np.bincount(np.searchsorted(self._bounds, self._values), minlength=len(self._bounds) + 1)
        for bucket, count in zip(self._histogram._buckets, counts.tolist(), strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(total)  # noqa: SLF001
        self._values.clear()
        return observed, total


Group = tuple[str, str | None, str | None, str | None, int, bool]
"""Requests that are counted together: path, model, what it is offered as, version, status, whether they stream."""


@dataclass(slots=True)
class GroupCounts:
    """What is counted of a group."""

    latency: Tally
    stages: dict[str, Tally]
    rows: int = 0
    steps: int = 0


class Metrics:
    """What is counted, as docs/metrics.md lists it, which scripts/metrics_page.py writes. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = self.counter("rnn_requests", "Requests answered.", "path", "model", "status")
        text = "Error replies, and streams that ended with an error, by the problem's type."
        self._problems = self.counter("rnn_problems", text, "type")
        for name in (*map(slug, STATUS), slug(Exception)):  # a rate needs to have seen the 0 before the first
            self._problems.labels(name)
        text = "Time from a request's headers to the end of its reply, without streams."
        self._latency = self._histogram("rnn_request_seconds", text, _SECONDS, "path", "model")
        text = "Life of a stream: NDJSON, WebSocket, or a generation that is sent line by line."
        self._lives = self._histogram("rnn_stream_seconds", text, _LIVES, "path", "model")
        text = f"Time of a request by stage: {', '.join(STAGES)}; without streams."
        self._stages = self._histogram("rnn_stage_seconds", text, _SECONDS, "model", "stage")
        self._rows = self.counter("rnn_rows", "Sequences run.", "model")
        self._steps = self.counter("rnn_steps", "Time steps run, over all rows.", "model")
        batch = self._histogram("rnn_batch_rows", "Rows that ran together in a turn of the scheduler.", _COUNTS)
        self._batch = Tally(batch, _COUNTS)
        self._failures: Count[type[Exception]] = Count()
        self._groups: dict[Group, GroupCounts] = {}
        self.count_turn = self._batch.observe
        labels = "model", "version"
        text = "Calls of a model version, by outcome: success, fail; without streams."
        self._calls = self.counter("rnn_model_calls", text, *labels, "outcome")
        text = "Time of those calls: all, and by stage."
        self._seconds = self.counter("rnn_model_seconds", text, *labels, "outcome", "part")
        self._inferences = self.counter("rnn_model_rows", "Rows of calls that succeeded.", *labels)
        text = "When a call last succeeded, since 1970."
        self._last = Gauge("rnn_model_last_call_seconds", text, labels, registry=self.registry, multiprocess_mode="max")

    def count(self, request: Request, seconds: float) -> None:
        """Account for one finished request; the stages of a stream wait for its client."""
        model, offered_as = request.model, request.offered_as or request.model
        group = request.route, model, offered_as, request.version, request.status, request.streams
        counted = self._groups.get(group) or self._add(group)
        counted.latency.observe(seconds)
        if not request.streams:
            for stage, spent in request.stages.items():
                counted.stages[stage].observe(spent)
        counted.rows += request.rows
        counted.steps += request.steps
        if request.failure is not None:
            self._failures[request.failure] += 1

    def flush(self) -> None:
        """Hand over to prometheus-client what was counted since the last time."""
        for group, counted in self._groups.items():
            path, model, _, _, status, _ = group
            calls, seconds = counted.latency.flush()
            if not calls:
                continue
            self._requests.labels(path, model or "", str(status)).inc(calls)
            parts = {stage: tally.flush()[1] for stage, tally in counted.stages.items()}
            if counted.rows or status >= 400:
                self._flush_calls(group, counted, calls, {"all": seconds, **parts})
            counted.rows = counted.steps = 0
        for error, count in self._failures.items():
            self._problems.labels(slug(error)).inc(count)
        self._failures.clear()
        self._batch.flush()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, together: Literal["livesum", "livemax", "livemin"] = "livesum") -> Gauge:
        """A gauge; `together` says how those of several workers make one."""
        return Gauge(name, text, registry=self.registry, multiprocess_mode=together)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=bounds, registry=self.registry)

    def _add(self, group: Group) -> GroupCounts:
        path, model, _, _, _, streams = group
        times, bounds = (self._lives, _LIVES) if streams else (self._latency, _SECONDS)
        stages = {stage: Tally(self._stages.labels(model or "", stage), _SECONDS) for stage in STAGES}
        counted = GroupCounts(Tally(times.labels(path, model or ""), bounds), stages)
        self._groups[group] = counted
        return counted

    def _flush_calls(self, group: Group, counted: GroupCounts, calls: int, seconds: Mapping[str, float]) -> None:
        _, model, offered_as, version, status, streams = group
        if model is None:
            return
        self._rows.labels(model).inc(counted.rows)
        self._steps.labels(model).inc(counted.steps)
        if streams:
            return
        which, outcome = (offered_as, version or ""), "fail" if status >= 400 else "success"
        self._calls.labels(*which, outcome).inc(calls)
        for part, spent in seconds.items():
            self._seconds.labels(*which, outcome, part).inc(spent)
        if outcome == "success":
            self._inferences.labels(*which).inc(counted.rows)
            self._last.labels(*which).set_to_current_time()


class Sampler:
    """What is read of the parts of the service now and then, and the page of all metrics. Sizes are in bytes."""

    def __init__(
        self,
        metrics: Metrics,
        inference: Inference,
        sessions: Sessions,
        dropped: Callable[[], int],
        readiness: Readiness,
    ) -> None:
        self._metrics = metrics
        self._inference = inference
        self._sessions = sessions
        self._lines_dropped = dropped
        self._dropped = metrics.counter("rnn_log_lines_dropped", "Log lines that their reader or disk did not take.")
        self._loaded = metrics.gauge("rnn_loaded_bytes", "Memory that loaded weights take.")
        self._queued = metrics.gauge("rnn_queued_requests", "Requests waiting for compute, or computing.")
        self._queued_bytes = metrics.gauge("rnn_queued_bytes", "Arrays of those requests.")
        self._live = metrics.gauge("rnn_sessions", "Live sessions, of all processes that share the store.", "livemax")
        self._live_bytes = metrics.gauge("rnn_session_bytes", "What the live sessions are charged for.", "livemax")
        self._session_queue = metrics.gauge("rnn_session_queued", "Calls of sessions that wait or run.")
        text = "Sessions opened; steps run; commits, replays and conflicts of steps."
        self._events = metrics.counter("rnn_session_events", text, "event")
        self._ended = metrics.counter("rnn_sessions_ended", "Sessions that ended, by reason.", "reason")
        self._readiness = readiness
        self._ready = metrics.gauge("rnn_ready", "1 if every worker is ready, else 0.", "livemin")
        self._workers = metrics.gauge("rnn_workers", "Processes that answer requests.")
        self._memory = metrics.gauge("rnn_memory_bytes", "Resident memory of these processes.")
        self._cpu = metrics.counter("rnn_cpu_seconds", "CPU time of all processes since the start.")
        text = "Start of the youngest of these processes, since 1970."
        metrics.gauge("rnn_start_time_seconds", text, "livemax").set(time())
        self._counted: dict[tuple[Counter, tuple[str, ...]], float] = {}

    def sample(self) -> None:
        self._metrics.flush()
        inference, cache = self._inference, self._sessions.cache
        self._loaded.set(inference.registry.loaded_bytes)
        self._queued.set(inference.queued_requests)
        self._queued_bytes.set(inference.queued_bytes)
        self._live.set(cache.store.totals.sessions)
        self._live_bytes.set(cache.store.totals.bytes)
        self._session_queue.set(self._sessions.queue.waiting)
        for event in ("opened", "steps", "commits", "replays", "conflicts"):
            self._advance(getattr(cache.counts, event), self._events, event)
        for reason, ended in cache.counts.ended.items():
            self._advance(ended, self._ended, reason)
        self._advance(self._lines_dropped(), self._dropped)
        self._advance(process_time(), self._cpu)
        self._ready.set(not self._readiness.reasons())
        self._workers.set(1)
        self._memory.set(int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    async def keep_sampling(self) -> None:
        """Sample ten times a second, for ever: the page may be asked of another worker. The last is at the end."""
        try:
            while True:
                self.sample()
                await asyncio.sleep(0.1)
        finally:
            self.sample()

    def collected(self) -> CollectorRegistry:
        """All metrics of now; with several workers, of all of them."""
        self.sample()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._metrics.registry
        for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
            if not Path("/proc", pid := file.stem.rpartition("_")[2]).exists():
                with suppress(FileNotFoundError):  # another worker does the same
                    mark_process_dead(pid)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return together

    def _advance(self, count: float, counter: Counter, *labels: str) -> None:
        """Bring a counter to what was counted elsewhere: cheaper than counting here, once a step."""
        (counter.labels(*labels) if labels else counter).inc(count - self._counted.get((counter, labels), 0))
        self._counted[counter, labels] = count
