"""Durations by size, in memory that does not grow with their number."""

from collections.abc import Sequence
from math import exp, inf, log

SMALLEST_SECONDS = 1e-6
LARGEST_SECONDS = 4000.0
STEP = log(1.005)
BUCKETS = int(log(LARGEST_SECONDS / SMALLEST_SECONDS) / STEP) + 2


class Histogram:
    """Durations in seconds from a microsecond to an hour, in buckets 0.5 % wide; the largest is exact."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.total_seconds = 0.0
        self.smallest = inf
        self.largest = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        clipped = min(max(seconds, SMALLEST_SECONDS), LARGEST_SECONDS)
        self._counts[int(log(clipped / SMALLEST_SECONDS) / STEP)] += 1
        self.count += 1
        self.total_seconds += seconds
        self.smallest = min(self.smallest, seconds)
        self.largest = max(self.largest, seconds)

    def quantiles(self, shares: Sequence[int]) -> list[float]:
        """Nearest-rank quantiles in seconds, each within 0.26 %; shares in thousandths, rising. NaN if it is empty.

        The quantile of 500 is the smallest recorded duration that at least half of them do not exceed.
        """
        found: list[float] = []
        seen, bucket = 0, -1
        for share in shares if self.count else ():
            rank = max(1, -(-share * self.count // 1000))
            while seen < rank:
                bucket += 1
                seen += self._counts[bucket]
            middle = SMALLEST_SECONDS * exp((bucket + 0.5) * STEP)
            found.append(min(max(middle, self.smallest), self.largest))
        return found or [float("nan")] * len(shares)
