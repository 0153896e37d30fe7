"""All that a run measured, as one JSON file with every sample."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from benchmarks.batching import Gain
from benchmarks.beside import Beside
from benchmarks.bodies import CELLS
from benchmarks.idle import Idle, Restarts
from benchmarks.memory import Peak
from benchmarks.provenance import machine, versions
from benchmarks.results import Resident, Row
from benchmarks.scaling import Cost
from benchmarks.stages import Breakdown
from benchmarks.streams import Flows
from benchmarks.sweep import Point


@dataclass(slots=True)
class Report:
    """One run of the benchmark: when, what else the machine was doing (load average), and all that was measured.

    What a part has not measured is empty; `left_out` says in words what could not be, by part.
    """

    when: datetime
    load_before: float
    rounds: int
    numbers: str
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: Sequence[Row] = ()
    resident: Sequence[Resident] = ()
    kernel_ms: Sequence[float] = ()
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
    def new(cls, when: datetime, load_before: float, rounds: int, numbers: str) -> "Report":
        """Nothing measured yet, on this machine."""
        return cls(when, load_before, rounds, numbers, machine(), versions())

    @classmethod
    def read(cls, file: Path) -> "Report":
        """The report of an earlier run. Raises ValidationError if the file is none."""
        return TypeAdapter(cls).validate_json(file.read_bytes())

    def save(self, file: Path) -> None:
        """Write all samples; whoever is killed meanwhile leaves the file as it was before."""
        options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        document = {**asdict(self), "cells": [asdict(cell) for cell in CELLS]}
        file.parent.mkdir(parents=True, exist_ok=True)
        beginning = file.with_name(f"{file.name}.new")
        beginning.write_bytes(orjson.dumps(document, option=options))
        beginning.replace(file)

    def go_on(self) -> list[str]:
        """Note that the run goes on here and now; what differs from its begin, in words."""
        changes = []
        if (now := machine()) != self.machine:
            changes.append(f"begun on {self.machine}, goes on on {now}: ratios across parts mean little")
        commits = self.versions["commit"].split(" then ")
        for name, version in versions().items():
            before = commits[-1] if name == "commit" else self.versions.get(name)
            if version != before:
                changes.append(f"begun with {name} {before}, goes on with {version}")
                self.versions[name] = " then ".join([*commits, version]) if name == "commit" else version
        return changes
