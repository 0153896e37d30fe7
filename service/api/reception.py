"""What every request meets, whichever way it takes: its name, its caller's rights, the metrics and the log."""

from collections.abc import Mapping
from itertools import count
from secrets import token_hex
from typing import Any

import structlog

from service.api.answer import Answer
from service.api.exchange import Exchange
from service.api.keys import Keys
from service.api.metrics import Metrics


class Reception:
    """One application's; request_log says whether each request gets a line."""

    def __init__(self, keys: Keys, metrics: Metrics, *, request_log: bool) -> None:
        self.keys = keys
        self._metrics = metrics
        self._request_log = request_log
        self._log = structlog.get_logger()
        # Unique ids need no randomness each: the process's own, and a count.
        self._process = token_hex(5)
        self._numbers = count(1)

    def new_id(self) -> str:
        """The name of a request that came without one."""
        return f"{self._process}{next(self._numbers):06x}"

    def account(self, exchange: Exchange, path: str, seconds: float) -> None:
        """Account for a finished exchange; path is a route's."""
        self._metrics.count(exchange, path, seconds)
        if self._request_log:
            self._write(
                {
                    "request_id": exchange.request_id,
                    "method": exchange.scope.get("method", "WS"),
                    "path": path,
                    "status": exchange.status,
                    "model": exchange.model,
                    "version": exchange.version,
                    "rows": exchange.rows,
                    "steps": exchange.steps,
                    "received_bytes": exchange.received_bytes,
                    "sent_bytes": exchange.sent_bytes,
                },
                exchange.stages,
                seconds,
            )

    def account_answer(
        self, answer: Answer, path: str, request_id: str, received_bytes: int, sent_bytes: int, seconds: float
    ) -> None:
        """Account for a quick answer."""
        self._metrics.count_answer(path, seconds, answer)
        if self._request_log:
            self._write(
                {
                    "request_id": request_id,
                    "method": "POST",
                    "path": path,
                    "status": 200,
                    "model": answer.model,
                    "version": answer.version,
                    "rows": answer.rows,
                    "steps": answer.steps,
                    "received_bytes": received_bytes,
                    "sent_bytes": sent_bytes,
                },
                answer.stages,
                seconds,
            )

    def _write(self, what: dict[str, Any], stages: Mapping[str, float], seconds: float) -> None:
        # Probes and scrapers come every few seconds for ever.
        line = self._log.debug if what["path"].startswith(("/health", "/metrics")) else self._log.info
        ms = {stage: round(spent * 1000, 3) for stage, spent in stages.items()}
        line("request", **what, ms=ms | {"total": round(seconds * 1000, 3)})
