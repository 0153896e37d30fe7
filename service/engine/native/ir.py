"""Writes LLVM IR as text: a `Module` of `Function`s, each with structured loops and mutable variables.

A method that computes something emits instructions and returns the name of the result, so that a kernel reads as the
arithmetic that it does. Loop counters and variables live in stack slots; LLVM's `sroa` pass turns them into registers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Value = str  # the name of a result (`%12`, `%rows`) or a constant, as it stands in the text


class Module:
    def __init__(self) -> None:
        self._functions: list[Function] = []

    def function(self, name: str, parameters: Mapping[str, str], *, internal: bool = False) -> "Function":
        self._functions.append(Function(name, parameters, internal=internal))
        return self._functions[-1]

    def text(self) -> str:
        declarations = ["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"]
        for width in (4, 8, 16):
            vector = f"<{width} x float>"
            declarations += [
                f"declare {vector} @llvm.fma.v{width}f32({vector}, {vector}, {vector})",
                f"declare {vector} @llvm.sqrt.v{width}f32({vector})",
                f"declare float @llvm.vector.reduce.fadd.v{width}f32(float, {vector})",
                f"declare float @llvm.vector.reduce.fmax.v{width}f32({vector})",
            ]
        # Without these, LLVM takes 512-bit vectors apart on processors for which it prefers 256 bits.
        attributes = 'attributes #0 = { nounwind "prefer-vector-width"="512" "min-legal-vector-width"="512" }'
        return "\n".join([*(function.text() for function in self._functions), *declarations, attributes])


class Function:
    """One LLVM function: integers are i64, pointers are opaque, `parameters` gives the LLVM type of each.

    Loads and stores assume no alignment but that of their element, so callers' arrays may lie anywhere.
    """

    def __init__(self, name: str, parameters: Mapping[str, str], *, internal: bool) -> None:
        self.name = name
        self.types = list(parameters.values())
        self._linkage = "internal " if internal else ""
        self._signature = ", ".join(f"{type_} %{parameter}" for parameter, type_ in parameters.items())
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0

    def text(self) -> str:
        body = "\n".join(["entry:", *self._slots, *self._lines, "ret void"])
        return f"define {self._linkage}void @{self.name}({self._signature}) #0 {{\n{body}\n}}\n"

    def value(self, instruction: str) -> Value:
        """Emit an instruction; return the name of its result."""
        name = self._new_name()
        self._lines.append(f"{name} = {instruction}")
        return name

    def do(self, instruction: str) -> None:
        self._lines.append(instruction)

    def _new_name(self) -> Value:
        self._count += 1
        return f"%v{self._count}"

    # Integers

    def add(self, a: Value | int, b: Value | int) -> Value:
        return self.value(f"add i64 {a}, {b}")

    def sub(self, a: Value | int, b: Value | int) -> Value:
        return self.value(f"sub i64 {a}, {b}")

    def mul(self, a: Value | int, b: Value | int) -> Value:
        return self.value(f"mul i64 {a}, {b}")

    def div(self, a: Value | int, b: Value | int) -> Value:
        """Quotient rounded down, for a ≥ 0 and b > 0."""
        return self.value(f"udiv i64 {a}, {b}")

    def least(self, a: Value | int, b: Value | int) -> Value:
        return self.select(self.compare("slt", a, b), a, b)

    def most(self, a: Value | int, b: Value | int) -> Value:
        return self.select(self.compare("sgt", a, b), a, b)

    def compare(self, relation: str, a: Value | int, b: Value | int) -> Value:
        """An i1: `relation` is LLVM's (eq, ne, slt, sge …)."""
        return self.value(f"icmp {relation} i64 {a}, {b}")

    def select(self, condition: Value, a: Value | int, b: Value | int) -> Value:
        return self.value(f"select i1 {condition}, i64 {a}, i64 {b}")

    # Memory

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """The address `offset` bytes on."""
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def load(self, type_: str, pointer: Value, align: int = 4) -> Value:
        return self.value(f"load {type_}, ptr {pointer}, align {align}")

    def store(self, type_: str, value: Value | int, pointer: Value, align: int = 4) -> None:
        self.do(f"store {type_} {value}, ptr {pointer}, align {align}")

    def word(self, pointer: Value, index: int = 0) -> Value:
        """The i64 at place `index` of a table."""
        return self.load("i64", self.at(pointer, 8 * index), 8)

    def set_word(self, pointer: Value, index: int, value: Value | int) -> None:
        self.store("i64", value, self.at(pointer, 8 * index), 8)

    def pointer(self, pointer: Value, index: int = 0) -> Value:
        """The pointer at place `index` of a table."""
        return self.load("ptr", self.at(pointer, 8 * index), 8)

    def element(self, base: Value, row: Value | int, columns: int, column: Value | int) -> Value:
        """The address of element [row, column] of a dense float32 array."""
        return self.at(base, self.mul(self.add(self.mul(row, columns), column), 4))

    def copy(self, target: Value, source: Value, size: Value | int) -> None:
        self.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 false)")

    # Variables

    def variable(self, type_: str, initial: Value | int) -> "Variable":
        variable = Variable(self, type_, self._new_name())
        self._slots.append(f"{variable.name} = alloca {type_}")
        variable.set(initial)
        return variable

    def buffer(self, size: int) -> Value:
        """The address of `size` bytes of this call's own, aligned to a cache line."""
        name = self._new_name()
        self._slots.append(f"{name} = alloca [{size} x i8], align 64")
        return name

    # Control flow

    @contextmanager
    def loop(self, count: Value | int, step: int = 1, first: Value | int = 0) -> Iterator[Value]:
        """Repeat the block for index = first, first + step, first + 2·step … < count; yields the index."""
        index = self.variable("i64", first)
        with self.repeat() as stop:
            i = index.get()
            stop(self.compare("sge", i, count))
            yield i
            index.set(self.add(i, step))

    @contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """Repeat the block until the yielded function is called with a condition that holds."""
        self._count += 1
        head, end = f"head{self._count}", f"end{self._count}"

        def stop(condition: Value) -> None:
            self._count += 1
            self.do(f"br i1 {condition}, label %{end}, label %on{self._count}")
            self._lines.append(f"on{self._count}:")

        self._enter(head)
        yield stop
        self.do(f"br label %{head}")
        self._lines.append(f"{end}:")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the block only if the i1 holds."""
        self._count += 1
        then, end = f"then{self._count}", f"end{self._count}"
        self.do(f"br i1 {condition}, label %{then}, label %{end}")
        self._lines.append(f"{then}:")
        yield
        self._enter(end)

    def _enter(self, label: str) -> None:
        self.do(f"br label %{label}")
        self._lines.append(f"{label}:")

    def call(self, callee: "Function", arguments: Sequence[Value | int]) -> None:
        self.call_at(f"@{callee.name}", callee.types, arguments)

    def call_at(self, address: Value, types: Sequence[str], arguments: Sequence[Value | int]) -> None:
        self.do(f"call void {address}({', '.join(f'{t} {a}' for t, a in zip(types, arguments, strict=True))})")


class Variable(NamedTuple):
    """A mutable local of a function."""

    function: Function
    type: str
    name: Value

    def get(self) -> Value:
        return self.function.value(f"load {self.type}, ptr {self.name}")

    def set(self, value: Value | int) -> None:
        self.function.do(f"store {self.type} {value}, ptr {self.name}")


@dataclass(frozen=True)
class Vectors:
    """Emits operations on `width` float32 values at a time."""

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
        return self.function.load(self.type, self.function.at(pointer, offset))

    def load_bf16(self, pointer: Value, offset: int = 0) -> Value:
        """Read `width` bfloat16 values as float32: they are the upper halves of float32's bits."""
        f, w = self.function, self.width
        raw = f.load(f"<{w} x i16>", f.at(pointer, offset), 2)
        wide = f.value(f"zext <{w} x i16> {raw} to <{w} x i32>")
        return self.floats(self.integers("shl", wide, 16))

    def store(self, value: Value, pointer: Value, offset: int = 0) -> None:
        self.function.store(self.type, value, self.function.at(pointer, offset))

    def broadcast(self, pointer: Value, offset: int = 0) -> Value:
        return self.splat(self.function.load("float", self.function.at(pointer, offset)))

    def splat(self, scalar: Value) -> Value:
        """The same float in every element."""
        f = self.function
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

    def neg(self, a: Value) -> Value:
        return self.function.value(f"fneg {self.type} {a}")

    def div(self, a: Value, b: Value) -> Value:
        return self.function.value(f"fdiv {self.type} {a}, {b}")

    def sqrt(self, a: Value) -> Value:
        return self.function.value(f"call {self.type} @llvm.sqrt.v{self.width}f32({self.type} {a})")

    def bits(self, a: Value) -> Value:
        """The bits of each element, for `integers`."""
        return self.function.value(f"bitcast {self.type} {a} to <{self.width} x i32>")

    def integers(self, operation: str, a: Value, b: int) -> Value:
        """An operation of LLVM on the integers a and one constant."""
        return self.function.value(f"{operation} <{self.width} x i32> {a}, {_all(self.width, 'i32', str(b))}")

    def floats(self, a: Value) -> Value:
        """The float32 values whose bits these are."""
        return self.function.value(f"bitcast <{self.width} x i32> {a} to {self.type}")

    def select(self, a: Value, relation: str, b: Value, then: Value, otherwise: Value) -> Value:
        """`then` where a and b are in a relation of LLVM's (ogt, olt, uno …), else `otherwise`."""
        f, t = self.function, self.type
        condition = f.value(f"fcmp {relation} {t} {a}, {b}")
        return f.value(f"select <{self.width} x i1> {condition}, {t} {then}, {t} {otherwise}")

    def sum(self, a: Value) -> Value:
        """The sum of all elements, in every element; always in the same order."""
        zero = "float -0.0"
        total = self.function.value(f"call float @llvm.vector.reduce.fadd.v{self.width}f32({zero}, {self.type} {a})")
        return self.splat(total)

    def largest(self, a: Value) -> Value:
        """The largest element, in every element; NaN is passed over."""
        return self.splat(self.function.value(f"call float @llvm.vector.reduce.fmax.v{self.width}f32({self.type} {a})"))

    def at_most(self, a: Value, limit: Value) -> Value:
        """The smaller of each pair; NaN in `a` stays NaN."""
        return self.select(a, "ogt", limit, limit, a)

    def at_least(self, a: Value, limit: Value) -> Value:
        """The larger of each pair; NaN in `a` stays NaN."""
        return self.select(a, "olt", limit, limit, a)

    def power_of_two(self, a: Value) -> Value:
        """2ⁿ for `a` = 1.5·2²³ + 127 + n, whose lowest bits are 2ⁿ's exponent; 0 for n = -127, infinity for 128."""
        return self.floats(self.integers("shl", self.bits(a), 23))


def _all(width: int, type_: str, value: str) -> str:
    return "<" + ", ".join([f"{type_} {value}"] * width) + ">"
