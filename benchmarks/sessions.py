"""Steps of sessions, one an HTTP request, beside steps whose state travels; every store, and many sessions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from benchmarks.bodies import CELLS
from benchmarks.live import PROGRAM, Client, Flow, Talk, check, session_steps, stateless_steps
from benchmarks.results import Turns
from benchmarks.servers import Running, Server
from benchmarks.stores import MEMORY, REMOTE, STORES, VALKEY, using, valkey
from benchmarks.streams import FlowKey, Flows, mint, taken
from benchmarks.table import OURS
from benchmarks.units import Bench, Unit, leave_out

PART = "sessions"
CELL = CELLS[0]
CLIENTS = (16, 64)
STATELESS = "stateless"
# Sessions that are live while p99 is taken, each on a connection of its own.
FEW, MANY = 10, 10_000
CROWD = "sessions at a fixed rate"


def units(bench: Bench) -> list[Unit]:
    """Every store at 16 and 64 clients in turn, stateless steps among them; then few and many live sessions.

    Closed loop: `way` is the store, or "stateless". Few and many: the same total rate, half of what 16 clients reached,
    with the memory store.
    """
    server = bench.server(OURS)
    if not server:
        return []
    turns: Turns[FlowKey, Flow] = Turns(taken(bench.report.sessions))
    stores = [store for store in STORES if store is not REMOTE or VALKEY]
    if REMOTE not in stores:
        leave_out(bench, PART, f"sessions in {REMOTE.name}: there is no valkey-server and no redis-server")
    ways = (STATELESS, *(store.name for store in stores))
    groups = [(way, count) for way in ways for count in CLIENTS]
    crowds = [(CROWD, count) for count in (FEW, 10 * FEW if bench.quick else MANY)]
    house = Stores(bench, server)
    found = []
    for what, measure, kinds, seconds in (
        ("stores", closed, groups, len(groups) * (bench.rounds.seconds + 1)),
        (CROWD, crowd, crowds, 14),
    ):
        for number in range(bench.rounds.count):
            there = not turns.lack([(server.name, *kind, 1) for kind in kinds], number)
            run = partial(add, bench, house, turns, partial(measure, house, turns, number, kinds))
            found.append(Unit(f"round {number + 1}, {what}", seconds, there, run, what))
    return found


class Stores:
    """Our service with each store, started when it is first asked for."""

    def __init__(self, bench: Bench, server: Server) -> None:
        self.bench = bench
        self.name = server.name
        self._server = server

    def running(self, way: str) -> Running:
        """The service with the store of that name; stateless steps go to the one with the memory store."""
        fleet = self.bench.fleet
        store = next(store for store in STORES if store.name == (MEMORY.name if way == STATELESS else way))
        port = fleet.keep(REMOTE.name, valkey(fleet.scratch)) if store is REMOTE else 0
        server = using(self._server, store, fleet.scratch, port)
        return fleet.server(replace(server, name=f"{server.name}, {store.name}"))

    def client(self) -> Client:
        """The compiled client."""
        return Client(self.bench.fleet.program(PROGRAM), self.bench.fleet.scratch)


def add(
    bench: Bench, house: Stores, turns: "Turns[FlowKey, Flow]", measure: Callable[[], dict[tuple[str, int], Flow]]
) -> None:
    """One round."""
    for (way, count), flow in measure().items():
        turns.add((house.name, way, count, 1), flow)
    bench.report.sessions = [Flows(*key, tuple(flows)) for key, flows in turns.samples.items() if flows]


def closed(
    house: Stores, _: "Turns[FlowKey, Flow]", number: int, groups: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], Flow]:
    """Every store and the stateless steps, beginning with another one in each round."""
    shift, flows = number * len(CLIENTS) % len(groups), {}
    for way, count in [*groups[shift:], *groups[:shift]]:
        flow = drive(house.client(), house.running(way), way, count, house.bench.rounds.seconds)
        flows[way, count] = flow
        house.bench.console.print(f"{way}, {count} clients: {flow.rate:,.0f} steps/s", highlight=False)
    return {group: flows[group] for group in groups}


def crowd(
    house: Stores, turns: "Turns[FlowKey, Flow]", _: int, groups: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], Flow]:
    """Few and many sessions at one rate."""
    reached = turns.samples[house.name, MEMORY.name, CLIENTS[0], 1]
    rate, flows = median(flow.rate for flow in reached) / 2, {}
    for way, count in groups:
        # At least as many arrivals as sessions, so that all are in use.
        seconds = max(house.bench.rounds.seconds, 1.2 * count / rate)
        flow = drive(house.client(), house.running(MEMORY.name), way, count, seconds, rate=rate)
        flows[way, count] = flow
        text = f"{count} sessions, {rate:,.0f} steps/s: p99 {flow.p99_ms:.2f} ms"
        house.bench.console.print(text, highlight=False)
    return flows


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
