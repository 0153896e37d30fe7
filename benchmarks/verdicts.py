"""What was expected, beside what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.batching import Gain
from benchmarks.beside import ALONE as NOTHING
from benchmarks.beside import Beside
from benchmarks.memory import Peak
from benchmarks.results import Resident, Row, Spread, best_naive, fastest, find
from benchmarks.scaling import Cost, lines
from benchmarks.sweep import FULL, OVERLOAD, Point
from benchmarks.table import ECHO, JSON, NAIVE, OURS, OURS_TWICE
from benchmarks.verdict import Verdict
from benchmarks.verdicts_live import streams_and_sessions

if TYPE_CHECKING:
    from benchmarks.report import Report

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
# Not refused: arrivals wait in the load's own pool until one of its connections is free, longer and longer.
QUEUED = {"step"}
REFUSAL_MS = 50
# The most memory at three times the capacity, in multiples of that at the capacity.
FLAT = 1.2
# The most that a large request in safetensors may take, in multiples of its arithmetic and the web layer.
FLOOR = 1.3
# p99 of steps while large requests run: in safetensors in multiples of that alone, in JSON in milliseconds.
BESIDE_BINARY, BESIDE_MS = 5, 15
GAINS = {"scheduler": 2.0, "HTTP, safetensors": 1.3}
# How far from a straight line counts as a bend.
STRAIGHT = 0.25
# The most memory that a request may take at its peak, in multiples of body + reply; and that the service may take
# beyond the naive one's.
PEAK_LIMITS = (("json", 6.0), ("safetensors", 2.5))
RESIDENT_MIB = 100


def verdicts(report: "Report") -> list[Verdict]:
    """Every expectation whose figures were measured."""
    return [
        *rates(report.rows),
        *floor(report.rows, report.kernel_ms),
        *ahead(report.rows),
        *alone(report.rows),
        *overload(report.points),
        *long_beside_short(report.beside),
        *batching(report.gains),
        *peak_memory(report.peaks),
        *resident(report.resident),
        *straight_lines(report.costs),
        *streams_and_sessions(report),
    ]


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
            how = "requests/s over the other's in the same round, closed loop"
            yield Verdict(what, expected, ratio, ratio.median >= target.least and not ours.errors, how)


def floor(rows: Sequence[Row], kernel_ms: Sequence[float]) -> Iterator[Verdict]:
    """Time of a large request in safetensors over what its arithmetic and the web layer take."""
    ours, echo = find(rows, "large", OURS, "safetensors"), find(rows, "large", ECHO, "safetensors")
    if ours and echo and kernel_ms:
        rounds = zip(ours.samples, echo.samples, kernel_ms, strict=False)
        ratio = Spread.of(1 / mine.rate / (1 / its.rate + alone / 1e3) for mine, its, alone in rounds)
        expected = f"≤ {FLOOR:g} × (kernel + {ECHO})"
        how = "seconds a request (1 / rate) over the kernel's + the echo's in the same round"
        yield Verdict("large, safetensors: time of a request", expected, ratio, ratio.median <= FLOOR, how)


def ahead(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Faster than the fastest of all others on every cell, in JSON."""
    for cell in dict.fromkeys(row.cell for row in rows):
        ours = find(rows, cell, OURS, JSON.name)
        other = fastest(row for row in rows if row.cell == cell and row.server not in {OURS, OURS_TWICE, ECHO})
        if ours and other:
            ratio = ours.over(other)
            expected = f"> {other.server}, the best of the others"
            how = "requests/s over the other's in the same round; met if so in every round"
            yield Verdict(f"{cell}, json: requests/s", expected, ratio, ratio.low > 1, how)


