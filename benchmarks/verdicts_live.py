"""What was expected of streams and of sessions, beside what was measured."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.idle import LARGE, SMALL, Idle, Restarts
from benchmarks.results import Spread
from benchmarks.sessions import CLIENTS, CROWD, FEW, STATELESS
from benchmarks.stores import MEMORY, SQLITE
from benchmarks.streams import FRAMES, Flows
from benchmarks.table import NAIVE, OURS
from benchmarks.verdict import Verdict

if TYPE_CHECKING:
    from benchmarks.report import Report

STEPS_PER_SECOND = 100_000
STREAMED = ("NDJSON", f"{FRAMES}, sessions")
# Steps of sessions over stateless ones, and those of durable sessions over those in memory.
SESSION_PART, DURABLE_PART = 0.85, 0.7
CROWD_P99 = 3
# Bytes of an idle session: so many times its state and so many more; and of a million small ones.
STATES, MORE_BYTES = 1.5, 500
MILLION, MILLION_BYTES = 1_000_000, 2**30
LATER_SECONDS = 0.5
# Memory counts as back if no more than this part of what the sessions took stayed.
STAYED = 0.05


def streams_and_sessions(report: "Report") -> Iterator[Verdict]:
    """Every expectation whose figures were measured."""
    yield from streams(report.streams)
    yield from stores(report.sessions)
    yield from crowd(report.sessions)
    yield from memory(report.idle)
    yield from restart(report.restarts)


def streams(measured: Sequence[Flows]) -> Iterator[Verdict]:
    """Steps a second of all streams together."""
    for flows in (flows for flows in measured if flows.server == OURS and flows.way in STREAMED):
        what = f"{flows.way}, {flows.connections:,} stream{'s' * (flows.connections > 1)}: steps/s"
        met = flows.rate.median >= STEPS_PER_SECOND and not flows.errors
        yield Verdict(what, f"≥ {STEPS_PER_SECOND:,}", flows.rate, met, "steps/s of all streams together")
    naive = {(flows.way, flows.connections): flows for flows in measured if flows.server == NAIVE[-1]}
    for flows in (flows for flows in measured if flows.server == OURS):
        if other := naive.get((flows.way, flows.connections)):
            ratio = flows.over(other)
            what = f"{flows.way}, {flows.connections:,} stream{'s' * (flows.connections > 1)}: steps/s"
            how = "steps/s over the other's in the same round; met if so in every round"
            yield Verdict(what, f"> {NAIVE[-1]}", ratio, ratio.low > 1, how)


def stores(measured: Sequence[Flows]) -> Iterator[Verdict]:
    """Steps of sessions over HTTP."""
    found = {(flows.way, flows.connections): flows for flows in measured}
    pairs = [(MEMORY.name, STATELESS, count, SESSION_PART) for count in CLIENTS]
    for way, against, count, least in [*pairs, (SQLITE.name, MEMORY.name, CLIENTS[-1], DURABLE_PART)]:
        mine, other = found.get((way, count)), found.get((against, count))
        if mine and other:
            ratio = mine.over(other)
            what = f"sessions, {way}, {count} clients: steps/s"
            met, how = ratio.median >= least and not mine.errors, "steps/s over the other's in the same round"
            yield Verdict(what, f"≥ {least:g} × {against}", ratio, met, how)


def crowd(measured: Sequence[Flows]) -> Iterator[Verdict]:
    """p99 with many live sessions over that with few, at the same rate."""
    found = [flows for flows in measured if flows.way == CROWD]
    few = next((flows for flows in found if flows.connections == FEW), None)
    for many in (flows for flows in found if flows is not few):
        if few:
            pairs = zip(many.samples, few.samples, strict=False)
            ratio = Spread.of(mine.p99_ms / its.p99_ms for mine, its in pairs)
            what = f"{many.connections:,} live sessions: p99 of a step"
            met = ratio.median <= CROWD_P99 and not many.errors
            how = "p99 over that with few in the same round"
            yield Verdict(what, f"≤ {CROWD_P99:g} × that with {FEW} at the same rate", ratio, met, how)


def memory(measured: Sequence[Idle]) -> Iterator[Verdict]:
    """Memory of idle sessions, and when they have expired."""
    for one in measured:
        each = one.bytes_each
        if one.hidden_size == LARGE.hidden_size:
            most = STATES * one.state_bytes + MORE_BYTES
            expected = f"≤ {STATES:g} × its state + {MORE_BYTES} = {most:,.0f}"
            how = "rise of the resident memory over the sessions opened"
            yield Verdict(f"idle session, H {one.hidden_size}: bytes", expected, Spread.of([each]), each <= most, how)
        if one.hidden_size == SMALL.hidden_size:
            gib = each * MILLION / 2**30
            what = f"1,000,000 idle sessions, H {one.hidden_size}, GiB (of {one.count:,} measured)"
            how = "rise of the resident memory over the sessions opened, times 1,000,000"
            yield Verdict(what, "≤ 1", Spread.of([gib]), gib * 2**30 <= MILLION_BYTES, how)
        if one.expired_bytes is not None:
            stayed = (one.expired_bytes - one.before_bytes) / (one.with_bytes - one.before_bytes)
            what = f"{one.count:,} sessions opened and expired: part of their memory that stays"
            how = "(expired − before) / (with them − before), resident"
            yield Verdict(what, f"≤ {STAYED:g}", Spread.of([stayed]), stayed <= STAYED, how)


def restart(measured: Restarts | None) -> Iterator[Verdict]:
    """How much later the service is ready with many sessions in sqlite."""
    if measured:
        later = measured.later
        what = f"restart with {measured.count:,} sessions in sqlite: ready later by, s"
        how = "seconds to ready minus those with an empty store, in the same round"
        yield Verdict(what, f"≤ {LATER_SECONDS:g}", later, later.median <= LATER_SECONDS, how)
