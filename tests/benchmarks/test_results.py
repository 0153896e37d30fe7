"""What the benchmark makes of its samples, and how a run that was cut goes on."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.report import TITLES, page, write
from benchmarks.results import Results
from benchmarks.rows import FASTEST_NAIVE, ROWS, WANTED, Row, Wanted
from benchmarks.run import measure_all
from benchmarks.servers import BENTOML, MOSEC, NAIVE, OTHER, OURS, OWN, RAY, TRITON, Fleet, servers

STEP = "step, JSON"


def results(**samples: list[float]) -> Results:
    """Rates of the servers in the row "step, JSON", a value a round."""
    rates = {name: [{"rate": rate} for rate in values] for name, values in samples.items()}
    return Results("2026-11-30", 0.1, "a machine, 2 cores", {"commit": "abc"}, samples={STEP: rates})


class StoppedFleet(SimpleNamespace):
    """A fleet whose servers never run; what is stopped is noted."""

    def __init__(self, *names: str) -> None:
        super().__init__(servers=dict.fromkeys(names), stopped=[])

    def stop(self, *names: str) -> None:
        self.stopped += names


def test_ratio_is_taken_within_rounds() -> None:
    # The second round was twice as slow for everybody: the ratios do not see it.
    found = results(**{OURS: [40, 20], NAIVE[0]: [5, 2.5], NAIVE[2]: [10, 5]})
    wanted = Wanted(STEP, "rate", least=3.3, over=("", FASTEST_NAIVE, ""))
    assert found.measured(wanted) == (4, 4, 4)
    assert wanted.met(4)
    assert not wanted.met(3.2)


def test_other_checkout_takes_our_place() -> None:
    found = results(**{OURS: [40], OTHER: [30], NAIVE[0]: [10]})
    assert found.measured(Wanted(STEP, "rate", over=("", NAIVE[0], "")), OTHER) == (3, 3, 3)
    assert found.measured(Wanted(STEP, "rate", least=1, over=("", OTHER, ""))) == pytest.approx((4 / 3,) * 3)
    assert found.measured(Wanted(STEP, "rate", over=("", OTHER, "")), OTHER) is None


def test_difference_and_missing_figures() -> None:
    found = results(**{OURS: [40, 30], MOSEC: [10, 20]})
    assert found.measured(Wanted(STEP, "rate", over=("", MOSEC, ""), minus=True)) == (20, 10, 30)
    assert found.measured(Wanted(STEP, "p99_ms", most=1)) is None
    assert found.measured(Wanted("no such row", "rate", least=1)) is None


def test_wanted_figures_exist() -> None:
    rows = {row.name: row for row in ROWS}
    everybody = {**servers(Path("other")), FASTEST_NAIVE: None, MOSEC: None, TRITON: None}
    for wanted in WANTED:
        row, server, figure = wanted.over or ("", OURS, "")
        assert {wanted.row, row or wanted.row} <= rows.keys()
        assert wanted.variant in rows[wanted.row].variants
        assert server in everybody
        assert {wanted.figure, figure or wanted.figure} <= TITLES.keys()
    assert len(rows) == len(ROWS)


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    found = results(**{OURS: [40, 20]})
    found.left_out["step, JSON: LitServe"] = "did not start"
    file = tmp_path / "deep" / "results.json"
    found.save(file)
    assert Results.read(file) == found
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


def test_run_measures_what_is_missing(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(_: Fleet, name: str, seconds: int) -> dict[str, float]:
        measured.append(name)
        if name == MOSEC:
            raise RuntimeError("not ready: long log")
        return {"rate": seconds}

    found = results(**{OURS: [40]})
    rows = [Row("section", STEP, measure, others=(RAY, MOSEC, BENTOML, NAIVE[0]))]
    fleet = StoppedFleet(OURS, RAY, MOSEC, BENTOML, NAIVE[0])
    given = Namespace(rounds=2, seconds=2, onto=tmp_path / "results.json")
    measure_all(cast("Fleet", fleet), found, rows, given)
    # Round 2 begins with another server; what failed is not tried again.
    assert measured == [MOSEC, NAIVE[0], BENTOML, RAY, NAIVE[0], OURS, BENTOML, RAY]
    assert found.left_out == {f"{STEP}: {MOSEC}": "not ready: long log"}
    assert Results.read(tmp_path / "results.json") == found


def test_page_is_written_between_its_markers(tmp_path: Path) -> None:
    found = results(**{OURS: [40, 20], f"{OURS}, {OWN}": [1, 1], NAIVE[0]: [10, 5]})
    found.left_out["ray"] = "`make rivals` creates its environment"
    for _ in range(2):
        write(found, tmp_path / "results.json", tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count("| step, JSON: per second ÷ the fastest naive variant | ≥ 3.3 | 4 | yes |") == 1
    assert text.count("## How it is measured") == 1
    assert "- ray: `make rivals` creates its environment" in text
    assert (tmp_path / "images/bench-load.png").exists()


def test_page_compares_the_other_checkout() -> None:
    found: Any = results(**{OURS: [40], OTHER: [20]})
    assert "Beside the other checkout" not in page(found, "results.json", [])
    found.other = "368d8d4"
    assert f"| {STEP}: {OURS} | per second | 40 | 20 | 2 |" in page(found, "results.json", [])
