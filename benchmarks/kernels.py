"""The native engine's kernels beside torch, ONNX Runtime and OpenVINO, and beside what the machine can do at most.

Every engine gets the same weights and inputs, and its outputs are checked before it is timed. The engines take turns;
of each the median of its least disturbed turn counts. One thread is timed by the processor time of this process, more
by the clock on the wall: run those on an idle machine.
"""

import argparse
import ctypes
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping

import llvmlite.binding as llvm
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper

from service.engine.interface import Floats, Rows
from service.engine.native.engine import NativeEngine
from service.spec import Kind, ModelSpec

GRID = ((1, 100, 4, 3), (1, 1000, 64, 64), (1, 256, 128, 256), (6, 256, 128, 256), (8, 256, 128, 256))
GRID += ((12, 256, 128, 256), (64, 256, 128, 256), (1, 50, 512, 1024), (32, 50, 512, 1024))
GRID += ((1, 1, 16, 32), (1, 1, 128, 256), (64, 1, 128, 256), (1024, 1, 128, 256))
TURNS = 5
# Where ONNX has its gates among PyTorch's: iofc and zrh against ifgo and rzn.
ONNX_GATES: dict[Kind, list[int]] = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}

Weights = Mapping[str, Floats]
Call = Callable[[], Floats]


class Machine:
    """What one core can do at most, by probes in LLVM's language: multiply-adds in registers, reading memory."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        self.width = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
        self._vector = f"<{self.width} x float>"
        self._memory = np.zeros(64 * 2**20, np.uint8)
        self._address = -(-self._memory.ctypes.data // 64) * 64
        v, fma = self._vector, f"@llvm.fma.v{self.width}f32"
        add = f"%s{{i}}.{{next}} = call {v} {fma}({v} %s{{i}}.{{k}}, {v} %a, {v} %a)"
        read = f"%v{{k}}.{{i}} = load {v}, ptr %p{{k}}.{{i}}\n%s{{i}}.{{next}} = fadd {v} %s{{i}}.{{k}}, %v{{k}}.{{i}}"
        probes = [self._probe("chain", 1, add), self._probe("peak", 12, add), self._probe("read", 8, read)]
        text = "\n".join([f"declare {v} {fma}({v}, {v}, {v})", *probes])
        target = llvm.Target.from_default_triple()
        host = target.create_target_machine(llvm.get_host_cpu_name(), features.flatten(), opt=3)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), host)
        self._engine.finalize_object()
        # Multiply-adds a second, and those that wait for each other.
        products = 10_000 * 8 * self.width
        self.peak = 12 * products / self._seconds("peak", 10_000, 1)
        self.chain = products / self._seconds("chain", 10_000, 1)

    def _probe(self, name: str, sums: int, operation: str) -> str:
        """A function of `turns` rounds of 8 operations on each of some independent sums; addresses wrap at `size`."""
        v, lines = self._vector, [f"define void @{name}(ptr %data, i64 %turns, i64 %size) {{", "entry:"]
        lines += [f"%a = load {v}, ptr %data", "br label %loop", "loop:", "%turn = phi i64 [0, %entry], [%next, %loop]"]
        lines += ["%place = phi i64 [0, %entry], [%after, %loop]"]
        lines += [f"%s{i}.0 = phi {v} [zeroinitializer, %entry], [%s{i}.8, %loop]" for i in range(sums)]
        for k in range(8):
            for i in range(sums):
                lines += [f"%o{k}.{i} = add i64 %place, {(k * sums + i) * 4 * self.width}"]
                lines += [f"%p{k}.{i} = getelementptr i8, ptr %data, i64 %o{k}.{i}"]
                lines += [operation.format(i=i, k=k, next=k + 1)]
        lines += [f"%step = add i64 %place, {32 * sums * self.width}", "%wraps = icmp uge i64 %step, %size"]
        lines += ["%after = select i1 %wraps, i64 0, i64 %step", "%next = add i64 %turn, 1"]
        lines += ["%again = icmp ult i64 %next, %turns", "br i1 %again, label %loop, label %end", "end:"]
        lines += [f"store volatile {v} %s{i}.8, ptr %data" for i in range(sums)]
        return "\n".join([*lines, "ret void", "}"])

    def _seconds(self, name: str, turns: int, size: int) -> float:
        address = self._engine.get_function_address(name)
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
        times = []
        for _ in range(TURNS):
            begin = time.thread_time()
            run(self._address, turns, size)
            times.append(time.thread_time() - begin)
        return statistics.median(times)

    def bandwidth(self, size: int) -> float:
        """Bytes a second of reading the same `size` bytes again and again."""
        block = 256 * self.width
        turns = 2**26 // block
        return turns * block / self._seconds("read", turns, max(size // block, 1) * block)

    def floor(self, spec: ModelSpec, batch: int, steps: int) -> float:
        """Seconds below which one core cannot be.

        The x-parts take their multiply-adds at the peak; a step over h the largest of that, of reading its weights from
        the cache that holds them, and of H dependent multiply-adds.
        """
        x_part, h_part = (math.prod(spec.weight_shapes()[name]) for name in ("weight_ih_l0", "weight_hh_l0"))
        reading, dependent = 4 * h_part / self.bandwidth(4 * h_part), self.width * spec.hidden_size / self.chain
        return steps * (batch * x_part / self.peak + max(batch * h_part / self.peak, reading, dependent))


def native(spec: ModelSpec, weights: Weights, x: Floats, threads: int) -> Call:
    engine = NativeEngine(spec, weights, threads=threads)
    batch, steps, _ = x.shape
    outputs = np.empty((batch * steps, spec.output_size), np.float32)
    states = np.zeros((2, 1, batch, spec.hidden_size), np.float32)
    flat, starts = x.reshape(batch * steps, -1), np.arange(batch) * steps
    c = states[1] if spec.has_cell_state else None
    rows = Rows(flat, starts, np.full(batch, steps), states[0], c, outputs, None)

    def call() -> Floats:
        states.fill(0)
        engine.run([rows])
        return outputs.reshape(batch, steps, -1)

    return call


def torch_eager(spec: ModelSpec, weights: Weights, x: Floats, threads: int) -> Call:
    """torch.nn.RNN, GRU or LSTM; for single steps their cells, which are faster."""
    single = x.shape[1] == 1
    module = getattr(torch.nn, spec.kind.upper() + "Cell" * single)(spec.input_size, spec.hidden_size)
    suffix = "_l0" if single else ""
    module.load_state_dict({name.removesuffix(suffix): torch.from_numpy(one) for name, one in weights.items()})
    inputs = torch.from_numpy(x[:, 0] if single else np.ascontiguousarray(x.transpose(1, 0, 2)))

    def call() -> Floats:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            result = module(inputs)
        if not single:
            return result[0].numpy().transpose(1, 0, 2)
        return (result[0] if spec.has_cell_state else result).numpy()[:, None]

    return call


def onnx_runtime(spec: ModelSpec, weights: Weights, x: Floats, threads: int) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    model = onnx_model(spec, weights, x).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": np.ascontiguousarray(x.transpose(1, 0, 2))}
    return lambda: session.run(["y"], inputs)[0][:, 0].transpose(1, 0, 2)


def open_vino(spec: ModelSpec, weights: Weights, x: Floats, threads: int) -> Call:
    """OpenVINO's CPU plug-in, for latency, in f32."""
    core = openvino.Core()
    model = core.read_model(onnx_model(spec, weights, x).SerializeToString())
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(x.transpose(1, 0, 2))))

    def call() -> Floats:
        request.infer()
        return request.get_output_tensor().data[:, 0].transpose(1, 0, 2)

    return call


