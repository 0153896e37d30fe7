"""The service beside what users would write or pick instead: `python -m benchmarks.run --help`."""

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil

from benchmarks.report import wanted_table, write
from benchmarks.results import Results, default_file
from benchmarks.rivals import RIVALS, ROOT, ready
from benchmarks.rows import FEW_ROUNDS, ROWS, Row
from benchmarks.servers import SLOW_TO_START, Fleet

# What a server that does not do its part may end in.
FAILURES = (RuntimeError, ValueError, OSError, httpx.HTTPError, psutil.Error, subprocess.SubprocessError)


def main() -> int:
    options = arguments()
    rows = [row for row in ROWS if options.only in f"{row.section}: {row.name}"]
    results = Results.open(options.onto, options.against)
    for row in rows if options.again else []:
        results.samples.pop(row.name, None)
    results.left_out = {rival: "`make rivals` creates its environment" for rival in RIVALS if not ready(rival)}
    # A client and its server have a descriptor each for every one of many connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ended from outside, it ends its servers first, as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"results: {options.onto}; if this is cut, the same command goes on where it was")
    with tempfile.TemporaryDirectory(prefix="rnn-bench-", ignore_cleanup_errors=True) as folder:
        fleet = Fleet(Path(folder), options.against)
        try:
            measure_all(fleet, results, rows, options)
        except KeyboardInterrupt:
            return 130
        finally:
            fleet.stop()
    print(f"\n{wanted_table(results)}\nwritten:", *write(results, options.onto, options.page))
    return 1 if any(": " in what for what in results.left_out) else 0


def measure_all(fleet: Fleet, results: Results, rows: Sequence[Row], given: argparse.Namespace) -> None:
    """In each round every row, and of each row every server in turn; saved after each. What is there is kept.

    What fails is said on the page, and not tried again in this run.
    """
    begun = time.monotonic()
    for number in range(given.rounds):
        for row, name in turns(fleet, rows, number):
            most, what = min(row.rounds, FEW_ROUNDS if name in SLOW_TO_START else given.rounds), f"{row.name}: {name}"
            if number >= most or len(results.taken(row.name, name)) > number or what in results.left_out:
                continue
            fleet.stop(*(other for other in SLOW_TO_START if other != name))
            try:
                figures = row.measure(fleet, name, given.seconds)
            except FAILURES as error:
                results.left_out[what] = outcome = str(error)
                fleet.stop(name)
            else:
                results.add(row.name, name, figures)
                outcome = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            results.save(given.onto)
            gone = f"{(time.monotonic() - begun) / 60:.1f} min"
            print(f"{gone}, round {number + 1}, {what}: {outcome}", flush=True)


def turns(fleet: Fleet, rows: Sequence[Row], number: int) -> Iterator[tuple[Row, str]]:
    """Rows and servers in the order of a round: in each another server begins; those that start slowly come last."""
    names = [(row, row.servers(fleet)) for row in rows]
    for row, servers in names:
        quick = [name for name in servers if name not in SLOW_TO_START]
        shift = number % max(len(quick), 1)
        yield from ((row, name) for name in quick[shift:] + quick[:shift])
    for name in SLOW_TO_START:
        yield from ((row, name) for row, servers in names if name in servers)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose section or name has this text")
    parser.add_argument("--rounds", type=int, default=5, help="in which the servers take turns (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="of a closed loop or of streams (default 2)")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout, served beside this one")
    parser.add_argument("--onto", type=Path, default=default_file(), help="results; what is there already is kept")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--page", type=Path, default=ROOT / "docs", help="folder with benchmarks.md (default docs)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
