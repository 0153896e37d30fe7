"""Where a request's time goes in our service, from its own metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.bodies import Cell
from benchmarks.load import drive
from benchmarks.rounds import Rounds, entries
from benchmarks.servers import Running, Server, running

STAGES = ("decode", "queue", "compute", "encode")
REST = "rest"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Mean milliseconds of a request by stage, and what is left of its time from headers to reply."""

    cell: str
    dialect: str
    clients: int
    milliseconds: dict[str, float]


def breakdowns(server: Server, cells: Sequence[Cell], rounds: Rounds, places: tuple[Path, Path]) -> list[Breakdown]:
    """Every cell in every dialect, with the clients of the closed-loop run."""
    models, scratch = places
    found = []
    with running(server, models, scratch) as started:
        for cell in cells:
            for entry in entries(cell, started, rounds, scratch):
                before = sums(started)
                drive(started, entry.call, cell.connections, entry.seconds, scratch)
                after = sums(started)
                spent = {name: value - before.get(name, 0.0) for name, value in after.items()}
                found.append(Breakdown(cell.name, entry.dialect.name, cell.connections, means(spent)))
    return found


def sums(server: Running) -> dict[str, float]:
    """Seconds so far by stage, and of whole requests (`total`), with how many there were (`count`)."""
    text = httpx.get(server.url + "/metrics", trust_env=False).text
    found = {"total": 0.0, "count": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "rnn_stage_seconds_sum":
                found[sample.labels["stage"]] = sample.value
            elif sample.labels.get("path") in {"/cell/step", "/rnn/forward"}:
                if sample.name == "rnn_request_seconds_sum":
                    found["total"] += sample.value
                elif sample.name == "rnn_request_seconds_count":
                    found["count"] += sample.value
    return found


def means(spent: dict[str, float]) -> dict[str, float]:
    """Milliseconds a request."""
    scale = 1e3 / max(spent["count"], 1)
    stages = {stage: scale * spent.get(stage, 0.0) for stage in STAGES}
    return {**stages, REST: max(scale * spent["total"] - sum(stages.values()), 0.0)}
