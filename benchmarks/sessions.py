"""Steps of sessions, one an HTTP request, beside steps whose state travels; every store, and many sessions."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.bodies import CELLS
from benchmarks.live import PROGRAM, Client, Flow, Talk, check, session_steps, stateless_steps
from benchmarks.programs import compiled
from benchmarks.rounds import Rounds
from benchmarks.servers import Running, Server, running
from benchmarks.stores import MEMORY, REMOTE, STORES, lacking, using, valkey
from benchmarks.streams import Flows, mint
from service.settings import Settings

CELL = CELLS[0]
CLIENTS = (16, 64)
STATELESS = "stateless"
# Sessions that are live while p99 is taken, each on a connection of its own.
FEW, MANY = 10, 10_000
CROWD = "sessions at a fixed rate"


def sessions(
    server: Server, rounds: Rounds, places: tuple[Path, Path], console: Console, *, many: int = MANY
) -> tuple[list[Flows], list[str]]:
    """Every store at 16 and 64 clients in turn, stateless steps among them; then few and many live sessions.

    Also what was left out, and why. Closed loop: `way` is the store, or "stateless". Few and many: the same total rate,
    half of what 16 clients reached, with the memory store.
    """
    models, scratch = places
    absent = lacking(set(Settings.model_fields))
    left_out = [f"sessions in {name}: {why}" for name, why in absent.items()]
    stores = [store for store in STORES if store.name not in absent]
    samples: dict[tuple[str, str, int, int], list[Flow]] = {}
    with compiled(PROGRAM) as program, ExitStack() as stack:
        client = Client(program, scratch)
        port = stack.enter_context(valkey(scratch)) if REMOTE in stores else 0
        started = {
            store.name: stack.enter_context(running(using(server, store, scratch, port), models, scratch))
            for store in stores or [MEMORY]
        }
        entries = (
            [(STATELESS, started[MEMORY.name]), *started.items()] if stores else [(STATELESS, started[MEMORY.name])]
        )
        for number in range(rounds.count):
            shift = number % len(entries)
            for way, target in entries[shift:] + entries[:shift]:
                for count in CLIENTS:
                    flow = drive(client, target, way, count, rounds.seconds)
                    samples.setdefault((server.name, way, count, 1), []).append(flow)
                    console.print(f"round {number + 1}: {way}, {count} clients: {flow.rate:,.0f} steps/s")
        if stores:
            reached = samples[server.name, MEMORY.name, CLIENTS[0], 1]
            rate = sorted(flow.rate for flow in reached)[len(reached) // 2] / 2
            for number in range(rounds.count):
                for count in (FEW, many):
                    # At least as many arrivals as sessions, so that all are in use.
                    seconds = max(rounds.seconds, 1.2 * count / rate)
                    flow = drive(client, started[MEMORY.name], CROWD, count, seconds, rate=rate)
                    samples.setdefault((server.name, CROWD, count, 1), []).append(flow)
                    console.print(
                        f"round {number + 1}: {count} sessions, {rate:,.0f} steps/s: p99 {flow.p99_ms:.2f} ms"
                    )
    return [Flows(*key, tuple(taken)) for key, taken in samples.items()], left_out


def drive(client: Client, server: Running, way: str, count: int, seconds: float, rate: float = 0) -> Flow:
    """One run, each client with a session of its own. Raises ValueError if the first answer is wrong."""
    talks = [stateless_steps(CELL)] * count if way == STATELESS else talk_of_sessions(server, count)
    flow, answer = client.run(server, talks, seconds, rate=rate)
    check(CELL, talks[0], answer)
    return flow


def talk_of_sessions(server: Running, count: int) -> Sequence[Talk]:
    """The steps of newly opened sessions."""
    ids = list(mint(server, CELL, count))
    pattern = session_steps(CELL, ids[0])
    return [replace(pattern, message=pattern.message.replace(ids[0].encode(), one.encode())) for one in ids]
