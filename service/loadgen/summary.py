"""A run in figures: for people as a table, for programs as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from service.loadgen.histogram import Histogram
from service.loadgen.run import Run

SHARES = {"p50": 500, "p90": 900, "p99": 990, "p99_9": 999}

LATE_SECONDS = 0.001
LATE_SHARE = 0.1
BUSY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run. Times in milliseconds, rates a second; a figure that does not exist is None.

    A rate is counted over the time until the last request ended, or until the end of the arrivals if that is later.
    """

    seconds: float
    interrupted: bool
    due: int
    succeeded: int
    refused: int
    failed: int
    cut_off: int
    asked_rate: float | None
    due_rate: float
    succeeded_rate: float
    latency_ms: dict[str, float | None]
    refusal_latency_ms: dict[str, float | None]
    errors: dict[str, int]
    bytes_sent: int
    bytes_received: int
    waited_for_connection: int
    generator_lag_ms: dict[str, float | None]
    generator_cpu_share: float
    warnings: list[str]

    @classmethod
    def of(cls, run: Run) -> "Summary":
        """The figures of a run that has ended."""
        tally, seconds = run.tally, max(run.elapsed_seconds, 1e-9)
        return cls(
            seconds=seconds,
            interrupted=run.interrupted,
            due=tally.due,
            succeeded=tally.succeeded,
            refused=tally.refused,
            failed=tally.failed,
            cut_off=tally.cut_off,
            asked_rate=run.plan.rate,
            due_rate=tally.due / seconds,
            succeeded_rate=tally.succeeded / seconds,
            latency_ms=_milliseconds(tally.latency),
            refusal_latency_ms=_milliseconds(tally.refusal_latency),
            errors={str(failure): count for failure, count in tally.reasons.most_common()},
            bytes_sent=tally.bytes_sent,
            bytes_received=tally.bytes_received,
            waited_for_connection=tally.waited,
            generator_lag_ms=_milliseconds(tally.lag),
            generator_cpu_share=run.cpu_seconds / seconds,
            warnings=list(_warnings(run)),
        )

    @property
    def clean(self) -> bool:
        """Every request that was not cut off got 2xx."""
        return not self.refused and not self.failed

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def _milliseconds(histogram: Histogram) -> dict[str, float | None]:
    values = dict(zip(SHARES, histogram.quantiles(list(SHARES.values())), strict=True))
    values["max"] = histogram.largest if histogram.count else float("nan")
    values["mean"] = histogram.total_seconds / histogram.count if histogram.count else float("nan")
    return {name: None if isnan(value) else value * 1e3 for name, value in values.items()}


def _warnings(run: Run) -> Iterator[str]:
    """What makes the figures say less about the service than they seem to."""
    tally = run.tally
    if not run.model_loaded:
        yield "the model was not loaded when the run began: the first requests waited until it was"
    lag, latency = (histogram.quantiles([990])[0] for histogram in (tally.lag, tally.latency))
    if lag > max(LATE_SECONDS, LATE_SHARE * latency):
        yield f"the generator itself was late (p99 {lag * 1e3:.1f} ms): the latencies are partly its own"
    cpu = run.cpu_seconds / max(run.elapsed_seconds, 1e-9)
    if cpu > BUSY_SHARE:
        yield f"the generator used {cpu:.0%} of a core: the service may be able to do more than this shows"
    if tally.waited:
        share = tally.waited / max(tally.due, 1)
        yield (
            f"{tally.waited} requests ({share:.1%}) found all {run.plan.connections} connections busy and waited here, "
            "which their latency counts; --connections sets how many there are"
        )
