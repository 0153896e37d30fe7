"""`make chaos`: every fault at full size, for every durable store, with a summary in the end."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Deployment, Load, killed_service, racing_processes, stopped_store, told_to_stop
from tests.stores.servers import PROGRAM, Server

STORES = ("sqlite", "valkey") if PROGRAM else ("sqlite",)


@dataclass(frozen=True)
class Fault:
    """What is ended, the store, the service's settings, and how it is run: it returns what happened."""

    name: str
    store: str
    settings: dict[str, Any]
    run: Callable[[Deployment, Server], str]

    def __str__(self) -> str:
        return f"{self.name}, {self.store}"


def plan(load: Load, races: int) -> list[Fault]:
    """Every fault for every durable store; `races` are steps of one session that two workers race for."""
    faults = []
    for store in STORES:
        faults += [
            Fault("kill -9 of the service", store, {}, lambda deployment, _: killed_service(deployment, load)),
            Fault("SIGTERM of the service", store, {}, lambda deployment, _: told_to_stop(deployment, load)),
            Fault("two workers race", store, {"workers": 2}, lambda deployment, _: racing_processes(deployment, races)),
        ]
    if PROGRAM:
        faults.append(Fault("kill -9 of the store", "valkey", {}, lambda *both: stopped_store(*both, load)))
    return faults


def main() -> int:
    """Run what was asked for; 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20, help="of each session")
    parser.add_argument("--kills", type=int, default=3, help="of each fault")
    parser.add_argument("--races", type=int, default=10_000, help="steps of one session that two workers race for")
    given = parser.parse_args()
    console = Console()
    table = Table("fault", "result", "what happened", "s")
    failed = 0
    for fault in plan(Load(given.sessions, given.steps, kills=given.kills), given.races):
        begun = time.monotonic()
        try:
            with set_up(fault) as (deployment, server):
                what, result = fault.run(deployment, server), "[green]nothing lost"
        except AssertionError as error:
            what, result, failed = str(error)[:300], "[red]FAILED", failed + 1
        table.add_row(str(fault), result, what, f"{time.monotonic() - begun:.0f}")
        console.print(f"{fault}: {result}")
    console.print(table)
    return 1 if failed else 0


@contextmanager
def set_up(fault: Fault) -> Iterator[tuple[Deployment, Server]]:
    """A service on a store, in a folder of its own, and the key-value server that may be the store."""
    with tempfile.TemporaryDirectory(prefix="rnn-chaos-") as name:
        folder = Path(name)
        server = Server(folder)
        url = "memory://" if fault.store == "memory" else f"sqlite:///{folder / 'sessions.db'}"
        if fault.store == "valkey":
            server.start()
            url = server.url
        deployment = Deployment(folder, session_store=url, **fault.settings)
        try:
            yield deployment, server
        finally:
            if deployment.service.process.poll() is None:
                deployment.kill()
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
