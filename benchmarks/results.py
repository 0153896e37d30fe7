"""The results of a run: every sample, what it was measured on and with, and how it compares with what was wanted."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import orjson

from benchmarks.loads import Figures
from benchmarks.rivals import ROOT
from benchmarks.rows import FASTEST_NAIVE, Wanted
from benchmarks.servers import NAIVE, OURS

PACKAGES = "torch numpy fastapi starlette uvicorn uvloop httptools pydantic orjson pysimdjson mosec k6 picows"

Figure = tuple[str, str, str]  # row, server, name


class Spread(NamedTuple):
    """One figure over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread | None:
    """Median, smallest and largest; None of no values."""
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1]) if ordered else None


@dataclass(slots=True)
class Results:
    """One run. `samples` by row and server, one for each round; `left_out` says why something is missing."""

    when: str
    load_before: float
    machine: str
    versions: dict[str, str]
    other: str = ""
    samples: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path, other: Path | None) -> "Results":
        """The results that are there, or new ones."""
        load = round(os.getloadavg()[0], 2)
        results = cls(f"{datetime.now(tz=UTC):%Y-%m-%d}", load, machine(), versions())
        if file.exists():
            now, results = results.versions["commit"], cls.read(file)
            if now not in results.versions["commit"]:
                results.versions["commit"] += f" then {now}"
        results.other = commit(other) if other else results.other
        return results

    @classmethod
    def read(cls, file: Path) -> "Results":
        return cls(**orjson.loads(file.read_bytes()))

    def save(self, file: Path) -> None:
        """Write all of it; whoever is killed meanwhile leaves the file as it was before."""
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        new.replace(file)

    def add(self, row: str, server: str, figures: Figures) -> None:
        self.samples.setdefault(row, {}).setdefault(server, []).append(figures)
        self.left_out.pop(f"{row}: {server}", None)

    def taken(self, row: str, server: str) -> list[Figures]:
        """The samples of a server in a row; of "naive" those of its fastest variant."""
        servers = self.samples.get(row, {})
        if server != FASTEST_NAIVE:
            return servers.get(server, [])
        found = [servers[name] for name in NAIVE if name in servers]
        return max(found, key=lambda samples: median(one["rate"] for one in samples), default=[])

    def spread(self, row: str, server: str, figure: str) -> Spread | None:
        return spread(one[figure] for one in self.taken(row, server) if figure in one)

    def ratio(self, mine: Figure, other: Figure, *, minus: bool = False) -> Spread | None:
        """A figure over another, or minus it, each round by itself."""
        rounds = zip(self.taken(*mine[:2]), self.taken(*other[:2]), strict=False)
        pairs = [(one[mine[2]], its[other[2]]) for one, its in rounds if mine[2] in one and other[2] in its]
        return spread(left - right if minus else left / right for left, right in pairs if minus or right)

    def measured(self, wanted: Wanted, label: str = OURS) -> Spread | None:
        """What was measured of it, of our service or of the other checkout's."""
        mine = (wanted.row, f"{label}, {wanted.variant}" if wanted.variant else label, wanted.figure)
        if not wanted.over:
            return self.spread(*mine)
        row, server, figure = wanted.over
        base = (row or wanted.row, server.replace(OURS, label), figure or wanted.figure)
        return self.ratio(mine, base, minus=wanted.minus) if mine != base else None


def default_file() -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", ",".join(machine().split(",")[:2]).lower())
    return ROOT / "benchmarks/results" / f"{datetime.now(tz=UTC):%Y-%m-%d}-{slug}.json"


def machine() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = found[1] if found else platform.machine()
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory, {platform.system()}"


def commit(tree: Path = ROOT) -> str:
    """The commit of a checkout, and whether its files differ from it."""
    git = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """The commit, Python and the packages; those of the rivals stand in their requirements."""
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    packages = {name: installed[name] for name in PACKAGES.split() if name in installed}
    return {"commit": commit(), "python": platform.python_version(), **packages, "wrk": wrk[1] if wrk else "unknown"}