def alone(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Latency of a single client's steps."""
    ours, naive = find(rows, ALONE_CELL, OURS, JSON.name), best_naive(rows, ALONE_CELL)
    if ours and naive:
        pairs = zip(ours.samples, naive.samples, strict=False)
        ratio = Spread.of(mine.p50_ms / its.p50_ms for mine, its in pairs)
        expected = f"≤ {ALONE_P50:g} × the fastest naive variant"
        how = "p50 over the other's in the same round, closed loop"
        yield Verdict(f"{ALONE_CELL}, json: p50 of the only client", expected, ratio, ratio.median <= ALONE_P50, how)


def overload(points: Sequence[Point]) -> Iterator[Verdict]:
    """Goodput, the time to a refusal, and memory, under three times the capacity."""
    full = {(point.cell, point.dialect): point for point in points if point.server == OURS and point.fraction == FULL}
    for point in points:
        if point.server == OURS and point.fraction == OVERLOAD and point.cell in GOODPUT:
            what = f"{point.cell}, {point.dialect}, {OVERLOAD:g} × capacity arrives"
            least = GOODPUT[point.cell]
            queued, taken = point.cell in QUEUED, point.arrivals
            part = (taken.throughput if queued else taken.goodput) / point.capacity
            how = "answers/s while requests arrive over the closed loop's requests/s just before"
            how += "" if queued else "; those within a second of their arrival"
            yield Verdict(f"{what}: goodput", f"≥ {least:g} × capacity", Spread.of([part]), part >= least, how)
            late = point.arrivals.refusal_p99_ms
            if late is not None:
                expected = f"≤ {REFUSAL_MS} ms"
                met, how = late <= REFUSAL_MS, "p99 from the arrival to a 429 or 503"
                yield Verdict(f"{what}: p99 to a refusal, ms", expected, Spread.of([late]), met, how)
            if before := full.get((point.cell, point.dialect)):
                more = point.peak_bytes / before.peak_bytes
                expected = f"≤ {FLAT:g} × that at 1 × capacity"
                how = "most resident bytes over those when 1 × arrives"
                yield Verdict(f"{what}: peak memory", expected, Spread.of([more]), more <= FLAT, how)


def long_beside_short(measured: Sequence[Beside]) -> Iterator[Verdict]:
    """p99 of steps while large requests run."""
    ours = {one.beside: one for one in measured if one.server == OURS}
    lone, binary, text = (ours.get(name) for name in (NOTHING, "safetensors", "json"))
    if lone and binary and (ratio := binary.over(lone)):
        what = "step beside large, safetensors: p99"
        met, how = ratio.median <= BESIDE_BINARY, "p99 over that alone in the same round, both at half of the maximum"
        yield Verdict(what, f"≤ {BESIDE_BINARY:g} × that alone", ratio, met, how)
    if text and (late := text.p99_ms):
        met, how = late.median <= BESIDE_MS, "p99 of steps at half of the maximum"
        yield Verdict("step beside large, json: p99, ms", f"≤ {BESIDE_MS} ms", late, met, how)


def batching(gains: Sequence[Gain]) -> Iterator[Verdict]:
    """Rows a second of 64 clients together over one at a time."""
    for gain in gains:
        least = GAINS[gain.where]
        what = f"64 clients, {gain.where}: rows/s"
        met, how = gain.ratio.median >= least, "rows/s over those with one row a turn, in the same round"
        yield Verdict(what, f"≥ {least:g} × one row at a time", gain.ratio, met, how)


def straight_lines(costs: Sequence[Cost]) -> Iterator[Verdict]:
    """How far the cost of a request is from a straight line in B·T."""
    for line in lines(costs) if any(cost.axis == "B" for cost in costs) else []:
        off = abs(line.worst)
        what = f"{line.dialect}: CPU a request, furthest from a straight line in B·T (at {line.worst_at})"
        how = "largest part by which the line is off the CPU ms a request, axes B and T"
        yield Verdict(what, f"≤ {STRAIGHT:g}", Spread.of([off]), off <= STRAIGHT, how)


def peak_memory(peaks: Sequence[Peak]) -> Iterator[Verdict]:
    """Memory of one large request."""
    for dialect, limit in PEAK_LIMITS:
        for peak in (peak for peak in peaks if (peak.server, peak.dialect) == (OURS, dialect)):
            what = f"{peak.cell}, {dialect}: peak memory of a request"
            met, how = peak.ratio <= limit, "rise of the peak resident memory over bytes sent and got"
            yield Verdict(what, f"≤ {limit:g} × (body + reply)", Spread.of([peak.ratio]), met, how)


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
            met, how = more <= RESIDENT_MIB, "MiB minus those of the smallest naive variant"
            yield Verdict(f"{moment}, MiB beyond naive", expected, Spread.of([more]), met, how)
