"""The report: the same tables on the terminal, in Markdown and, with every sample, in JSON."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bodies import CELLS
from benchmarks.memory import Peak
from benchmarks.results import Row, Spread, best_naive, verdicts

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
PACKAGES = (
    "torch",
    "numpy",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "orjson",
    "pysimdjson",
)
MIB = 2**20

METHOD = """\
Each server is one process on 127.0.0.1 of the same machine, with its default threads unless said, and so is the load
(`wrk -t1`, connections as listed, each client sends its next request when it has its reply). All servers get the same
weights and the same JSON body; their answers are checked against PyTorch in float64 first (at most 1e-5 apart).
Servers take turns within each round, in another order each round; a figure is the median of the rounds, with the
smallest and largest beside it. Ratios are taken within a round, against the fastest of the naive variants.
`naive` (benchmarks/naive.py) is the endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`,
`.tolist()`. Request logs are off in all of them. CPU is user + system time of the server per answered request.
Peak memory: a fresh process, one short request, then one large one; the rise of VmHWM over what was resident."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A server's resident memory when it was ready, and at most after a run of load."""

    server: str
    ready_bytes: int
    loaded_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the benchmark: when, what else the machine was doing (load average), and all that was measured."""

    when: datetime
    load_before: float
    rounds: int
    numbers: str
    rows: Sequence[Row]
    resident: Sequence[Resident]
    peaks: Sequence[Peak]

    def tables(self) -> list[Table]:
        """All tables, in the order to be read."""
        tables = [self._load(), self._resident(), self._peaks(), self._verdicts()]
        return [table for table in tables if table.row_count]

    def _load(self) -> Table:
        table = _table("Load", "cell", "server", "requests/s", "p50 ms", "p99 ms", "CPU ms", "× naive", "errors")
        for row in self.rows:
            naive = best_naive(self.rows, row.cell)
            table.add_row(
                row.cell,
                f"{row.server} ({row.dialect})",
                _figure(row.rate),
                _figure(Spread.of(sample.p50_ms for sample in row.samples)),
                _figure(Spread.of(sample.p99_ms for sample in row.samples)),
                _number(Spread.of(sample.cpu_ms for sample in row.samples).median),
                _figure(row.over(naive)) if naive else "",
                str(row.errors) + (" (short run)" if row.too_short else ""),
            )
        return table

    def _resident(self) -> Table:
        table = _table("Resident memory", "server", "ready, MiB", "at most after a run, MiB")
        for line in self.resident:
            table.add_row(line.server, _number(line.ready_bytes / MIB), _number(line.loaded_bytes / MIB))
        return table

    def _peaks(self) -> Table:
        table = _table(
            "Peak memory of one large request", "server", "body MiB", "reply MiB", "peak MiB", "× body + reply"
        )
        for peak in self.peaks:
            sizes = (peak.body_bytes, peak.reply_bytes, peak.peak_bytes)
            table.add_row(f"{peak.server} ({peak.dialect})", *(_number(n / MIB) for n in sizes), _number(peak.ratio))
        return table

    def _verdicts(self) -> Table:
        table = _table("Expected", "what", "expected", "measured", "met")
        for verdict in verdicts(self.rows, self.peaks):
            table.add_row(verdict.what, verdict.expected, _figure(verdict.measured), "yes" if verdict.met else "no")
        return table

    def show(self) -> None:
        """Print all tables."""
        console = Console(width=max(Console().width, 130))
        for table in self.tables():
            console.print(table)

    def write(self) -> list[Path]:
        """Write every sample to benchmarks/results and the tables to docs; return the files."""
        machine = _machine()
        slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cores']} cores".lower()).strip("-")
        samples = RESULTS / f"{self.when:%Y-%m-%d}-{slug}.json"
        samples.parent.mkdir(parents=True, exist_ok=True)
        document = {**asdict(self), "machine": machine, "versions": _versions(), "cells": [asdict(c) for c in CELLS]}
        samples.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        PAGE.write_text(self._page(machine, samples))
        return [samples, PAGE]

    def _page(self, machine: dict[str, Any], samples: Path) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
        cells = _table("Cells", "cell", "path", "B", "T", "I", "H", "connections")
        for cell in CELLS:
            sizes = (cell.batch, cell.steps, cell.input_size, cell.hidden_size, cell.connections)
            cells.add_row(cell.name, cell.path, *map(str, sizes))
        parts = [
            "# Benchmarks",
            f"{self.when:%Y-%m-%d}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB of memory; {self.rounds} rounds; "
            f"load average {self.load_before:.2f} before it began. {versions}.",
            f"Numbers in JSON bodies: {self.numbers}.",
            METHOD,
            "Machines differ and are noisy: only ratios taken in one run count. Reproduce with `make bench`\n"
            "(needs wrk; `.venv/bin/python -m benchmarks.bench --help` lists what can be chosen).\n"
            f"Every sample of this run: [{samples.name}](../{samples}).",
            *(_markdown(table) for table in [cells, *self.tables()]),
        ]
        return "\n\n".join(parts) + "\n"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in {"server", "path"} else "right")
    return table


def _markdown(table: Table) -> str:
    columns = [list(column.cells) for column in table.columns]
    lines = [
        [str(column.header) for column in table.columns],
        ["---:" if column.justify == "right" else "---" for column in table.columns],
        *zip(*columns, strict=True),
    ]
    return "\n".join([f"## {table.title}", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _figure(spread: Spread) -> str:
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}–{_number(spread.high)})"


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def _versions() -> dict[str, str]:
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **packages,
        "wrk": wrk[1] if len(wrk) > 1 else "unknown",
    }
