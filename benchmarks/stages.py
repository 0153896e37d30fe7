"""Where a request's time goes in our service, from its own metrics."""

from dataclasses import dataclass
from functools import partial

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.bodies import Cell
from benchmarks.load import drive
from benchmarks.rounds import entries, keys
from benchmarks.servers import Running, Server
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit

SECONDS = 2
STAGES = ("decode", "queue", "compute", "encode")
REST = "rest"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Mean milliseconds of a request by stage, and what is left of its time from headers to reply."""

    cell: str
    dialect: str
    clients: int
    milliseconds: dict[str, float]


def units(bench: Bench) -> list[Unit]:
    """Every cell in every dialect, with the clients of the closed-loop run."""
    server = bench.server(OURS)
    have = {found.cell for found in bench.report.stages}
    return [
        Unit(
            cell.name, 3 * len(keys(server, cell)), cell.name in have, partial(measure, bench, server, cell), cell.name
        )
        for cell in (bench.cells if server else ())
        if server
    ]


def measure(bench: Bench, server: Server, cell: Cell) -> None:
    """One cell."""
    started, scratch, found = bench.fleet.server(server), bench.fleet.scratch, []
    for entry in entries(cell, started, bench.rounds, scratch):
        before = sums(started)
        drive(started, entry.call, cell.connections, max(entry.seconds, SECONDS), scratch)
        after = sums(started)
        spent = {name: value - before.get(name, 0.0) for name, value in after.items()}
        found.append(Breakdown(cell.name, entry.dialect.name, cell.connections, means(spent)))
    bench.report.stages = [*bench.report.stages, *found]


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
