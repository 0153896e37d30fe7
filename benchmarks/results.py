"""What was measured, as medians over rounds, ratios taken round by round, and what was expected."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from benchmarks.load import Sample
from benchmarks.table import NAIVE

MIN_REQUESTS = 30

Key = TypeVar("Key", bound=Hashable)
Taken = TypeVar("Taken")


class Turns(Generic[Key, Taken]):
    """Samples by key, one for each round, in order; those of an earlier run that was cut are there already."""

    def __init__(self, taken: Mapping[Key, Sequence[Taken]]) -> None:
        self.samples: dict[Key, list[Taken]] = {key: list(samples) for key, samples in taken.items()}

    def lack(self, keys: Iterable[Key], number: int) -> bool:
        """Whether a round (from 0) of any of the keys is yet to be taken.

        Keys of one group are compared with each other, so if one lacks a round, all do from that round on.
        """
        group = list(keys)
        if all(len(self.samples.get(key, ())) > number for key in group):
            return False
        for key in group:
            del self.samples.get(key, [])[number:]
        return True

    def add(self, key: Key, sample: Taken) -> None:
        """The next round of a key."""
        self.samples.setdefault(key, []).append(sample)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one value."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one dialect on one cell: a sample for each round, in order."""

    cell: str
    server: str
    dialect: str
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> Spread:
        """Requests a second."""
        return Spread.of(sample.rate for sample in self.samples)

    @property
    def errors(self) -> int:
        """Requests of all rounds that failed."""
        return sum(sample.errors for sample in self.samples)

    @property
    def too_short(self) -> bool:
        """Whether a round had too few requests to mean much."""
        return any(sample.requests < MIN_REQUESTS for sample in self.samples)

    def over(self, other: "Row") -> Spread:
        """Ratio of rates, each round by itself: what slows a whole round down cancels out.

        A run that was cut may have one round more of one of them.
        """
        return Spread.of(mine.rate / its.rate for mine, its in zip(self.samples, other.samples, strict=False))


@dataclass(frozen=True, slots=True)
class Resident:
    """A server's resident memory when it was ready, and at most after a run of load."""

    server: str
    ready_bytes: int
    loaded_bytes: int


def best_naive(rows: Sequence[Row], cell: str) -> Row | None:
    """The fastest of the naive variants on a cell, if any was measured."""
    return fastest(row for row in rows if row.cell == cell and row.server in NAIVE)


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row with the highest rate."""
    return max(rows, key=lambda row: row.rate.median, default=None)


def find(rows: Sequence[Row], cell: str, server: str, dialect: str) -> Row | None:
    """One server's row, if it was measured."""
    wanted = (cell, server, dialect)
    return next((row for row in rows if (row.cell, row.server, row.dialect) == wanted), None)
