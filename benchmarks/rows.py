"""What is measured, and what is wanted of it: two tables."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cases, loads
from benchmarks.cases import Case
from benchmarks.loads import Figures, background, k6, open_sessions, start_sequences, wrk
from benchmarks.servers import (
    ECHO,
    LOG,
    MOSEC,
    NAIVE,
    ONE_ROW,
    OTHER,
    OURS,
    OWN,
    SLOW_TO_START,
    SQLITE,
    TRITON,
    TWO,
    Fleet,
    interpreter,
)
from benchmarks.streams import Frames, Lines, streams

FASTEST_NAIVE = "naive"
SERVERS = (*NAIVE, MOSEC, *SLOW_TO_START)
# Open loops: seconds that are counted, and arrivals a second.
OPEN_SECONDS, BESIDE_RATE = 4, 500
CROWD_SECONDS, CROWD_RATE = 5, 1_500
OVERLOAD = 3
FEW_ROUNDS = 3


Measure = Callable[[Fleet, str, int], Figures]
"""Figures of the server of that name; the seconds of a closed loop or of streams."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: of our service in its `variants`, in each checkout, and of `others` where they can be started.

    At most so many `rounds`, whatever is asked for. `figure` is the one that matters most.
    """

    section: str
    name: str
    measure: Measure
    variants: tuple[str, ...] = ("",)
    others: tuple[str, ...] = ()
    rounds: int = 99
    figure: str = "rate"

    def servers(self, fleet: Fleet) -> list[str]:
        names = [f"{label}, {variant}" if variant else label for variant in self.variants for label in (OURS, OTHER)]
        return [name for name in (*names, *self.others) if name in fleet.servers]


def closed(case: Case, form: str = "json") -> Measure:
    """The case's clients, each of which waits for its reply; large ones a second longer, for the slowest servers."""

    def measure(fleet: Fleet, name: str, seconds: int) -> Figures:
        server = fleet.get(name)
        return wrk(server, server.call(case, form), case.clients, seconds + (case is cases.LARGE))

    return measure


def sessions(fleet: Fleet, name: str, seconds: int) -> Figures:
    """64 clients that step 64 sessions in turn."""
    server, case = fleet.get(name), cases.IN_SESSION
    return wrk(server, server.server.call(case, "json"), case.clients, seconds, open_sessions(server, case.clients))


def sequences(fleet: Fleet, name: str, seconds: int) -> Figures:
    """64 clients that step 64 sequences of the Open Inference Protocol in turn."""
    server, call = fleet.get(name), cases.sequence_step()
    return wrk(server, call, call.case.clients, seconds, start_sequences(server, call.case.clients))


def live_sessions(count: int) -> Measure:
    """Steps of so many sessions in turn, at a fixed rate."""

    def measure(fleet: Fleet, name: str, _: int) -> Figures:
        settings = {"SCENARIO": "session", "MODEL": cases.STEP.model, "SESSIONS": count}
        return k6(fleet.fresh(name), CROWD_SECONDS, CROWD_RATE, **settings)

    return measure


def stream(kind: type[Lines | Frames], window: int, count: int, *, in_sessions: bool = False) -> Measure:
    """So many streams at once."""

    def measure(fleet: Fleet, name: str, seconds: int) -> Figures:
        return streams(fleet.get(name), kind, window, count, seconds, in_sessions=in_sessions)

    return measure


def beside(case: Case | None, form: str = "json") -> Measure:
    """Steps at a fixed rate while the clients of a larger case keep the server busy, or nobody does."""

    def measure(fleet: Fleet, name: str, _: int) -> Figures:
        server = fleet.get(name)
        steps = loads.sends(server, server.call(cases.STEP, "json"))
        if case is None:
            return k6(server, OPEN_SECONDS, BESIDE_RATE, **steps)
        with background(server, server.call(case, form), case.clients):
            return k6(server, OPEN_SECONDS, BESIDE_RATE, **steps)

    return measure


def overload(case: Case, form: str) -> Measure:
    """Three times as many arrivals as the server answered in a closed loop just before, both from the load's core."""

    def measure(fleet: Fleet, name: str, seconds: int) -> Figures:
        server = fleet.get(name)
        request = server.call(case, form)
        full = wrk(server, request, case.clients, seconds, pinned=True)
        connections = 128 if case is cases.LARGE else 512
        settings = {"VUS": connections, **loads.sends(server, request)}
        figures = k6(server, OPEN_SECONDS, OVERLOAD * full["rate"], **settings)
        arrived = figures["rate"] + figures["refused"] + figures["failed"]
        shares = {"arrived": arrived / full["rate"], "goodput": figures["goodput"] / full["rate"]}
        return {**figures, "capacity": full["rate"], **shares, "mib_before": full["mib"]}

    return measure


