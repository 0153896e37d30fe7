"""Counting in plain numbers, folded into Prometheus' objects now and then.

A histogram of prometheus-client takes a microsecond for each observation (a lock for its sum, one for a bucket; with
several workers, writes into mapped files): several of them are a good part of a small step.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram


class Tally:
    """Observations of one histogram, labels and all. Used from one thread; `fold` passes them on."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def fold(self) -> None:
        """Move what was counted to the histogram.

        By its own parts: to observe n values at once is not among its methods. It adds up what is below each bound
        when it is read.
        """
        for index, count in enumerate(self._counts):
            if count:
                self._histogram._buckets[index].inc(count)  # noqa: SLF001
                self._counts[index] = 0
        if self._sum:
            self._histogram._sum.inc(self._sum)  # noqa: SLF001
            self._sum = 0.0
