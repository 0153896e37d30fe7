"""Load from wrk, and what a server did under it."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bodies import Call
from benchmarks.servers import Running

# Without a request() function wrk formats the request once and only sends it, so that the client stays cheap.
SCRIPT = """
local file = assert(io.open("{body}", "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "{content_type}"
file:close()

done = function(summary, latency, requests)
  local e = summary.errors
  local line = '\\nRESULT {{"requests":%d,"microseconds":%d,"p50":%.1f,"p99":%.1f,"errors":%d}}\\n'
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  io.write(line:format(summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors))
end
"""

TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of wrk against one server: latencies in milliseconds, CPU of the server alone.

    `errors` counts failed connections, reads, writes, time-outs and statuses from 400 up.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    resident_bytes: int
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def drive(server: Running, call: Call, connections: int, seconds: int, scratch: Path) -> Sample:
    """Keep `connections` clients busy for whole `seconds`; each sends its next request when it has its reply."""
    before = server.cpu_seconds()
    run = subprocess.run(
        wrk(server, call, connections, seconds, scratch),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 2 * TIMEOUT_SECONDS,
    )
    # Taken at once: requests that wrk left unanswered still run, and are not in its count.
    cpu = server.cpu_seconds() - before
    resident = server.resident_bytes()
    server.settle()
    return sample(run.stdout, cpu, resident)


@contextmanager
def background(server: Running, call: Call, connections: int, seconds: int, scratch: Path) -> Iterator[None]:
    """The same load while something else is measured, for so many seconds at most."""
    folder = scratch / "background"
    folder.mkdir(exist_ok=True)
    command = wrk(server, call, connections, seconds, folder)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


def wrk(server: Running, call: Call, connections: int, seconds: int, scratch: Path) -> list[str]:
    """The command; its files are in `scratch`."""
    body, script = scratch / "body", scratch / "post.lua"
    body.write_bytes(call.body)
    script.write_text(SCRIPT.format(body=body, content_type=call.content_type))
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s", "--latency"]
    return ["wrk", *options, f"--script={script}", server.url + call.path]


def sample(output: str, cpu_seconds: float, resident_bytes: int) -> Sample:
    """Read the line that the script's done() printed; raises RuntimeError if wrk printed none."""
    lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"wrk printed no result:\n{output[-2000:]}")
    result = json.loads(lines[-1])
    return Sample(
        requests=result["requests"],
        seconds=result["microseconds"] / 1e6,
        p50_ms=result["p50"] / 1e3,
        p99_ms=result["p99"] / 1e3,
        cpu_ms=1e3 * cpu_seconds / max(result["requests"], 1),
        resident_bytes=resident_bytes,
        errors=result["errors"],
    )