def scheduler(fleet: Fleet, name: str, seconds: int) -> Figures:
    """The scheduler of a checkout alone, in a process of its own."""
    tree, script = fleet.servers[name].cwd, Path(__file__).with_name("batching.py")
    command = ["env", f"PYTHONPATH={tree}", interpreter(tree), str(script), str(seconds / 2)]
    together, alone = map(float, loads.run(command, 60).split())
    return {"rate": together, "one_row_rate": alone}


def memory(fleet: Fleet, name: str, _: int) -> Figures:
    """Resident memory of a new process when it is ready, and at most after each of four loads."""
    server = fleet.fresh(name)
    loaded = (cases.STEP, cases.SMALL, cases.MEDIUM, cases.LARGE)
    runs = [wrk(server, server.call(case, "json"), case.clients, 1) for case in loaded]
    return {"ready_mib": server.ready_bytes / loads.MIB, "loaded_mib": max(run["mib"] for run in runs)}


def live(section: str, name: str, measure: Measure, figure: str) -> Row:
    """A row of an open loop: our service on its own cores."""
    return Row(section, name, measure, (OWN,), (), FEW_ROUNDS, figure)


REQUESTS, STREAMS, SESSIONS = "Requests in a closed loop", "Streams", "Sessions"
BESIDE, LIMIT, TOGETHER, MEMORY = "Steps beside large requests", "Past the limit", "Batching", "Memory"
STEP, SMALL, MEDIUM, LARGE = (f"{case}, JSON" for case in ("step", "small", "medium", "large"))
MOMENTS = ("ready_mib", "loaded_mib")
MANY, FEW = "10,000 live sessions, 1,500 steps/s", "10 live sessions, 1,500 steps/s"
STATELESS, IN_MEMORY, IN_SQLITE = (f"64 clients, {what}" for what in ("stateless", "sessions", "sessions in sqlite"))
V2 = ("v2 JSON", "v2 binary")
IN_SEQUENCES = "64 clients, v2 sequences"
QUIET, BESIDE_BODY, BESIDE_REPLY = (f"beside {what}" for what in ("nothing", "a 60 MiB body", "a 60 MiB reply"))
PAST = PAST_MEDIUM, PAST_LARGE, PAST_BINARY = tuple(f"3 × {what}" for what in (MEDIUM, LARGE, "large, safetensors"))

