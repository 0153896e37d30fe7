"""The report: the same tables on the terminal, in Markdown and, with every sample, in JSON."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from benchmarks import tables
from benchmarks.batching import Gain
from benchmarks.beside import Beside
from benchmarks.bodies import CELLS
from benchmarks.idle import Idle, Restarts
from benchmarks.memory import Peak
from benchmarks.plots import Picture, draw
from benchmarks.results import Resident, Row
from benchmarks.rivals.environments import RIVALS, pinned, ready
from benchmarks.scaling import Cost
from benchmarks.stages import Breakdown
from benchmarks.streams import Flows
from benchmarks.sweep import Point
from benchmarks.verdicts import verdicts

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
IMAGES = Path("docs/images")
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

METHOD = """\
Each server is one process on 127.0.0.1 of the same machine, with its default threads unless said, and so is the load.
All servers get the same weights and the same JSON body; their answers are checked against PyTorch in float64 first (at
most 1e-5 apart). Request logs are off in all of them. CPU is user + system time of the server per answered request.
Peak memory: a fresh process, one short request, then one large one; the rise of VmHWM over what was resident.

Closed loop: `wrk -t1`, connections as listed, each client sends its next request when it has its reply. Servers take
turns within each round, in another order each round; a figure is the median of the rounds, with the smallest and
largest beside it. Ratios are taken within a round, against the fastest of the naive variants.

Fixed arrival rates (open loop, benchmarks/openloop.c): requests arrive as a Poisson process whatever the server does,
over up to 512 connections; latency runs from the arrival, waiting for a free connection
included. Rates are fractions of what the server did in closed loop just before; servers beside ours are asked at fewer
rates and on fewer cells. A percentile is left out where fewer than five values lie beyond it. Steps beside large
requests: steps at half of the closed loop's rate, while wrk keeps the large cell's clients busy on the same server.

Streams and sessions (benchmarks/live.c): every stream is a connection that keeps a number of messages unanswered;
lines that are due at once go as one chunk. The hand-written endpoint's WebSocket keeps the state in a variable: one
`nn.RNNCell` call for each text frame, one `nn.RNN` call for each binary frame. Percentiles are left out where the
messages under way at the end could change them. Sessions step by numbered HTTP requests, a session on each connection.
Idle sessions are opened over HTTP, and their memory is the rise of the resident memory. Valkey keeps an append-only
file that is synced once a second. One row at a time: the same service, but a turn of its scheduler holds one row.

`naive` (benchmarks/naive.py) is the endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`,
`.tolist()`. The bare ASGI echo (uvicorn, uvloop, httptools) reads the whole body and writes the right answer, prepared
beforehand: the floor of the web layer. The rivals (benchmarks/rivals) run as their documentation shows for one worker
on a CPU, each in an environment of its own, with torch's threads set to 1; they are started for their turn in each
round, since their processes do not rest when idle. LitServe: one LitAPI and one worker process (plus its HTTP
process); batching: `max_batch_size=16, batch_timeout=0.002`. BentoML: one service, `workers=1`, `numpy.ndarray`
arguments; batching: a `batchable` call, `max_batch_size=16`, that takes the same body as a list of one. Ray Serve: one
replica with `max_ongoing_requests=256` behind its own proxy, or behind HAProxy; batching: `@serve.batch` with
`max_batch_size=16, batch_wait_timeout_s=0.002`. Resident memory is the sum over a server's processes."""


@dataclass(slots=True)
class Report:
    """One run of the benchmark: when, what else the machine was doing (load average), and all that was measured.

    What a part has not measured is empty; `left_out` says in words what could not be, by part.
    """

    when: datetime
    load_before: float
    rounds: int
    numbers: str
    rows: Sequence[Row] = ()
    resident: Sequence[Resident] = ()
    kernel_ms: float | None = None
    peaks: Sequence[Peak] = ()
    points: Sequence[Point] = ()
    stages: Sequence[Breakdown] = ()
    costs: Sequence[Cost] = ()
    beside: Sequence[Beside] = ()
    gains: Sequence[Gain] = ()
    streams: Sequence[Flows] = ()
    sessions: Sequence[Flows] = ()
    idle: Sequence[Idle] = ()
    restarts: Restarts | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "Report":
        """The report of an earlier run. Raises ValidationError if the file is none."""
        return TypeAdapter(cls).validate_json(file.read_bytes())

    def tables(self) -> list[Table]:
        """All tables, in the order to be read."""
        found = [
            tables.load_table(self.rows),
            tables.arrivals_table(self.points),
            tables.beside_table(self.beside),
            tables.streams_table(self.streams),
            tables.sessions_table(self.sessions),
            tables.idle_table(self.idle),
            tables.restarts_table(self.restarts),
            tables.gains_table(self.gains),
            tables.stages_table(self.stages),
            tables.costs_table(self.costs),
            tables.lines_table(self.costs),
            tables.resident_table(self.resident),
            tables.peaks_table(self.peaks),
            tables.verdicts_table(verdicts(self)),
        ]
        return [table for table in found if table.row_count]

    def show(self) -> None:
        """Print all tables."""
        console = Console(width=max(Console().width, 150))
        for table in self.tables():
            console.print(table)

    def write(self, folder: Path) -> list[Path]:
        """Write samples, tables and pictures to their places under the folder; return the files."""
        machine = _machine()
        slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cores']} cores".lower()).strip("-")
        samples, page, images = RESULTS / f"{self.when:%Y-%m-%d}-{slug}.json", folder / PAGE, folder / IMAGES
        for file in (folder / samples, page, images / "any"):
            file.parent.mkdir(parents=True, exist_ok=True)
        document = {**asdict(self), "machine": machine, "versions": _versions(), "cells": [asdict(c) for c in CELLS]}
        options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        (folder / samples).write_bytes(orjson.dumps(document, option=options))
        pictures = draw(images, self)
        page.write_text(self._page(machine, samples, pictures))
        return [folder / samples, page, *(picture.file for picture in pictures)]

    def _page(self, machine: dict[str, Any], samples: Path, pictures: Sequence[Picture]) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
        cells = tables.new_table("Cells", "cell", "path", "B", "T", "I", "H", "connections")
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
            "(needs wrk and a C compiler; `make rivals` first, to have the rivals measured too;\n"
            "`.venv/bin/python -m benchmarks.bench --help` lists what can be chosen).\n"
            f"Every sample of this run: [{samples.name}](../{samples}).",
            *self._left_out(),
            *(f"![{picture.title}](images/{picture.file.name})" for picture in pictures),
            *(tables.markdown(table) for table in [cells, *self.tables()]),
        ]
        return "\n\n".join(parts) + "\n"

    def _left_out(self) -> list[str]:
        lines = [line for part in self.left_out.values() for line in part]
        return ["Not measured:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


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
        **{name: pinned(name) for name in RIVALS if ready(name)},
        "wrk": wrk[1] if len(wrk) > 1 else "unknown",
    }
