"""Vector arithmetic in a `Function`: float32 vectors of one width, with or without a hardware fused multiply-add."""

import struct
from dataclasses import dataclass

from service.engine.native.ir import Function, Value


@dataclass(frozen=True)
class Vectors:
    """Emits operations on `width` float32 values at a time into `function`.

    Without a hardware FMA, `fma` is a product and a sum: `llvm.fma` would be a slow library call.
    """

    function: Function
    width: int
    has_fma: bool

    @property
    def type(self) -> str:
        """LLVM's name of the vector type."""
        return f"<{self.width} x float>"

    @property
    def bytes(self) -> int:
        return 4 * self.width

    def load(self, pointer: Value, offset: int = 0) -> Value:
        """Read a vector `offset` bytes after `pointer`."""
        return self.function.load(self.type, self.function.at(pointer, offset))

    def load_bf16(self, pointer: Value, offset: int = 0) -> Value:
        """Read `width` bfloat16 values as float32: they are the upper halves of float32's bits."""
        f, w = self.function, self.width
        raw = f.load(f"<{w} x i16>", f.at(pointer, offset), 2)
        wide = f.value(f"zext <{w} x i16> {raw} to <{w} x i32>")
        bits = f.value(f"shl <{w} x i32> {wide}, {_all(w, 'i32', '16')}")
        return f.value(f"bitcast <{w} x i32> {bits} to {self.type}")

    def store(self, value: Value, pointer: Value, offset: int = 0) -> None:
        """Write a vector `offset` bytes after `pointer`."""
        self.function.store(self.type, value, self.function.at(pointer, offset))

    def broadcast(self, pointer: Value, offset: int = 0) -> Value:
        """Read one float and repeat it in every element."""
        f = self.function
        scalar = f.load("float", f.at(pointer, offset))
        first = f.value(f"insertelement {self.type} poison, float {scalar}, i64 0")
        return f.value(f"shufflevector {self.type} {first}, {self.type} poison, <{self.width} x i32> zeroinitializer")

    def constant(self, value: float) -> Value:
        """The same float32 in every element."""
        return _all(self.width, "float", literal(value))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        if self.has_fma:
            t = self.type
            return self.function.value(f"call {t} @llvm.fma.v{self.width}f32({t} {a}, {t} {b}, {t} {c})")
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
        return self._select(self._greater(a, limit), limit, a)

    def at_least(self, a: Value, limit: Value) -> Value:
        """The larger of each pair; NaN in `a` stays NaN."""
        return self._select(self._greater(limit, a), limit, a)

    def _greater(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fcmp ogt {self.type} {a}, {b}")

    def _select(self, condition: Value, a: Value, b: Value) -> Value:
        return self.function.value(f"select <{self.width} x i1> {condition}, {self.type} {a}, {self.type} {b}")

    @property
    def declarations(self) -> list[str]:
        """What a module that uses these operations must declare."""
        t = self.type
        return [f"declare {t} @llvm.fma.v{self.width}f32({t}, {t}, {t})"] if self.has_fma else []


def literal(value: float) -> str:
    """A float32 constant as LLVM writes it: the bits of the float64 of the same value."""
    rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


def _all(width: int, type_: str, value: str) -> str:
    return "<" + ", ".join([f"{type_} {value}"] * width) + ">"