ROWS = (
    Row(REQUESTS, STEP, closed(cases.STEP), ("", LOG, TWO), (*SERVERS, ECHO)),
    Row(REQUESTS, "step, JSON, one client", closed(cases.ONE_CLIENT), ("",), (*NAIVE, MOSEC, ECHO)),
    Row(REQUESTS, SMALL, closed(cases.SMALL), ("", LOG), SERVERS),
    Row(REQUESTS, "batch, JSON", closed(cases.BATCH), ("",), SERVERS[2:]),
    Row(REQUESTS, MEDIUM, closed(cases.MEDIUM), ("",), SERVERS),
    Row(REQUESTS, LARGE, closed(cases.LARGE), ("", TWO), (*SERVERS, ECHO)),
    Row(REQUESTS, "medium, safetensors", closed(cases.MEDIUM, "safetensors"), ("",), (ECHO,)),
    Row(REQUESTS, "large, safetensors", closed(cases.LARGE, "safetensors"), ("",), (ECHO,)),
    *(Row(REQUESTS, f"medium, {form}", closed(cases.MEDIUM, form), ("",), (TRITON,)) for form in V2),
    *(Row(REQUESTS, f"large, {form}", closed(cases.LARGE, form), ("",), (TRITON,)) for form in V2),
    Row(STREAMS, "NDJSON, 1 stream, each line awaited", stream(Lines, 1, 1), rounds=FEW_ROUNDS),
    Row(STREAMS, "NDJSON, 1 stream", stream(Lines, 64, 1), rounds=FEW_ROUNDS),
    Row(STREAMS, "NDJSON, 16 streams", stream(Lines, 64, 16), rounds=FEW_ROUNDS),
    Row(STREAMS, "NDJSON, 1,000 streams", stream(Lines, 64, 1000), rounds=FEW_ROUNDS),
    Row(STREAMS, "WebSocket, 1 stream", stream(Frames, 2, 1), rounds=FEW_ROUNDS),
    Row(STREAMS, "WebSocket, 1,000 streams", stream(Frames, 2, 1000), rounds=FEW_ROUNDS),
    Row(STREAMS, "WebSocket, 1,000 sessions", stream(Frames, 2, 1000, in_sessions=True), rounds=FEW_ROUNDS),
    Row(SESSIONS, STATELESS, closed(cases.CROWD)),
    Row(SESSIONS, IN_MEMORY, sessions),
    Row(SESSIONS, IN_SQLITE, sessions, (SQLITE,)),
    Row(SESSIONS, IN_SEQUENCES, sequences),
    live(SESSIONS, FEW, live_sessions(10), "p99_ms"),
    live(SESSIONS, MANY, live_sessions(10_000), "p99_ms"),
    live(BESIDE, QUIET, beside(None), "p99_ms"),
    live(BESIDE, f"beside {LARGE}", beside(cases.LARGE), "p99_ms"),
    live(BESIDE, "beside large, safetensors", beside(cases.LARGE, "safetensors"), "p99_ms"),
    live(BESIDE, BESIDE_BODY, beside(cases.HUGE_BODY), "p99_ms"),
    live(BESIDE, BESIDE_REPLY, beside(cases.HUGE_REPLY), "p99_ms"),
    live(LIMIT, PAST_MEDIUM, overload(cases.MEDIUM, "json"), "goodput"),
    live(LIMIT, PAST_LARGE, overload(cases.LARGE, "json"), "goodput"),
    live(LIMIT, PAST_BINARY, overload(cases.LARGE, "safetensors"), "goodput"),
    Row(TOGETHER, "64 clients at the scheduler", scheduler, rounds=FEW_ROUNDS),
    Row(TOGETHER, "64 clients over HTTP", closed(cases.BATCH_STATES, "safetensors"), ("", ONE_ROW), rounds=FEW_ROUNDS),
    Row(MEMORY, "resident memory", memory, ("",), (NAIVE[2], MOSEC), 1, "loaded_mib"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A figure of our service that is to be at least or at most so much.

    `over`: the ratio to a figure (row, server, figure) of the same round; with `minus` the difference. An empty row or
    figure means the same one. The server may be a variant of our own, which is then of the same checkout.
    """

    row: str
    figure: str
    least: float | None = None
    most: float | None = None
    over: tuple[str, str, str] | None = None
    variant: str = ""
    minus: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is what is wanted."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def times(least: float, row: str, server: str, base: str = "", *, variant: str = "") -> Wanted:
    """Answers a second in multiples of a server's."""
    return Wanted(row, "rate", least=least, over=(base, server, ""), variant=variant)


WANTED = (
    times(3.3, STEP, FASTEST_NAIVE),
    times(4.5, SMALL, FASTEST_NAIVE),
    *(times(5, row, FASTEST_NAIVE) for row in (MEDIUM, LARGE)),
    times(18, "medium, safetensors", FASTEST_NAIVE, MEDIUM),
    times(33, "large, safetensors", FASTEST_NAIVE, LARGE),
    *(times(1, row, MOSEC) for row in (STEP, SMALL, "batch, JSON", MEDIUM, LARGE)),
    times(0.55, STEP, ECHO),
    times(1.7, LARGE, OURS, variant=TWO),
    *(times(0.9, row, OURS, variant=LOG) for row in (STEP, SMALL)),
    Wanted("step, JSON, one client", "p50_ms", most=0.6, over=("", FASTEST_NAIVE, "")),
    *(Wanted(f"NDJSON, {count}", "rate", least=100_000) for count in ("1 stream", "16 streams", "1,000 streams")),
    Wanted("WebSocket, 1,000 sessions", "rate", least=300_000),
    times(0.85, IN_MEMORY, OURS, STATELESS),
    times(0.4, IN_SQLITE, OURS, IN_MEMORY, variant=SQLITE),
    *(times(0.9, f"{size}, v2 binary", OURS, f"{size}, safetensors") for size in ("medium", "large")),
    *(times(1, f"{size}, {form}", TRITON) for size in ("medium", "large") for form in V2),
    Wanted(IN_SEQUENCES, "rate", least=3 * 1330),  # Triton's on this machine
    Wanted(MANY, "p99_ms", most=3, over=(FEW, f"{OURS}, {OWN}", ""), variant=OWN),
    Wanted("beside large, safetensors", "p99_ms", most=5, over=(QUIET, f"{OURS}, {OWN}", ""), variant=OWN),
    Wanted(f"beside {LARGE}", "p99_ms", most=15, variant=OWN),
    *(Wanted(row, "max_ms", most=50, variant=OWN) for row in (BESIDE_BODY, BESIDE_REPLY)),
    *(Wanted(row, "goodput", least=0.9, variant=OWN) for row in PAST),
    Wanted(PAST_MEDIUM, "goodput", least=0.9, over=("", f"{OTHER}, {OWN}", ""), variant=OWN),
    *(Wanted(row, "refused_p99_ms", most=50, variant=OWN) for row in PAST),
    Wanted(PAST_MEDIUM, "mib", most=1.2, over=("", f"{OURS}, {OWN}", "mib_before"), variant=OWN),
    Wanted("64 clients at the scheduler", "rate", least=2, over=("", OURS, "one_row_rate")),
    times(1.3, "64 clients over HTTP", f"{OURS}, {ONE_ROW}"),
    *(Wanted("resident memory", when, most=100, over=("", NAIVE[2], ""), minus=True) for when in MOMENTS),
    *(Wanted("resident memory", when, most=1, over=("", OTHER, "")) for when in MOMENTS),
)
