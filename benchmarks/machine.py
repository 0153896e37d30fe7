"""What this machine can do at most, measured with the same compiler as the kernels: FMA peak and weight bandwidth."""

import ctypes
import time
from dataclasses import dataclass

from service.engine.native.compiler import Code
from service.engine.native.ir import Function, module
from service.engine.native.panels import aligned
from service.engine.native.processor import Processor
from service.engine.native.vectors import Vectors


@dataclass(frozen=True)
class FmaPeak:
    """`chains` independent chains of multiply-adds in registers, `turns` times 8 long."""

    processor: Processor
    chains: int
    name = "peak"

    def text(self) -> str:
        """The module in LLVM's language."""
        f = Function("peak", {"data": "ptr", "turns": "i64"})
        v = Vectors(f, self.processor.width, self.processor.has_fma)
        a, b = v.load("%data", 0), v.load("%data", 64)
        sums = [f.variable(v.type, v.load("%data", 128 + 64 * i)) for i in range(self.chains)]
        with f.loop("%turns"):
            for _ in range(8):
                for total in sums:
                    total.set(v.fma(total.get(), a, b))
        for i, total in enumerate(sums):
            v.store(total.get(), "%data", 128 + 64 * i)
        return module([f], v.declarations)


@dataclass(frozen=True)
class Read:
    """Reads `size` bytes from front to back, `turns` times, 8 vectors at once, and adds them up."""

    processor: Processor
    name = "read"

    def text(self) -> str:
        """The module in LLVM's language."""
        f = Function("read", {"data": "ptr", "size": "i64", "turns": "i64"})
        v = Vectors(f, self.processor.width, self.processor.has_fma)
        sums = [f.variable(v.type, v.constant(0.0)) for _ in range(8)]
        with f.loop("%turns"), f.loop("%size", 8 * v.bytes) as place:
            at = f.at("%data", place)
            for j, total in enumerate(sums):
                total.set(v.add(total.get(), v.load(at, j * v.bytes)))
        for j, total in enumerate(sums):
            v.store(total.get(), "%data", j * v.bytes)
        return module([f], v.declarations)


class Machine:
    """Probes of one core in its own time; each call is one measurement, so that they can be taken between others."""

    def __init__(self) -> None:
        self.processor = Processor.host()
        self._peak, self._chain = Code(FmaPeak(self.processor, 12)), Code(FmaPeak(self.processor, 1))
        self._read = Code(Read(self.processor))
        self._data = aligned(64 * 2**20)

    def flops(self, *, chain: bool = False, turns: int = 20_000) -> float:
        """Floating-point operations a second; with `chain`, of one chain of dependent multiply-adds."""
        code = self._chain if chain else self._peak
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address)
        begin = time.thread_time()
        run(self._data.ctypes.data, turns)
        chains = 1 if chain else 12
        return 2 * self.processor.width * chains * 8 * turns / (time.thread_time() - begin)

    def bandwidth(self, size: int, total: int = 64 * 2**20) -> float:
        """Bytes a second of reading the same `size` bytes again and again."""
        size -= size % 512
        turns = max(total // size, 1)
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(self._read.address)
        begin = time.thread_time()
        run(self._data.ctypes.data, size, turns)
        return size * turns / (time.thread_time() - begin)
