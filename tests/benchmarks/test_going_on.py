"""A run that was cut goes on where it was: what is there is kept, and what was half done is done anew."""

import io
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.bodies import CELLS
from benchmarks.fleet import Fleet
from benchmarks.load import Sample
from benchmarks.report import Report
from benchmarks.results import Resident, Row, Turns
from benchmarks.rounds import Load, Rounds
from benchmarks.table import NAIVE, OURS, servers
from benchmarks.units import Bench, Unit, run, within

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def sample(rate: int) -> Sample:
    return Sample(requests=rate, seconds=1.0, p50_ms=1.0, p99_ms=2.0, cpu_ms=0.5, resident_bytes=2**20, errors=0)


def bench(report: Report, folder: Path, *names: str) -> Bench:
    chosen = [server for server in servers() if server.name in names]
    console = Console(file=io.StringIO())
    return Bench(chosen, CELLS[:2], Rounds(3, 1, 30), False, report, console, Fleet(folder, folder))


def unit(name: str, doing: Callable[[], None], *, there: bool = False, subject: str = "") -> Unit:
    return Unit(name, 1.0, there, doing, subject or name)


def test_a_group_of_which_one_lacks_a_round_takes_it_anew_for_all() -> None:
    turns = Turns({"a": [1, 2, 3], "b": [1, 2]})
    assert [turns.lack(["a", "b"], number) for number in (0, 1)] == [False, False]
    assert turns.lack(["a", "b"], 2)
    assert turns.samples == {"a": [1, 2], "b": [1, 2]}


def test_a_key_that_was_never_measured_lacks_the_first_round_and_takes_its_group_along() -> None:
    turns = Turns({"a": [1, 2]})
    assert turns.lack(["a", "new"], 0)
    assert turns.samples["a"] == []


def test_a_report_is_read_as_it_was_saved(tmp_path: Path) -> None:
    report = Report.new(NOW, 0.25, 5, "shortest")
    report.rows = [Row("step", OURS, "json", (sample(10), sample(20)))]
    report.resident = [Resident(OURS, 1, 2)]
    report.left_out = {"load": ["LitServe: did not start"]}
    file = tmp_path / "deep" / "results.json"
    report.save(file)
    read = Report.read(file)
    assert (read.when, list(read.rows), list(read.resident)) == (NOW, report.rows, report.resident)
    assert (read.left_out, read.machine, read.versions) == (report.left_out, report.machine, report.versions)
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


def test_rounds_that_are_there_are_not_planned_again(tmp_path: Path) -> None:
    report = Report.new(NOW, 0, 3, "")
    done = {"step": 2, "step-1": 1}
    report.rows = [
        Row(cell, name, "json", tuple(sample(10) for _ in range(count)))
        for cell, count in done.items()
        for name in (OURS, NAIVE[2])
    ]
    units = Load(bench(report, tmp_path, OURS, NAIVE[2])).units()
    assert {one.name for one in units if not one.there} == {"round 2, step-1", "round 3, step", "round 3, step-1"}


def test_a_server_that_is_new_in_a_group_has_the_whole_group_measured_again(tmp_path: Path) -> None:
    report = Report.new(NOW, 0, 3, "")
    report.rows = [Row(cell.name, OURS, "json", (sample(10),) * 3) for cell in CELLS[:2]]
    units = Load(bench(report, tmp_path, OURS, NAIVE[2])).units()
    assert not any(one.there for one in units)


def test_units_that_are_there_are_skipped_and_each_other_one_is_saved(tmp_path: Path) -> None:
    done: list[str] = []
    saved: list[list[str]] = []
    units = [unit("a", lambda: done.append("a"), there=True), *(unit(n, lambda n=n: done.append(n)) for n in "bc")]
    assert run({"load": units}, bench(Report.new(NOW, 0, 3, ""), tmp_path), lambda: saved.append([*done]))
    assert saved == [["b"], ["b", "c"]]


def test_what_fails_is_said_and_its_subject_is_not_asked_again(tmp_path: Path) -> None:
    report, done = Report.new(NOW, 0, 3, ""), list[str]()

    def fails() -> None:
        raise RuntimeError("Ray did not become ready:\nlong log")

    units = [
        unit("round 1, Ray", fails, subject="Ray"),
        unit("round 1, ours", lambda: done.append("1")),
        unit("round 2, Ray", lambda: done.append("Ray"), subject="Ray"),
        unit("round 2, ours", lambda: done.append("2")),
    ]
    assert not run({"load": units}, bench(report, tmp_path), lambda: None)
    assert done == ["1", "2"]
    assert report.left_out == {"load": ["load, round 1, Ray: Ray did not become ready:"]}


def test_what_hangs_is_given_up() -> None:
    with pytest.raises(TimeoutError, match="not done after 0 s"), within(0.01):
        threading.Event().wait()
