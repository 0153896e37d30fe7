"""Steps a second over streams: one, a few, a thousand; NDJSON and WebSocket, with sessions and without."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import orjson
from rich.console import Console

from benchmarks.bodies import CELLS, Cell
from benchmarks.live import HANDSHAKE, PROGRAM, Client, Flow, Talk, binary_frames, check, ndjson, text_frames
from benchmarks.programs import compiled
from benchmarks.results import Spread
from benchmarks.rounds import Rounds
from benchmarks.servers import Running, Server, running
from benchmarks.table import NAIVE, OURS

CELL = CELLS[0]
COUNTS = (1, 16, 1000)
IN_FLIGHT = 64
# What a thousand streams have in flight at first takes the better part of a second.
MIN_SECONDS = 2
FRAME_STEPS = 64


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
    Way("WebSocket text", text_frames, IN_FLIGHT, COUNTS, websocket=True),
    Way("WebSocket text, sessions", text_frames, IN_FLIGHT, COUNTS[-1:], websocket=True, session=True),
    Way(FRAMES, long_frames, 2, COUNTS, websocket=True),
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
        return Spread.of(mine.rate / its.rate for mine, its in zip(self.samples, other.samples, strict=True))


def streams(
    servers: Sequence[Server], rounds: Rounds, places: tuple[Path, Path], console: Console
) -> tuple[list[Flows], list[str]]:
    """Every way of the service and of the hand-written endpoint in turn; also what was left out, and why."""
    models, scratch = places
    samples: dict[tuple[str, str, int, int], list[Flow]] = {}
    with compiled(PROGRAM) as program, ExitStack() as stack:
        client = Client(program, scratch)
        entries, left_out = [], []
        for server in servers:
            if ways := ways_of(server):
                started = stack.enter_context(running(server, models, scratch))
                lacking = lacks(started)
                left_out += lacking
                fitting = [way for way in ways if fits(way, lacking)]
                entries += [(started, way, count) for way in fitting for count in way.counts]
        for number in range(rounds.count):
            shift = number % max(len(entries), 1)
            for server, way, count in entries[shift:] + entries[:shift]:
                flow = drive(client, server, way, count, max(rounds.seconds, MIN_SECONDS))
                samples.setdefault((server.server.name, way.name, count, way.window), []).append(flow)
                outcome = f"{flow.rate:,.0f} steps/s{f', {flow.errors} errors' if flow.errors else ''}"
                console.print(f"round {number + 1}: {server.server.name}, {way.name}, {count}: {outcome}")
    return [Flows(*key, tuple(taken)) for key, taken in samples.items()], left_out


def drive(client: Client, server: Running, way: Way, count: int, seconds: float) -> Flow:
    """One run. Raises ValueError if the first answer is wrong."""
    sessions: Sequence[str | None] = list(mint(server, CELL, count)) if way.session else [None] * count
    talks = [way.talk(CELL, session) for session in sessions]
    flow, answer = client.run(server, talks, seconds, window=way.window)
    check(CELL, talks[0], answer)
    return flow


def ways_of(server: Server) -> Sequence[Way]:
    return WAYS if server.name == OURS else PLAIN if server.name == NAIVE[-1] else ()


def lacks(server: Running) -> list[str]:
    """What the server does not have yet, in words."""
    found = []
    if not takes_websockets(server):
        found.append(f"{server.server.name}: streams over WebSocket, since it does not take them")
    if server.server.name == OURS and not keeps_sessions(server):
        found.append(f"{server.server.name}: streams of sessions, since it keeps none")
    return found


def fits(way: Way, lacking: Sequence[str]) -> bool:
    needed = [word for word, needs in (("WebSocket", way.websocket), ("sessions", way.session)) if needs]
    return not any(word in what for word in needed for what in lacking)


def takes_websockets(server: Running) -> bool:
    """Whether the handshake on /cell/stream is accepted."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(HANDSHAKE)
        return connection.recv(64).startswith(b"HTTP/1.1 101")


def keeps_sessions(server: Running) -> bool:
    """Whether a session can be opened."""
    try:
        next(mint(server, CELL, 1))
    except RuntimeError:
        return False
    return True


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
