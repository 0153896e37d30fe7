"""What was expected, beside what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.memory import Peak
from benchmarks.results import Resident, Row, Spread, best_naive, fastest, find
from benchmarks.sweep import OVERLOAD, Point
from benchmarks.table import ECHO, JSON, NAIVE, OURS, OURS_TWICE

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """The least ratio of rates that is expected: `server` over `against` ("naive": its fastest variant)."""

    cell: str
    dialect: str
    least: float
    against: str = "naive"
    server: str = OURS


RATES = (
    Target("step", "json", 2.2),
    Target("step", "json", 0.55, against=ECHO),
    Target("small", "json", 4.5),
    Target("medium", "json", 4.5),
    Target("large", "json", 4.5),
    Target("medium", "safetensors", 15),
    Target("large", "safetensors", 40),
    Target("large", "json", 1.7, against=OURS, server=OURS_TWICE),
)
# The most that a step of the only client may take, in multiples of the naive endpoint's.
ALONE_CELL, ALONE_P50 = "step-1", 0.6
# The least part of the capacity that is still answered when three times as much arrives.
GOODPUT = {"step": 0.5, "medium": 0.9, "large": 0.9}
REFUSAL_MS = 50
# The most memory that a request may take at its peak, in multiples of body + reply; and that the service may take
# beyond the naive one's.
PEAK_LIMITS = (("json", 6.0), ("safetensors", 2.5))
RESIDENT_MIB = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside what was expected of it."""

    what: str
    expected: str
    measured: Spread
    met: bool


def verdicts(
    rows: Sequence[Row], residents: Sequence[Resident], peaks: Sequence[Peak], points: Sequence[Point]
) -> list[Verdict]:
    """Every expectation whose figures were measured."""
    return [*rates(rows), *ahead(rows), *alone(rows), *overload(points), *peak_memory(peaks), *resident(residents)]


def rates(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Requests a second over a yardstick's, which speaks JSON."""
    for target in RATES:
        ours = find(rows, target.cell, target.server, target.dialect)
        naive = target.against == "naive"
        other = best_naive(rows, target.cell) if naive else find(rows, target.cell, target.against, JSON.name)
        if ours and other:
            ratio = ours.over(other)
            expected = f"≥ {target.least:g} × {'the fastest naive variant' if naive else target.against}"
            who = "" if target.server == OURS else f" of {target.server}"
            what = f"{target.cell}, {target.dialect}: requests/s{who}"
            yield Verdict(what, expected, ratio, ratio.median >= target.least and not ours.errors)


def ahead(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Faster than the fastest of all others on every cell, in JSON."""
    for cell in dict.fromkeys(row.cell for row in rows):
        ours = find(rows, cell, OURS, JSON.name)
        other = fastest(row for row in rows if row.cell == cell and row.server not in {OURS, OURS_TWICE, ECHO})
        if ours and other:
            ratio = ours.over(other)
            yield Verdict(
                f"{cell}, json: requests/s", f"> {other.server}, the best of the others", ratio, ratio.low > 1
            )


def alone(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Latency of a single client's steps."""
    ours, naive = find(rows, ALONE_CELL, OURS, JSON.name), best_naive(rows, ALONE_CELL)
    if ours and naive:
        pairs = zip(ours.samples, naive.samples, strict=True)
        ratio = Spread.of(mine.p50_ms / its.p50_ms for mine, its in pairs)
        expected = f"≤ {ALONE_P50:g} × the fastest naive variant"
        yield Verdict(f"{ALONE_CELL}, json: p50 of the only client", expected, ratio, ratio.median <= ALONE_P50)


def overload(points: Sequence[Point]) -> Iterator[Verdict]:
    """Goodput and the time to a refusal, under three times the capacity."""
    for point in points:
        if point.server == OURS and point.fraction == OVERLOAD and point.cell in GOODPUT:
            what = f"{point.cell}, {point.dialect}, {OVERLOAD:g} × capacity arrives"
            least = GOODPUT[point.cell]
            part = point.arrivals.goodput / point.capacity
            yield Verdict(f"{what}: goodput", f"≥ {least:g} × capacity", Spread.of([part]), part >= least)
            late = point.arrivals.refusal_p99_ms
            if late is not None:
                expected = f"≤ {REFUSAL_MS} ms"
                yield Verdict(f"{what}: p99 to a refusal, ms", expected, Spread.of([late]), late <= REFUSAL_MS)


def peak_memory(peaks: Sequence[Peak]) -> Iterator[Verdict]:
    """Memory of one large request."""
    for dialect, limit in PEAK_LIMITS:
        for peak in (peak for peak in peaks if (peak.server, peak.dialect) == (OURS, dialect)):
            what = f"{peak.cell}, {dialect}: peak memory of a request"
            yield Verdict(what, f"≤ {limit:g} × (body + reply)", Spread.of([peak.ratio]), peak.ratio <= limit)


def resident(residents: Sequence[Resident]) -> Iterator[Verdict]:
    """Memory of the service over that of the smallest naive variant, in MiB."""
    moments = {
        "resident when ready": {line.server: line.ready_bytes / MIB for line in residents},
        "resident after load": {line.server: line.loaded_bytes / MIB for line in residents},
    }
    for moment, sizes in moments.items():
        naive = [size for name, size in sizes.items() if name in NAIVE]
        if OURS in sizes and naive:
            more = sizes[OURS] - min(naive)
            expected = f"≤ naive + {RESIDENT_MIB}"
            yield Verdict(f"{moment}, MiB beyond naive", expected, Spread.of([more]), more <= RESIDENT_MIB)
