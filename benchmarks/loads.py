"""Load: closed loops by wrk, open loops by k6. Every run gives figures by name.

Closed loops: rate (requests a second), p50_ms, p99_ms, max_ms (latency), cpu_us (of the server, a request), mib (its
resident memory at the end). Open loops: rate (2xx a second), goodput (those of them within a second), refused (429 and
503 a second), refused_p99_ms, failed (all else), dropped (no connection was free), client (part of a
core that k6 took, its start included: near 1, it is k6 that was measured), mib (the most that was seen).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.cases import STEP, Call, sequence_step
from benchmarks.servers import LOAD_CORE, Running

Figures = dict[str, float]

HERE = Path(__file__).parent
MIB = 2**20
TIMEOUT_SECONDS = 30
WARM_UP_SECONDS = 2
# k6 is written in Go: fewer garbage collections, for the load has one core only.
RARE_COLLECTION = {"GOGC": "800"}
# What k6 ends with when a threshold was missed: failures are counted here.
K6_MISSED = 99
PINNED = ("taskset", "--cpu-list", str(LOAD_CORE))


def wrk_command(server: Running, call: Call, clients: int, seconds: int, sessions: Sequence[str] = ()) -> list[str]:
    """`wrk` and its arguments; the files stand beside the server's log."""
    body, names = (server.scratch / f"wrk-{server.port}-{call.case.clients}.{end}" for end in ("body", "sessions"))
    body.write_bytes(call.body)
    names.write_text("".join(f"{session}\n" for session in sessions))
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s", "--latency"]
    arguments = [str(body), call.content_type, str(call.header_bytes), *([str(names)] if sessions else [])]
    return ["wrk", *options, f"--script={HERE / 'post.lua'}", server.url + call.path, "--", *arguments]


def wrk(
    server: Running, call: Call, clients: int, seconds: int, sessions: Sequence[str] = (), *, pinned: bool = False
) -> Figures:
    """Keep `clients` busy: each sends its next request when it has its reply. Raises RuntimeError on any failure."""
    command = wrk_command(server, call, clients, seconds, sessions)
    before = server.cpu_seconds()
    output = run([*PINNED, *command] if pinned else command, seconds + 2 * TIMEOUT_SECONDS)
    # Taken at once: requests that wrk left unanswered still run, and are not in its count.
    cpu, resident = server.cpu_seconds() - before, server.resident_bytes()
    server.settle()
    result = json.loads(output.rpartition("RESULT ")[2])
    if result["errors"] or not result["requests"]:
        raise RuntimeError(f"{result['errors']} of {result['requests']} requests failed")
    return {
        "rate": 1e6 * result["requests"] / result["microseconds"],
        **{f"{name}_ms": result[name] / 1e3 for name in ("p50", "p99", "max")},
        "cpu_us": 1e6 * cpu / result["requests"],
        "mib": resident / MIB,
    }


@contextmanager
def background(server: Running, call: Call, clients: int) -> Iterator[None]:
    """The same load while something else is measured, from the load's core."""
    command = [*PINNED, *wrk_command(server, call, clients, 600)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


def k6(server: Running, seconds: int, rate: float, **settings: object) -> Figures:
    """Requests arrive at `rate` a second, whatever the server does; the first seconds are not counted. See load.js."""
    summary, log = (server.scratch / f"k6-{server.port}.{end}" for end in ("json", "log"))
    given = {"URL": server.url, "RATE": max(round(rate), 1), "DURATION": seconds, "WARM_UP": WARM_UP_SECONDS}
    options = [part for name, value in (given | settings).items() for part in ("-e", f"{name}={value}")]
    program = shutil.which("k6") or str(Path(sys.prefix, "bin", "k6"))
    command = [*PINNED, program, "run", "--quiet", "--no-usage-report", f"--summary-export={summary}", *options]
    peak, end = server.resident_bytes(), time.monotonic() + seconds + 2 * TIMEOUT_SECONDS
    client = sum(os.times()[2:4])
    with log.open("wb") as output:
        command.append(str(HERE / "load.js"))
        child = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | RARE_COLLECTION)
    try:
        while child.poll() is None and time.monotonic() < end:
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
    client = (sum(os.times()[2:4]) - client) / (seconds + WARM_UP_SECONDS)
    return {**figures, "client": client, "mib": peak / MIB}


def sends(server: Running, call: Call) -> dict[str, object]:
    """What makes load.js send this very request."""
    file = server.scratch / f"k6-{server.port}.body"
    file.write_bytes(call.body)
    scenario = "step" if call.case.path == "/cell/step" else "forward"
    return {"BODY": file, "CONTENT_TYPE": call.content_type, "SCENARIO": scenario}


def open_sessions(server: Running, count: int) -> list[str]:
    """New sessions of the step's model."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        opened = (client.post("/cell/sessions", json={"model": STEP.model}) for _ in range(count))
        return [reply.raise_for_status().json()["session"] for reply in opened]


def start_sequences(server: Running, count: int) -> list[str]:
    """New sequences of the step's model, whose ids are as long as the placeholder of a step's body."""
    names = [f"seq-{number:03}" for number in range(count)]
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for name in names:
            call = sequence_step(name, sequence_start=True)
            client.post(call.path, content=call.body, headers=call.headers).raise_for_status()
    return names


def run(command: Sequence[str], seconds: float) -> str:
    """What a program prints. Raises RuntimeError with the end of it if it fails, TimeoutExpired if it takes longer."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout
