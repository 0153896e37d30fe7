"""Steps a second over streams: one, a few, a thousand; NDJSON and WebSocket, with sessions and without."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection

import orjson

from benchmarks.bodies import CELLS, Cell
from benchmarks.live import PROGRAM, Client, Flow, Talk, binary_frames, check, ndjson, text_frames
from benchmarks.results import Spread, Turns
from benchmarks.servers import Running, Server
from benchmarks.table import NAIVE, OURS
from benchmarks.units import Bench, Unit

CELL = CELLS[0]
COUNTS = (1, 16, 1000)
FEWER_COUNTS = (1, 1000)
IN_FLIGHT = 64
# What a thousand streams have in flight at first takes the better part of a second.
MANY_SECONDS = 2
FRAME_STEPS = 64
FlowKey = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Way:
    """How steps travel: `window` messages unanswered on each stream, on so many streams."""

    name: str
    talk: Callable[[Cell, str | None], Talk]
    window: int
    counts: tuple[int, ...]
    websocket: bool = False
    session: bool = False


def long_frames(cell: Cell, session: str | None = None) -> Talk:
    """Binary frames of many steps."""
    return binary_frames(cell, FRAME_STEPS, session)


FRAMES = f"WebSocket, {FRAME_STEPS} steps a frame"
WAYS = (
    Way("NDJSON, each line awaited", ndjson, 1, (1,)),
    Way("NDJSON", ndjson, IN_FLIGHT, COUNTS),
    Way("NDJSON, sessions", ndjson, IN_FLIGHT, COUNTS[-1:], session=True),
    Way("WebSocket text, each frame awaited", text_frames, 1, (1,), websocket=True),
    Way("WebSocket text", text_frames, IN_FLIGHT, FEWER_COUNTS, websocket=True),
    Way("WebSocket text, sessions", text_frames, IN_FLIGHT, COUNTS[-1:], websocket=True, session=True),
    Way(FRAMES, long_frames, 2, FEWER_COUNTS, websocket=True),
    Way(f"{FRAMES}, sessions", long_frames, 2, COUNTS[-1:], websocket=True, session=True),
)
# What the hand-written endpoint has.
PLAIN = tuple(way for way in WAYS if way.websocket and not way.session)


@dataclass(frozen=True, slots=True)
class Flows:
    """One server, one way, so many connections: a sample for each round, in order."""

    server: str
    way: str
    connections: int
    window: int
    samples: tuple[Flow, ...]

    @property
    def rate(self) -> Spread:
        """Steps a second."""
        return Spread.of(flow.rate for flow in self.samples)

    @property
    def errors(self) -> int:
        """Connections that broke, and messages that were never answered."""
        return sum(flow.errors for flow in self.samples)

    @property
    def settled(self) -> bool:
        """Whether so many messages were answered that those under way at the end do not matter to percentiles."""
        least = 10 * self.connections * self.window
        return all(flow.offered or flow.messages >= least for flow in self.samples)

    def over(self, other: "Flows") -> Spread:
        """Ratio of rates, each round by itself."""
        return Spread.of(mine.rate / its.rate for mine, its in zip(self.samples, other.samples, strict=False))


def units(bench: Bench) -> list[Unit]:
    """Every way of the service and of the hand-written endpoint in turn, a way at a time, round after round."""
    turns: Turns[FlowKey, Flow] = Turns(taken(bench.report.streams))
    servers = [server for server in bench.servers if ways_of(server)]
    found = []
    for number in range(bench.rounds.count):
        shift = number % len(WAYS)
        for way in WAYS[shift:] + WAYS[:shift]:
            talkers = [server for server in servers if way in ways_of(server)]
            keys = [(server.name, way.name, count, way.window) for server in talkers for count in way.counts]
            if keys:
                run, there = partial(measure, bench, talkers, way, turns), not turns.lack(keys, number)
                seconds = sum(length(bench, count) + 1.2 for _, _, count, _ in keys)
                found.append(Unit(f"round {number + 1}, {way.name}", seconds, there, run, way.name))
    return found


def measure(bench: Bench, servers: Sequence[Server], way: Way, turns: "Turns[FlowKey, Flow]") -> None:
    """One round of a way."""
    client, flows = Client(bench.fleet.program(PROGRAM), bench.fleet.scratch), {}
    for server in servers:
        started = bench.fleet.server(server)
        for count in way.counts:
            flow = drive(client, started, way, count, length(bench, count))
            flows[server.name, way.name, count, way.window] = flow
            outcome = f"{flow.rate:,.0f} steps/s{f', {flow.errors} errors' if flow.errors else ''}"
            bench.console.print(f"{server.name}, {way.name}, {count}: {outcome}", highlight=False)
    for key, flow in flows.items():
        turns.add(key, flow)
    order = {way.name: number for number, way in enumerate(WAYS)}
    by_way = sorted(turns.samples, key=lambda key: (key[0], order[key[1]], key[2]))
    bench.report.streams = [Flows(*key, tuple(turns.samples[key])) for key in by_way if turns.samples[key]]


def length(bench: Bench, count: int) -> int:
    """Seconds of a run."""
    return max(bench.rounds.seconds, MANY_SECONDS if count == COUNTS[-1] else 1)


def taken(measured: Iterable[Flows]) -> dict[FlowKey, tuple[Flow, ...]]:
    """Samples by server, way, connections and window."""
    return {(one.server, one.way, one.connections, one.window): one.samples for one in measured}


def drive(client: Client, server: Running, way: Way, count: int, seconds: float) -> Flow:
    """One run. Raises ValueError if the first answer is wrong."""
    sessions: Sequence[str | None] = list(mint(server, CELL, count)) if way.session else [None] * count
    talks = [way.talk(CELL, session) for session in sessions]
    flow, answer = client.run(server, talks, seconds, window=way.window)
    check(CELL, talks[0], answer)
    return flow


def ways_of(server: Server) -> Sequence[Way]:
    return WAYS if server.name == OURS else PLAIN if server.name == NAIVE[-1] else ()


def mint(server: Running, cell: Cell, count: int) -> Iterator[str]:
    """Open sessions one by one; raises RuntimeError if one is refused."""
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    body, headers = orjson.dumps({"model": cell.name}), {"Content-Type": "application/json"}
    try:
        for _ in range(count):
            connection.request("POST", "/cell/sessions", body, headers)
            response = connection.getresponse()
            reply = response.read()
            if response.status != 201:
                raise RuntimeError(f"a session was refused with {response.status}: {reply[:300]!r}")
            yield orjson.loads(reply)["session"]
    finally:
        connection.close()
