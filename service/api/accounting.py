"""What is known of a request when it is over: its line in the log and its place in the metrics."""

from collections.abc import Callable
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any

import structlog

from service.api.metrics import Metrics
from service.api.request import Request
from service.api.traces import Traces

LogRequest = Callable[[dict[str, Any]], None]

_UNLOGGED = ("/health", "/v2/health", "/metrics")  # probes and scrapers come every few seconds for ever


class Accounting:
    """Request ids, and an entry for each finished request; `log` and `traces` are None where there are none."""

    def __init__(self, metrics: Metrics, log: LogRequest | None, traces: Traces | None = None) -> None:
        self.is_traced = traces is not None
        self._traces = traces
        self._metrics = metrics
        self._log = log
        # Unique ids need no randomness each: the process's own, and a count.
        self._process = token_hex(5)
        self._numbers = count(1)

    def new_id(self) -> str:
        return f"{self._process}{next(self._numbers):06x}"

    def finish(self, request: Request) -> None:
        """Account for a finished request."""
        seconds = perf_counter() - request.begun
        self._metrics.count(request, seconds)
        if request.route.startswith(_UNLOGGED):
            return
        trace_id = None if self._traces is None else self._traces.record(request, seconds)
        if self._log is None:
            return
        ms = {stage: int(spent * 1e6) / 1000 for stage, spent in request.stages.items()}  # sooner than round()
        ms["total"] = int(seconds * 1e6) / 1000
        self._log(
            {
                "request_id": request.request_id,
                "client": request.address,
                "method": request.method,
                "path": request.route,
                "status": request.status,
                "model": request.model,
                "version": request.version,
                "rows": request.rows,
                "steps": request.steps,
                "received_bytes": request.received_bytes,
                "sent_bytes": request.sent_bytes,
                "ms": ms,
                **({"trace_id": trace_id} if trace_id else {}),
            }
        )


def log_request(entry: dict[str, Any]) -> None:
    """Log an entry through structlog, for servers that bring no quicker way."""
    structlog.get_logger().info("request", **entry)