def onnx_model(spec: ModelSpec, weights: Weights, x: Floats) -> onnx.ModelProto:
    """One RNN, GRU or LSTM node with PyTorch's weights: x (T,B,I) to y (T,1,B,H)."""
    batch, steps, _ = x.shape
    hidden, gates = spec.hidden_size, ONNX_GATES[spec.kind]

    def ordered(name: str) -> Floats:
        array = weights[name]
        return array.reshape(len(gates), hidden, -1)[gates].reshape(array.shape)

    biases = np.concatenate([ordered("bias_ih_l0"), ordered("bias_hh_l0")])[None]
    arrays = {"w": ordered("weight_ih_l0")[None], "r": ordered("weight_hh_l0")[None], "b": biases}
    extra = {"linear_before_reset": 1} if spec.kind == "gru" else {}
    node = helper.make_node(spec.kind.upper(), ["x", "w", "r", "b"], ["y"], hidden_size=hidden, **extra)
    inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, spec.input_size])
    outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, hidden])
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], spec.kind, [inputs], [outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


PEERS = {"torch": torch_eager, "onnxruntime": onnx_runtime, "openvino": open_vino}


def medians(calls: Mapping[str, Call], seconds: float, threads: int) -> dict[str, float]:
    """Median seconds of each call in its best turn."""
    clock = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
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


def line(machine: Machine, kind: Kind, point: tuple[int, int, int, int], threads: int, seconds: float) -> str:
    """One row of the table. Raises ValueError if an engine's outputs are not the others'."""
    batch, steps, inputs, hidden = point
    spec, rng = ModelSpec(kind, inputs, hidden), np.random.default_rng(0)
    shapes, bound = spec.weight_shapes().items(), hidden**-0.5
    weights = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes}
    x = rng.standard_normal((batch, steps, inputs)).astype(np.float32)
    calls = {name: engine(spec, weights, x, threads) for name, engine in ({"native": native} | PEERS).items()}
    expected = calls["torch"]()
    for name, call in calls.items():
        error = np.abs(call() - expected).max()
        if not error < 1e-4:
            raise ValueError(f"{name} differs by {error} at {kind} {point}")
    times, floor = medians(calls, seconds, threads), machine.floor(spec, batch, steps) / threads
    mine = times["native"]
    rate = batch * steps * spec.flops_per_step / mine / 1e9
    best = min(times[name] for name in PEERS)
    cells = [",".join(map(str, point)), *(f"{1e3 * one:.4f}" for one in (floor, *times.values()))]
    return f"| {' | '.join([*cells, f'{floor / mine:.0%}', f'{rate:.1f}', f'{best / mine:.2f}'])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["rnn", "gru", "lstm"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--points", nargs="+", type=int, default=range(len(GRID)))
    parser.add_argument("--seconds", type=float, default=0.5, help="for each engine and point")
    given = parser.parse_args()
    machine = Machine()
    speeds = ", ".join(f"{size} KiB {machine.bandwidth(size << 10) / 1e9:.0f}" for size in (16, 256, 768, 4096, 16384))
    print(f"{llvm.get_host_cpu_name()}, {len(os.sched_getaffinity(0))} cores; of one: {2e-9 * machine.peak:.0f} GF/s,")
    print(f"{1e9 * machine.width / machine.chain:.2f} ns a dependent multiply-add, GB/s reading {speeds}")
    titles = ["B,T,I,H", "floor", "native", *PEERS, "native of floor", "GF/s", "best peer ÷ native"]
    for threads, kind in itertools.product(given.threads, given.kinds):
        print(f"\n{kind}, threads: {threads}; milliseconds, load {os.getloadavg()[0]:.1f}\n")
        print(f"| {' | '.join(titles)} |\n{'| --- ' * len(titles)}|")
        for number in given.points:
            print(line(machine, kind, GRID[number], threads, given.seconds), flush=True)
