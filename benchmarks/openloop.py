"""Open-loop load: requests arrive at a fixed mean rate, whatever the server does. See openloop.c for the client."""

import resource
import subprocess
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bodies import Call
from benchmarks.servers import Running

PROGRAM = "openloop"
# More than any server takes at once: arrivals come from everywhere. Those beyond wait for a free connection, and their
# wait counts. The connections that were used last are used again, so that fewer are at work when fewer are needed.
CONNECTIONS = 512
TIMEOUT_SECONDS = 10
# An answer that comes later than this after its request's arrival is of no use any more.
IN_TIME_SECONDS = 1
# A percentile says little with fewer values beyond it.
MIN_BEYOND = 5


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What became of requests that arrived at `offered` a second. Latencies, in milliseconds, run from the arrival.

    `answered` had a 2xx; `refused` 429 or 503; `failed` another status, no reply within the time-out, or a broken
    connection. `throughput` counts answers a second that came while requests arrived, `goodput` those of them that came
    within a second of their own arrival. Percentiles are those of the answered, and of the refused; None where fewer
    than five lie beyond (p50: where there is none; of the refused: one). `client_busy` is the part of a core that the
    load took: near 1, the figures are those of the client.
    """

    offered: float
    seconds: float
    answered: int
    refused: int
    failed: int
    goodput: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    refusal_p99_ms: float | None
    cpu_ms: float
    resident_bytes: int
    client_busy: float = 0.0
    throughput: float = 0.0


def arrive(program: Path, server: Running, call: Call, rate: float, seconds: float, *, settle: bool = True) -> Arrivals:
    """Let requests arrive for `seconds`, as a Poisson process of `rate` a second, the same one every time.

    Waits in the end until the server has settled, unless something else keeps it busy.
    """
    request = program.with_name("request")
    head = (
        f"POST {call.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {call.content_type}\r\n"
        f"Content-Length: {len(call.body)}\r\n\r\n"
    )
    request.write_bytes(head.encode() + call.body)
    port = server.url.rpartition(":")[2]
    command = [str(program), port, str(request), *map(str, (rate, seconds, CONNECTIONS, TIMEOUT_SECONDS, 1))]
    before, of_client = server.cpu_seconds(), _children_seconds()
    output = subprocess.run(command, capture_output=True, check=True, timeout=seconds + 3 * TIMEOUT_SECONDS).stdout
    cpu, of_client = server.cpu_seconds() - before, _children_seconds() - of_client
    resident = server.resident_bytes()
    if settle:
        server.settle()
    return summary(output, rate, seconds, cpu, resident, of_client / seconds)


def summary(
    output: bytes, rate: float, seconds: float, cpu_seconds: float, resident_bytes: int, client_busy: float = 0.0
) -> Arrivals:
    """Counts and percentiles of the client's lines: arrival and latency in microseconds, status."""
    lines = np.loadtxt(BytesIO(output), ndmin=2) if output else np.empty((0, 3))
    arrival, latency, status = lines[:, 0], lines[:, 1], lines[:, 2]
    good = (status >= 200) & (status < 300)
    refused = (status == 429) | (status == 503)
    start = arrival.min(initial=np.inf)
    meanwhile = good & (arrival + latency <= start + 1e6 * seconds)
    in_time = meanwhile & (latency <= 1e6 * IN_TIME_SECONDS)
    return Arrivals(
        offered=rate,
        seconds=seconds,
        answered=int(good.sum()),
        refused=int(refused.sum()),
        failed=int((~good & ~refused).sum()),
        goodput=float(in_time.sum() / seconds),
        p50_ms=_percentile(latency[good], 50),
        p99_ms=_percentile(latency[good], 99),
        p999_ms=_percentile(latency[good], 99.9),
        refusal_p99_ms=_percentile(latency[refused], 99, beyond=1),
        cpu_ms=1e3 * cpu_seconds / max(int(good.sum()), 1),
        resident_bytes=resident_bytes,
        client_busy=client_busy,
        throughput=float(meanwhile.sum() / seconds),
    )


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _percentile(microseconds: NDArray[np.float64], percent: float, beyond: int = MIN_BEYOND) -> float | None:
    enough = round((1 - percent / 100) * len(microseconds), 6) >= beyond or (percent == 50 and len(microseconds) > 0)
    return float(np.percentile(microseconds, percent)) / 1e3 if enough else None
