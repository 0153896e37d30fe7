"""What became of every request that was due."""

from collections import Counter
from dataclasses import dataclass, field

from service.loadgen.histogram import Histogram

REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request did not succeed: the reply's status (0: there was none) and the problem's type or what happened."""

    status: int
    problem: str

    def __str__(self) -> str:
        return f"{self.status} {self.problem}" if self.status else self.problem

    @property
    def refused(self) -> bool:
        """The service said that it has no room."""
        return self.status in REFUSALS


@dataclass(slots=True)
class Tally:
    """Counts and latencies so far. Each request ends as succeeded, refused, failed or, on Ctrl-C, cut off.

    Latencies in seconds from the time when the request was due. waited: those that found every connection busy.
    lag: how late the generator itself was to look at a request that was due.
    """

    due: int = 0
    waited: int = 0
    refused: int = 0
    failed: int = 0
    cut_off: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    reasons: Counter[Failure] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    refusal_latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)

    @property
    def succeeded(self) -> int:
        """Requests answered with 2xx."""
        return self.latency.count

    @property
    def outstanding(self) -> int:
        """Requests that are due and have not ended."""
        return self.due - self.succeeded - self.refused - self.failed - self.cut_off

    def fail(self, failure: Failure, seconds: float) -> None:
        """Count a request that was refused or failed after so many seconds."""
        self.reasons[failure] += 1
        if failure.refused:
            self.refused += 1
            self.refusal_latency.record(seconds)
        else:
            self.failed += 1
