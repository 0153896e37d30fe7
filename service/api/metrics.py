"""What Prometheus reads: counters and histograms of the requests, gauges of what is loaded and waiting."""

import asyncio
import os
from collections import Counter as Count
from collections.abc import Callable, Sequence
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
from prometheus_client.multiprocess import MultiProcessCollector

from service.api.request import STAGES, Request
from service.serving.inference import Inference
from service.sessions.lifecycle import Sessions

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTED = ("rows", "steps", "calls", "all", *STAGES)
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

    def fold(self) -> None:
        """Move what was observed to the histogram.

        By its own parts: to observe n values at once is not among its methods. It adds up what is below each bound
        when it is read.
        """
        if not self._values:
            return
        counts = np.bincount(np.searchsorted(self._bounds, self._values), minlength=len(self._bounds) + 1)
        for bucket, count in zip(self._histogram._buckets, counts.tolist(), strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(sum(self._values))  # noqa: SLF001
        self._values.clear()


class Metrics:
    """What is counted: requests, their stages, rows, steps and turns. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = self.counter("rnn_requests", "Requests answered.", "path", "status")
        self._latency = self._histogram("rnn_request_seconds", "Time from headers to reply.", _SECONDS, "path")
        stages = self._histogram(
            "rnn_stage_seconds", "Time of a request by stage: decode, queue, compute, encode.", _SECONDS, "stage"
        )
        self._rows = self.counter("rnn_rows", "Sequences run.", "model")
        self._steps = self.counter("rnn_steps", "Time steps run, over all rows.", "model")
        self._batch = self._histogram("rnn_batch_rows", "Rows that ran together in a turn.", _COUNTS)
        self._of_stage = {stage: Tally(stages.labels(stage), _SECONDS) for stage in STAGES}
        self._of_path: dict[str, Tally] = {}
        self._answered: dict[tuple[str, int], int] = {}
        self._run: dict[tuple[str, str, str], dict[str, float]] = {}
        labels = "model", "version"
        self._calls = self.counter("rnn_model_calls", "Calls of a model version, by outcome.", *labels, "outcome")
        text = "Time of those calls: all, and by stage."
        self._seconds = self.counter("rnn_model_seconds", text, *labels, "outcome", "part")
        self._inferences = self.counter("rnn_model_rows", "Rows of calls that succeeded.", *labels)
        text = "When a call last succeeded."
        self._last = Gauge("rnn_model_last_call_seconds", text, labels, registry=self.registry, multiprocess_mode="max")

    def count(self, request: Request, path: str, seconds: float) -> None:
        """Account for one finished request; of a stream, not its times: they are its client's. path is a route's."""
        key = path, request.status
        self._answered[key] = self._answered.get(key, 0) + 1
        run = None
        if request.model is not None and (request.rows or request.status >= 400):
            which = request.model, request.version or "", "fail" if request.status >= 400 else "success"
            run = self._run.get(which) or self._run.setdefault(which, dict.fromkeys(_COUNTED, 0.0))
            run["rows"] += request.rows
            run["steps"] += request.steps
        if not request.streams:
            latency = self._of_path.get(path)
            if latency is None:
                latency = self._of_path[path] = Tally(self._latency.labels(path), _SECONDS)
            latency.observe(seconds)
            for stage, spent in request.stages.items():
                self._of_stage[stage].observe(spent)
                if run:
                    run[stage] += spent
            if run:
                run["calls"] += 1
                run["all"] += seconds

    def count_turn(self, rows: int) -> None:
        self._batch.observe(rows)

    def fold(self) -> None:
        """Hand over to prometheus-client what was counted since the last time."""
        for (path, status), count in self._answered.items():
            self._requests.labels(path, str(status)).inc(count)
        self._answered.clear()
        for (model, version, outcome), run in self._run.items():
            self._rows.labels(model).inc(run["rows"])
            self._steps.labels(model).inc(run["steps"])
            if outcome == "success":
                self._inferences.labels(model, version).inc(run["rows"])
                self._last.labels(model, version).set_to_current_time()
            self._calls.labels(model, version, outcome).inc(run["calls"])
            for part in ("all", *STAGES):
                self._seconds.labels(model, version, outcome, part).inc(run[part])
        self._run.clear()
        for tally in (*self._of_stage.values(), *self._of_path.values()):
            tally.fold()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, together: Literal["livesum", "livemax"] = "livesum") -> Gauge:
        """A gauge; `together` says how those of several workers make one."""
        return Gauge(name, text, registry=self.registry, multiprocess_mode=together)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=bounds, registry=self.registry)


class Sampler:
    """What is read of the parts of the service now and then, and the page of all metrics. Sizes are in bytes."""

    def __init__(self, metrics: Metrics, inference: Inference, sessions: Sessions, dropped: Callable[[], int]) -> None:
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
        self._counted: Count[tuple[Counter, tuple[str, ...]]] = Count()

    def sample(self) -> None:
        self._metrics.fold()
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
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return together

    def _advance(self, count: int, counter: Counter, *labels: str) -> None:
        """Bring a counter to what was counted elsewhere: cheaper than counting here, once a step."""
        (counter.labels(*labels) if labels else counter).inc(count - self._counted[counter, labels])
        self._counted[counter, labels] = count
