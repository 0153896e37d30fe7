"""What the benchmark makes of its samples: lines and bends, ratios, percentiles, places of names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Sample
from benchmarks.openloop import summary
from benchmarks.plots import apart
from benchmarks.results import Row
from benchmarks.scaling import AXES, Cost, axis_value, lines
from benchmarks.table import ECHO, NAIVE, OURS
from benchmarks.verdicts import rates


def sample(rate: float = 1, cpu_ms: float = 1) -> Sample:
    return Sample(round(1000 * rate), 1000.0, p50_ms=1, p99_ms=2, cpu_ms=cpu_ms, resident_bytes=1, errors=0)


def costs(fixed_ms: float, per_step_us: float, *, bend_at: int, after_us: float) -> list[Cost]:
    """Costs along B and T of a line that bends."""
    found = []
    for axis in ("B", "T"):
        for cell in AXES[axis]:
            work = cell.batch * cell.steps
            cpu = fixed_ms + (per_step_us * min(work, bend_at) + after_us * max(work - bend_at, 0)) / 1e3
            found.append(Cost(axis, axis_value(axis, cell), "json", cell, (sample(cpu_ms=cpu),)))
    return found


def test_a_straight_line_is_found_and_does_not_bend() -> None:
    (line,) = lines(costs(0.2, 4, bend_at=512, after_us=4.0))
    assert (line.fixed_ms, line.per_step_us) == (pytest.approx(0.2), pytest.approx(4))
    assert abs(line.worst) < 1e-9
    assert line.error < 1e-9


@pytest.mark.parametrize("bend_at", [128, 512, 2048])
def test_a_bend_is_found_at_its_place_with_both_slopes(bend_at: int) -> None:
    (line,) = lines(costs(0.2, 4, bend_at=bend_at, after_us=9))
    assert line.bends
    assert line.bend_at == bend_at
    assert (line.before_us, line.after_us) == (pytest.approx(4), pytest.approx(9))


def test_a_ratio_is_taken_within_rounds_and_against_the_fastest_naive_variant() -> None:
    # The second round was twice as slow for everyone: the ratios do not see it.
    ours = Row("step", OURS, "json", (sample(40), sample(20)))
    slow = Row("step", NAIVE[0], "json", (sample(5), sample(2.5)))
    fast = Row("step", NAIVE[2], "json", (sample(10), sample(5)))
    echo = Row("step", ECHO, "json", (sample(80), sample(40)))
    found = {verdict.expected: verdict for verdict in rates([ours, slow, fast, echo])}
    naive, floor = found["≥ 2.2 × the fastest naive variant"], found[f"≥ 0.55 × {ECHO}"]
    assert (naive.measured.median, naive.measured.low, naive.measured.high, naive.met) == (4, 4, 4, True)
    assert (floor.measured.median, floor.met) == (0.5, False)


@pytest.mark.parametrize(("answers", "p99", "p999"), [(499, False, False), (500, True, False), (5000, True, True)])
def test_a_percentile_needs_five_values_beyond_it(answers: int, *, p99: bool, p999: bool) -> None:
    output = "\n".join(f"{1000 * number} {number} 200" for number in range(answers)).encode()
    found = summary(output, 1000, answers / 1000, 1.0, 1)
    assert (found.p99_ms is not None, found.p999_ms is not None) == (p99, p999)
    assert found.p50_ms == pytest.approx((answers - 1) / 2 / 1e3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_names_are_moved_apart_and_stay_in_order(wanted: list[float]) -> None:
    placed = np.array(apart(sorted(wanted), 0.04))
    assert (np.diff(placed) >= 0.04 - 1e-12).all()
    assert placed[-1] <= 1
