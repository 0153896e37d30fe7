"""The native engine's kernels beside torch, ONNX Runtime and OpenVINO, and beside what the machine can do at most.

Every engine gets the same weights and inputs, and its outputs are checked before it is timed. The engines take turns,
five times; of each the median of its least disturbed turn counts, and only ratios within one run do. One thread is
timed by the processor time of this process, which other programs disturb less; more than one by the clock on the wall,
and a turn then waits until the machine is idle: other programs may be running, and some engines' threads go on spinning
when their work is done.

    python -m benchmarks.kernels [--kinds rnn,gru,lstm] [--seconds 0.5] [--threads 1,2] [--points 0,3]
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.machine import Machine
from benchmarks.peers import PEERS
from service.engine.interface import Floats, Rows
from service.engine.native import NativeEngine
from service.spec import Kind, ModelSpec

GRID = [
    (1, 100, 4, 3),
    (1, 1000, 64, 64),
    (1, 256, 128, 256),
    (6, 256, 128, 256),
    (8, 256, 128, 256),
    (12, 256, 128, 256),
    (64, 256, 128, 256),
    (1, 50, 512, 1024),
    (32, 50, 512, 1024),
    (1, 1, 16, 32),
    (1, 1, 128, 256),
    (64, 1, 128, 256),
    (1024, 1, 128, 256),
]

TURNS = 5
PATIENCE_SECONDS = 4

Call = Callable[[], Floats]


def main() -> None:
    options = _options()
    machine = Machine()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {_processor_name()}, {len(os.sched_getaffinity(0))} cores")
    print(_abilities(machine))
    for threads in options.threads:
        for kind in options.kinds:
            print(f"\n{kind}, {threads} thread{'s' * (threads > 1)}; milliseconds, load {os.getloadavg()[0]:.1f}\n")
            titles = ["B,T,I,H", "floor", "native", "of floor", "GF/s", *PEERS, "best peer ÷ native"]
            titles += ["one thread ÷ native"] * (threads > 1)
            print(f"| {' | '.join(titles)} |\n{'| --- ' * len(titles)}|")
            for number in options.points:
                print(_line(machine, kind, GRID[number], threads, options.seconds), flush=True)


def _line(machine: Machine, kind: Kind, point: tuple[int, int, int, int], threads: int, seconds: float) -> str:
    batch, steps, inputs, hidden = point
    spec = ModelSpec(kind, inputs, hidden)
    weights = _weights(spec)
    x = np.random.default_rng(1).standard_normal((batch, steps, inputs)).astype(np.float32)
    calls = {"native": _native(spec, weights, x, threads)}
    calls |= {name: peer(spec, weights, x, threads) for name, peer in PEERS.items()}
    expected = calls["native"]()
    for name, call in calls.items():
        error = np.abs(call() - expected).max()
        if not error < 1e-4:
            raise SystemExit(f"{name} differs by {error} at {kind} {point}")
    if threads > 1:
        calls["one thread"] = _native(spec, weights, x, 1)
    times = _medians(calls, seconds, threads)
    floor = _floor(machine, spec, batch, steps)
    native, flops = times["native"], batch * steps * spec.flops_per_step
    peers = [times[name] for name in PEERS]
    cells = [
        ",".join(map(str, point)),
        f"{floor / threads * 1e3:.4f}",
        f"{native * 1e3:.4f}",
        f"{floor / threads / native:.0%}",
        f"{flops / native / 1e9:.1f}",
        *(f"{each * 1e3:.4f}" for each in peers),
        f"{min(peers) / native:.2f}",
        *([f"{times['one thread'] / native:.2f}"] if threads > 1 else []),
    ]
    return f"| {' | '.join(cells)} |"


def _floor(machine: Machine, spec: ModelSpec, batch: int, steps: int) -> float:
    """Seconds below which one core cannot be.

    The x-parts wait for nothing: their multiply-adds at the peak. A step over h takes the largest of its multiply-adds
    at the peak, its weights at the bandwidth of the cache that holds them, and H dependent multiply-adds.
    """
    peak = statistics.median(machine.flops() for _ in range(5))
    chain = statistics.median(machine.flops(chain=True) for _ in range(5))
    shapes = spec.weight_shapes()
    x_flops, h_flops = (2 * batch * np.prod(shapes[name]) for name in ("weight_ih_l0", "weight_hh_l0"))
    weights = 4 * int(np.prod(shapes["weight_hh_l0"]))
    bandwidth = statistics.median(machine.bandwidth(max(weights, 4096)) for _ in range(5))
    dependent = 2 * machine.processor.width * spec.hidden_size / chain
    step = max(h_flops / peak, weights / bandwidth, dependent)
    return float(steps * (x_flops / peak + step))


def _medians(calls: dict[str, Call], seconds: float, threads: int) -> dict[str, float]:
    """Median seconds of each call in its best of `TURNS` turns, of `seconds` in all."""
    clock = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
            if threads > 1:
                _wait_until_idle()
            # Twice, unmeasured: caches are filled and threads awake.
            call()
            call()
            times: list[float] = []
            while sum(times) < seconds / TURNS or len(times) < 3:
                begin = clock()
                call()
                times.append(clock() - begin)
            best[name] = min(best[name], statistics.median(times))
    return best


def _wait_until_idle() -> None:
    """Wait for 50 ms in which all cores were idle for nine tenths, but not for ever."""
    end = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < end:
        begin, idle = time.perf_counter(), _idle_seconds()
        time.sleep(0.05)
        if _idle_seconds() - idle >= 0.9 * (time.perf_counter() - begin) * (os.cpu_count() or 1):
            return


def _idle_seconds() -> float:
    """Seconds that the machine's cores have been idle, all together. Source: proc_stat(5)."""
    idle = Path("/proc/stat").read_text().split("\n", 1)[0].split()[4]
    return int(idle) / os.sysconf("SC_CLK_TCK")


def _native(spec: ModelSpec, weights: dict[str, Floats], x: Floats, threads: int) -> Call:
    engine = NativeEngine(spec, weights, threads=threads)
    batch, steps, _ = x.shape
    outputs = np.empty((batch * steps, spec.output_size), np.float32)
    h = np.zeros((1, batch, spec.hidden_size), np.float32)
    c = h.copy() if spec.has_cell_state else None
    rows = Rows(x.reshape(batch * steps, -1), np.arange(batch) * steps, np.full(batch, steps), h, c, outputs)

    def call() -> Floats:
        h.fill(0)
        if c is not None:
            c.fill(0)
        engine.run([rows])
        return outputs.reshape(batch, steps, -1)

    return call


def _weights(spec: ModelSpec) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    bound = spec.hidden_size**-0.5
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in spec.weight_shapes().items()}


def _abilities(machine: Machine) -> str:
    peak = statistics.median(machine.flops() for _ in range(9)) / 1e9
    latency = 2e9 * machine.processor.width / statistics.median(machine.flops(chain=True) for _ in range(9))
    sizes = (16, 256, 768, 4096, 16384)
    speeds = [
        f"{size} KiB {statistics.median(machine.bandwidth(size << 10) for _ in range(5)) / 1e9:.0f}" for size in sizes
    ]
    return f"One core: {peak:.0f} GF/s, {latency:.2f} ns a dependent multiply-add, GB/s reading {', '.join(speeds)}"


def _processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{model} ({Machine().processor.name})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["rnn", "gru", "lstm"])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each engine and point")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--points", type=lambda text: [int(n) for n in text.split(",")], default=range(len(GRID)))
    return parser.parse_args()


if __name__ == "__main__":
    main()
