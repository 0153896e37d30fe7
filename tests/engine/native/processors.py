"""Which processors the host can stand in for."""

import llvmlite.binding as llvm

from service.engine.native.compiler import Processor

NEEDS = {
    "x86-64-v2": {"sse4.2", "ssse3", "popcnt"},
    "x86-64-v3": {"avx2", "fma", "bmi2", "f16c"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def runnable() -> list[Processor]:
    """The host, and the levels of x86-64 whose code it can run."""
    present = {name for name, on in llvm.get_host_cpu_features().items() if on}
    return [Processor.host(), *(level(name) for name, needs in NEEDS.items() if needs <= present)]


def level(name: str) -> Processor:
    """One of the x86-64 levels: `x86-64-v2` (SSE4), `x86-64-v3` (AVX2 and FMA), `x86-64-v4` (AVX-512)."""
    return Processor.with_features(name, "", NEEDS[name])
