"""What was measured, as medians over rounds, ratios taken round by round, and what was expected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Sample
from benchmarks.memory import Peak
from benchmarks.servers import JSON, NAIVE, OURS

MIN_REQUESTS = 50


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
        """Ratio of rates, each round by itself: what slows a whole round down cancels out."""
        return Spread.of(mine.rate / its.rate for mine, its in zip(self.samples, other.samples, strict=True))


@dataclass(frozen=True, slots=True)
class Target:
    """The least that is expected: of ours against the fastest naive variant, or against our own JSON."""

    cell: str
    dialect: str
    least: float
    against: str = "naive"


TARGETS = (
    Target("step", "json", 1.2),
    Target("small", "json", 2),
    Target("medium", "json", 3),
    Target("large", "json", 3.5),
    Target("large", "safetensors", 4, against="json"),
)

# The most memory that a request may take at its peak, in multiples of body + reply.
PEAK_LIMITS = (("json", 6.0), ("safetensors", 2.5))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside what was expected of it."""

    what: str
    expected: str
    measured: Spread
    met: bool


def best_naive(rows: Sequence[Row], cell: str) -> Row | None:
    """The faster of the naive variants on a cell, if any was measured."""
    candidates = [row for row in rows if row.cell == cell and row.server in NAIVE]
    return max(candidates, key=lambda row: row.rate.median, default=None)


def ours(rows: Sequence[Row], cell: str, dialect: str) -> Row | None:
    found = (row for row in rows if (row.cell, row.server, row.dialect) == (cell, OURS, dialect))
    return next(found, None)


def verdicts(rows: Sequence[Row], peaks: Sequence[Peak]) -> list[Verdict]:
    """Every expectation whose figures were measured."""
    found = []
    for target in TARGETS:
        row = ours(rows, target.cell, target.dialect)
        naive = target.against == "naive"
        baseline = best_naive(rows, target.cell) if naive else ours(rows, target.cell, JSON.name)
        if row and baseline:
            ratio = row.over(baseline)
            what = f"{target.cell}, {target.dialect}: requests/s"
            against = "the fastest naive variant" if naive else "our own JSON"
            met = ratio.median >= target.least and not row.errors
            found.append(Verdict(what, f"≥ {target.least:g} × {against}", ratio, met))
    for dialect, limit in PEAK_LIMITS:
        for peak in (peak for peak in peaks if (peak.server, peak.dialect) == (OURS, dialect)):
            what = f"{peak.cell}, {dialect}: peak memory of a request"
            expected = f"≤ {limit:g} × (body + reply)"
            found.append(Verdict(what, expected, Spread.of([peak.ratio]), peak.ratio <= limit))
    return found
