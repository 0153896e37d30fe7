"""Load: closed loops by wrk, open loops by k6. Every run gives figures by name.

Closed loops: rate (requests a second), p50_ms, p99_ms, max_ms (latency), cpu_us (of the server, a request), mib (its
resident memory at the end). Open loops: rate (2xx a second), goodput (those of them within a second), refused (429 and
503 a second), refused_p99_ms, failed (all else), dropped (no connection was free), mib (the most that was seen).
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import orjson

from benchmarks.cases import STEP, Call, values
from benchmarks.rivals import ROOT
from benchmarks.servers import LOAD_CORE, Running

Figures = dict[str, float]

MIB = 2**20
TIMEOUT_SECONDS = 30
WARM_UP_SECONDS = 2
# What k6 ends with when a threshold was missed: failures are counted here.
K6_MISSED = 99
PINNED = ("taskset", "--cpu-list", str(LOAD_CORE))
# With a static request wrk formats it once and only sends it; sessions are stepped in turn.
SCRIPT = """
local bodies = {{}}
for line in io.lines("{bodies}", "L") do
  local file = assert(io.open(line:sub(1, -2), "rb"))
  bodies[#bodies + 1] = file:read("*a")
  file:close()
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
wrk.body = bodies[1]
if #bodies > 1 then
  local requests, turn = {{}}, 0
  init = function() for i, body in ipairs(bodies) do requests[i] = wrk.format(nil, nil, nil, body) end end
  request = function()
    turn = turn % #requests + 1
    return requests[turn]
  end
end
done = function(summary, latency)
  local e = summary.errors
  local line = '\\nRESULT {{"requests":%d,"microseconds":%d,"p50":%.1f,"p99":%.1f,"max":%.1f,"errors":%d}}\\n'
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  io.write(line:format(summary.requests, summary.duration, p50, p99, latency.max, errors))
end
"""


def wrk_command(
    server: Running, call: Call, clients: int, seconds: int, bodies: Sequence[bytes], *, pinned: bool
) -> list[str]:
    """Wrk with its files, which stand beside the server's log."""
    folder = server.scratch / f"wrk-{server.port}"
    folder.mkdir(exist_ok=True)
    files = [folder / str(number) for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_bytes(body)
    (folder / "bodies").write_text("".join(f"{file}\n" for file in files))
    (folder / "post.lua").write_text(SCRIPT.format(bodies=folder / "bodies", content_type=call.content_type))
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s", "--latency"]
    return [*(PINNED if pinned else ()), "wrk", *options, f"--script={folder}/post.lua", server.url + call.path]


def wrk(
    server: Running, call: Call, clients: int, seconds: int, bodies: Sequence[bytes] = (), *, pinned: bool = False
) -> Figures:
    """Keep `clients` busy: each sends its next request when it has its reply. Raises RuntimeError on any failure."""
    command = wrk_command(server, call, clients, seconds, bodies or [call.body], pinned=pinned)
    before = server.cpu_seconds()
    output = run(command, seconds + 2 * TIMEOUT_SECONDS)
    # Taken at once: requests that wrk left unanswered still run, and are not in its count.
    cpu, resident = server.cpu_seconds() - before, server.resident_bytes()
    server.settle()
    result = json.loads(output.rpartition("RESULT ")[2])
    if result["errors"] or not result["requests"]:
        raise RuntimeError(f"{result['errors']} of {result['requests']} requests failed")
    return {
        "rate": 1e6 * result["requests"] / result["microseconds"],
        "p50_ms": result["p50"] / 1e3,
        "p99_ms": result["p99"] / 1e3,
        "max_ms": result["max"] / 1e3,
        "cpu_us": 1e6 * cpu / result["requests"],
        "mib": resident / MIB,
    }


@contextmanager
def background(server: Running, call: Call, clients: int) -> Iterator[None]:
    """The same load while something else is measured, from the load's core."""
    command = wrk_command(server, call, clients, 600, [call.body], pinned=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


def k6(server: Running, seconds: int, rate: float, **settings: object) -> Figures:
    """Requests arrive at `rate` a second, whatever the server does; the first seconds are not counted. See load.js."""
    summary = server.scratch / f"k6-{server.port}.json"
    given = {
        "URL": server.url,
        "RATE": max(round(rate), 1),
        "DURATION": seconds,
        "WARM_UP": WARM_UP_SECONDS,
        **settings,
    }
    program = shutil.which("k6") or str(Path(sys.prefix, "bin", "k6"))
    options = [part for name, value in given.items() for part in ("-e", f"{name}={value}")]
    command = [*PINNED, program, "run", "--quiet", "--no-usage-report", f"--summary-export={summary}", *options]
    peak, end = server.resident_bytes(), time.monotonic() + seconds + 2 * TIMEOUT_SECONDS
    log = summary.with_suffix(".log")
    with log.open("wb") as output:
        child = subprocess.Popen([*command, str(ROOT / "benchmarks/load.js")], stdout=output, stderr=output)
    try:
        while child.poll() is None:
            if time.monotonic() > end:
                raise RuntimeError("k6 did not end")
            peak = max(peak, server.resident_bytes())
            time.sleep(0.1)
    finally:
        child.kill()
        child.wait()
    server.settle()
    if child.returncode not in {0, K6_MISSED}:
        raise RuntimeError(f"k6 failed: {log.read_text()[-500:]}")
    metrics = json.loads(summary.read_bytes())["metrics"]
    counts = {"rate": "answered_ms", "goodput": "in_time", "refused": "refused_ms", "failed": "failed"}
    counts["dropped"] = "dropped_iterations"
    figures = {name: metrics.get(metric, {}).get("count", 0) / seconds for name, metric in counts.items()}
    if figures["rate"]:
        answered = metrics["answered_ms"]
        figures |= {"p50_ms": answered["med"], "p99_ms": answered["p(99)"], "max_ms": answered["max"]}
    if figures["refused"]:
        figures["refused_p99_ms"] = metrics["refused_ms"]["p(99)"]
    return {**figures, "mib": peak / MIB}


def sends(server: Running, call: Call) -> dict[str, object]:
    """What makes load.js send this very request."""
    file = server.scratch / f"k6-{server.port}.body"
    file.write_bytes(call.body)
    scenario = "step" if call.case.path == "/cell/step" else "forward"
    return {"BODY": file, "CONTENT_TYPE": call.content_type, "SCENARIO": scenario}


def open_sessions(server: Running, count: int) -> list[str]:
    """Open sessions of the step's model, one by one. Raises RuntimeError if one is refused."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
    body, headers, found = json.dumps({"model": STEP.model}), {"Content-Type": "application/json"}, []
    try:
        for _ in range(count):
            connection.request("POST", "/cell/sessions", body, headers)
            response = connection.getresponse()
            reply = response.read()
            if response.status != HTTPStatus.CREATED:
                raise RuntimeError(f"a session was refused with {response.status}: {reply[:300]!r}")
            found.append(json.loads(reply)["session"])
    finally:
        connection.close()
    return found


def session_bodies(sessions: Sequence[str]) -> list[bytes]:
    """A step of each session."""
    inputs = values(STEP)[0]["inputs"][0]
    fields = ({"session": session, "inputs": inputs} for session in sessions)
    return [orjson.dumps(one, option=orjson.OPT_SERIALIZE_NUMPY) for one in fields]


def run(command: Sequence[str], seconds: float) -> str:
    """What a program prints. Raises RuntimeError with the end of it if it fails or takes longer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds).stdout
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {(error.stdout + error.stderr)[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} took longer than {seconds:.0f} s") from error
