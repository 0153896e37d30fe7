"""The service beside what users would write or pick instead: `python -m benchmarks.bench --help`."""

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from benchmarks.bodies import CELLS, write_models, write_replies
from benchmarks.fleet import Fleet
from benchmarks.pages import show, write
from benchmarks.parts import FIELDS, PARTS
from benchmarks.plan import NUMBERS, Plan, parse
from benchmarks.provenance import default_file
from benchmarks.report import Report
from benchmarks.scaling import extra_cells
from benchmarks.units import Bench, clock, expected, run

QUIET = 0.5


def main() -> int:
    console = Console(stderr=True)
    plan = parse(console)
    # A client and its server have a descriptor each for every one of many thousand connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ended from outside, it ends its servers first, as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    file, report = begin(plan, console)
    with folders() as fleet:
        bench = Bench(plan.servers, plan.cells, plan.rounds, plan.quick, report, console, fleet)
        parts = {name: PARTS[name][1](bench) for name in plan.parts}
        for name, units in parts.items():
            there = sum(unit.there for unit in units)
            kept = f", {there} of {len(units)} units are there" if there else ""
            console.print(f"{name}: about {clock(expected({name: units}))}{kept}", highlight=False)
        console.print(f"all: about {clock(expected(parts))} minutes on two cores", highlight=False, style="bold")
        if plan.estimate:
            return 0
        console.print(f"results: {file}; if this is cut, go on with --onto {file}", highlight=False, soft_wrap=True)
        try:
            fine = run(parts, bench, lambda: report.save(file))
        except KeyboardInterrupt:
            console.print(f"cut; go on with --onto {file}", highlight=False, soft_wrap=True)
            return 130
    show(report)
    for path in write(report, plan.output, file) if plan.output else []:
        console.print(f"written: {path}")
    return 1 if not fine or any(row.errors for row in report.rows) else 0


def begin(plan: Plan, console: Console) -> tuple[Path, Report]:
    """Where the results go, and the report that is there or a new one."""
    load_before = os.getloadavg()[0]
    if load_before > QUIET:
        console.print(f"load average is {load_before:.2f}: the machine is not quiet, and the figures will be noisy")
    now = datetime.now(tz=UTC)
    file = plan.onto or (
        plan.output / default_file(now)
        if plan.output
        else Path(tempfile.mkdtemp(prefix="rnn-results-"), "results.json")
    )
    if not (plan.onto and file.exists()):
        return file, Report.new(now, load_before, plan.rounds.count, NUMBERS[plan.numbers])
    try:
        report = Report.read(file)
    except ValidationError as error:
        sys.exit(f"{file} has no results of this version of the benchmark; name a new file. {error}")
    report.rounds = plan.rounds.count
    for change in report.go_on():
        console.print(change, highlight=False, style="bold")
    for name in plan.parts:
        report.left_out.pop(name, None)
        for field in FIELDS[name] if plan.again else ():
            setattr(report, field, getattr(Report.new(now, 0, 0, ""), field))
    return file, report


@contextmanager
def folders() -> Iterator[Fleet]:
    """The model repository of all cells, and a place for temporary files."""
    with tempfile.TemporaryDirectory(prefix="rnn-bench-", ignore_cleanup_errors=True) as directory:
        models, scratch = Path(directory, "models"), Path(directory, "scratch")
        models.mkdir()
        scratch.mkdir()
        write_models(models, (*CELLS, *extra_cells()))
        write_replies(Path(directory, "replies"))
        yield Fleet(models, scratch)


if __name__ == "__main__":
    sys.exit(main())
