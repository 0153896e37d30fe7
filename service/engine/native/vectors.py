"""Vector arithmetic in a `Function`."""

from dataclasses import dataclass

import numpy as np

from service.engine.native.ir import Function, Value


@dataclass(frozen=True)
class Vectors:
    """Emits operations on `width` float32 values at a time into `function`."""

    function: Function
    width: int
    has_fma: bool

    @property
    def type(self) -> str:
        return f"<{self.width} x float>"

    @property
    def bytes(self) -> int:
        return 4 * self.width

    def load(self, pointer: Value, offset: int = 0) -> Value:
        """Read the vector `offset` bytes after `pointer`."""
        return self.function.load(self.type, self.function.at(pointer, offset))

    def load_bf16(self, pointer: Value, offset: int = 0) -> Value:
        """Read `width` bfloat16 values as float32: they are the upper halves of float32's bits."""
        f, w = self.function, self.width
        raw = f.load(f"<{w} x i16>", f.at(pointer, offset), 2)
        wide = f.value(f"zext <{w} x i16> {raw} to <{w} x i32>")
        bits = f.value(f"shl <{w} x i32> {wide}, {_all(w, 'i32', '16')}")
        return f.value(f"bitcast <{w} x i32> {bits} to {self.type}")

    def store(self, value: Value, pointer: Value, offset: int = 0) -> None:
        self.function.store(self.type, value, self.function.at(pointer, offset))

    def broadcast(self, pointer: Value, offset: int = 0) -> Value:
        """Read one float and repeat it in every element."""
        f = self.function
        scalar = f.load("float", f.at(pointer, offset))
        first = f.value(f"insertelement {self.type} poison, float {scalar}, i64 0")
        return f.value(f"shufflevector {self.type} {first}, {self.type} poison, <{self.width} x i32> zeroinitializer")

    def constant(self, value: float) -> Value:
        """The same float32 in every element, written as LLVM wants it: the bits of the float64 of its value."""
        bits = np.float64(np.float32(value)).view(np.uint64)
        return _all(self.width, "float", f"0x{bits:016X}")

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        if self.has_fma:
            t = self.type
            return self.function.value(f"call {t} @llvm.fma.v{self.width}f32({t} {a}, {t} {b}, {t} {c})")
        # llvm.fma would be a slow library call.
        return self.add(self.mul(a, b), c)

    def add(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fadd {self.type} {a}, {b}")

    def sub(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fsub {self.type} {a}, {b}")

    def mul(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fmul {self.type} {a}, {b}")

    def div(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fdiv {self.type} {a}, {b}")

    def at_most(self, a: Value, limit: Value) -> Value:
        """The smaller of each pair; NaN in `a` stays NaN."""
        return self._limited(a, "ogt", limit)

    def at_least(self, a: Value, limit: Value) -> Value:
        """The larger of each pair; NaN in `a` stays NaN."""
        return self._limited(a, "olt", limit)

    def _limited(self, a: Value, beyond: str, limit: Value) -> Value:
        condition = self.function.value(f"fcmp {beyond} {self.type} {a}, {limit}")
        return self.function.value(f"select <{self.width} x i1> {condition}, {self.type} {limit}, {self.type} {a}")


def _all(width: int, type_: str, value: str) -> str:
    return "<" + ", ".join([f"{type_} {value}"] * width) + ">"
