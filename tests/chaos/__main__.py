"""`make chaos`: every fault at full size, for every durable store, with a summary in the end."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Deployment, Load, killed_service, racing_processes, stopped_store, told_to_stop
from tests.chaos.servers import NAME, KeyValueServer, free_port

Fault = Callable[[Deployment, KeyValueServer], str]


def main() -> int:
    """Run what was asked for; 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20, help="of each session")
    parser.add_argument("--kills", type=int, default=3, help="kills a fault")
    parser.add_argument("--races", type=int, default=10_000, help="steps of one session that two workers race for")
    given = parser.parse_args()
    load = Load(given.sessions, given.steps, kills=given.kills)
    plan: list[tuple[str, str, dict[str, Any], Fault]] = []
    for store in ("sqlite", "valkey") if NAME else ("sqlite",):
        plan += [
            ("kill -9 of the service", store, {}, lambda deployment, _: killed_service(deployment, load)),
            ("SIGTERM of the service", store, {}, lambda deployment, _: told_to_stop(deployment, load)),
            (
                "two workers race",
                store,
                {"workers": 2},
                lambda deployment, _: racing_processes(deployment, given.races),
            ),
        ]
    if NAME:
        plan.append(
            ("kill -9 of the store", "valkey", {}, lambda deployment, server: stopped_store(deployment, load, server))
        )
    console = Console()
    table = Table("fault", "store", "result", "what happened", "s")
    failed = 0
    for name, store, settings, fault in plan:
        begun = time.monotonic()
        try:
            with set_up(store, settings) as (deployment, server):
                what, result = fault(deployment, server), "[green]nothing lost"
        except AssertionError as error:
            what, result, failed = str(error)[:300], "[red]FAILED", failed + 1
        table.add_row(name, store, result, what, f"{time.monotonic() - begun:.0f}")
        console.print(f"{name}, {store}: {result}")
    console.print(table)
    return 1 if failed else 0


@contextmanager
def set_up(store: str, settings: dict[str, Any]) -> Iterator[tuple[Deployment, KeyValueServer]]:
    """A service on a store, in a folder of its own, and the key-value server that may be the store."""
    with tempfile.TemporaryDirectory(prefix="rnn-chaos-") as name:
        folder = Path(name)
        server = KeyValueServer(folder, free_port())
        url = f"sqlite:///{folder / 'sessions.db'}"
        if store == "valkey":
            server.start()
            url = server.url
        deployment = Deployment(folder, session_store=url, **settings)
        try:
            yield deployment, server
        finally:
            if deployment.service.process.poll() is None:
                deployment.kill()
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
