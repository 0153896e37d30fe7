"""The service beside what users would write or pick instead: `python -m benchmarks.run --help`."""

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx
import psutil

from benchmarks.report import wanted_table, write
from benchmarks.results import Results, default_file
from benchmarks.rivals import RIVALS, ROOT, ready
from benchmarks.rows import FEW_ROUNDS, ROWS, Bench, Row
from benchmarks.servers import SLOW_TO_START, Fleet

# What a server that does not do its part may end in.
FAILURES = (RuntimeError, ValueError, OSError, httpx.HTTPError, psutil.Error, subprocess.SubprocessError)
LIMIT_SECONDS = 180


def main() -> int:
    options = arguments()
    rows = [row for row in ROWS if options.only in f"{row.section}: {row.name}"]
    file = options.onto or default_file()
    results = Results.open(file, options.rounds, options.against)
    for row in rows if options.again else []:
        results.samples.pop(row.name, None)
    for rival in RIVALS:
        results.left_out.pop(rival, None)
        if not ready(rival):
            results.left_out[rival] = f"create its environment with `python -m benchmarks.rivals {rival}`"
    # A client and its server have a descriptor each for every one of many connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ended from outside, it ends its servers first, as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"load average {results.load_before}; results: {file}; if this is cut, the same command goes on where it was")
    with tempfile.TemporaryDirectory(prefix="rnn-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Fleet(Path(folder), options.against), options.seconds)
        try:
            failed = measure_all(bench, results, rows, file)
        except KeyboardInterrupt:
            return 130
        finally:
            bench.fleet.stop()
    print(f"\n{wanted_table(results)}\nwritten:", *write(results, file, options.page))
    return 1 if failed else 0


def measure_all(bench: Bench, results: Results, rows: Sequence[Row], file: Path) -> set[tuple[str, str]]:
    """In each round every row, and of each row every server in turn; saved after each. What is there is kept.

    What fails is said on the page, and not tried again in this run; returns rows and servers of it.
    """
    begun, failed = time.monotonic(), set[tuple[str, str]]()
    for number in range(results.rounds):
        for row, name in turns(bench, rows, number):
            most = min(row.rounds, FEW_ROUNDS if name in SLOW_TO_START else results.rounds)
            if number >= most or len(results.taken(row.name, name)) > number or (row.name, name) in failed:
                continue
            bench.fleet.stop(*(other for other in SLOW_TO_START if other != name))
            try:
                with within(LIMIT_SECONDS):
                    figures = row.measure(bench, name)
            except FAILURES as error:
                failed.add((row.name, name))
                results.left_out[f"{row.name}: {name}"] = outcome = str(error)
                bench.fleet.stop(name)
            else:
                results.add(row.name, name, figures)
                outcome = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            results.save(file)
            gone = f"{(time.monotonic() - begun) / 60:.1f} min"
            print(f"{gone}, round {number + 1}, {row.name}, {name}: {outcome}", flush=True)
    return failed


def turns(bench: Bench, rows: Sequence[Row], number: int) -> Iterator[tuple[Row, str]]:
    """Rows and servers in the order of a round: in each another server begins; those that start slowly come last."""
    names = [(row, row.servers(bench.fleet)) for row in rows]
    for row, servers in names:
        quick = [name for name in servers if name not in SLOW_TO_START]
        shift = number % max(len(quick), 1)
        yield from ((row, name) for name in quick[shift:] + quick[:shift])
    for name in SLOW_TO_START:
        yield from ((row, name) for row, servers in names if name in servers)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, so that nobody need watch; only in the main thread."""

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose section or name has this text")
    parser.add_argument("--rounds", type=int, default=5, help="in which the servers take turns (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="of a closed loop or of streams (default 2)")
    parser.add_argument(
        "--against",
        type=lambda text: Path(text).resolve(),
        metavar="TREE",
        help="another checkout, served beside this one",
    )
    parser.add_argument("--onto", type=Path, metavar="FILE", help="results; what is there already is kept")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--page", type=Path, default=ROOT / "docs", help="folder with benchmarks.md (default docs)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
