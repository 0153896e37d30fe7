"""Maps: what `front` and `head` do to each step's vector by itself, as kernels with the signature of `Linear`.

map(ptr parameters, ptr inputs, ptr y, i64 n): `inputs` is a table of n pointers to vectors, y is dense, n vectors of
`columns` float32 values. All kernels but those of `Linear`, `Gather` and copies read whole vectors, padding included.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from service.engine.interface import Floats
from service.engine.native import functions
from service.engine.native.cells import relu, sigmoid, tanh
from service.engine.native.compiler import Code, Processor, compiled
from service.engine.native.ir import Function, Module, Value, Vectors
from service.engine.native.linear import Linear
from service.engine.native.panels import Bytes, aligned, bf16_bits
from service.spec import ChainLayer, WeightsDtype

Pointwise = Callable[..., Value]

_POINTWISE: Mapping[str, Pointwise] = {
    "relu": relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "exp": functions.exp,
    "silu": functions.silu,
    "leaky_relu": functions.leaky_relu,
    "elu": functions.elu,
    "gelu": functions.gelu,
    "softplus": functions.softplus,
}


@dataclass(frozen=True)
class Map:
    """A kernel with its parameters. Its results are vectors of `size` values, `columns` with their padding."""

    code: Code
    parameters: Bytes
    columns: int
    size: int


@dataclass(frozen=True)
class Gather:
    """Copies rows of `columns` values from a table, its parameters; the inputs are the rows' numbers, as float32."""

    columns: int
    processor: Processor
    name = "gather"

    def text(self) -> str:
        def body(f: Function, x: Value, y: Value) -> None:
            row = f.value(f"fptosi float {f.load('float', x)} to i64")
            f.copy(y, f.element("%parameters", row, self.columns, 0), 4 * self.columns)

        return _map(self, body)


@dataclass(frozen=True)
class VectorMap:
    """A layer that is neither linear nor an embedding, or a copy; parameters are the rows that `_parameters` gives."""

    type: str
    options: tuple[tuple[str, Any], ...]
    size: int
    processor: Processor
    name = "map"

    @property
    def columns(self) -> int:
        return padded(self.size, self.processor)

    def text(self) -> str:
        def body(f: Function, x: Value, y: Value) -> None:
            emitted = MapBody(f, self, x, y)
            getattr(emitted, self.type, emitted.pointwise)()

        return _map(self, body)


class MapBody:
    """Emits what a `VectorMap` does to one vector."""

    def __init__(self, f: Function, source: VectorMap, x: Value, y: Value) -> None:
        self.f, self.x, self.y = f, x, y
        self.type, self.options = source.type, dict(source.options)
        self.size, self.columns = source.size, source.columns
        self.v = Vectors(f, source.processor.width_for(source.size), source.processor.has_fma)

    def copy(self) -> None:
        """To a place with padding; of x nothing but its values is read."""
        self.f.copy(self.y, self.x, 4 * self.size)

    def pointwise(self) -> None:
        function = partial(_POINTWISE[self.type], **self.options)
        self._write(lambda x, _: function(self.v, x))

    def affine(self) -> None:
        """(x - p₁)·p₂ + p₃."""
        v, p = self.v, self._parameter
        self._write(lambda x, at: v.fma(v.sub(x, p(1, at)), p(2, at), p(3, at)))

    def layer_norm(self) -> None:
        """(x - E[x])/√(Var[x] + eps)·p₁ + p₂. Source: torch.nn.LayerNorm."""
        v, count = self.v, self.v.constant(self.size)
        mean = v.div(self._sum(lambda x: x), count)

        def squared(x: Value) -> Value:
            return v.mul(v.sub(x, mean), v.sub(x, mean))

        variance = v.div(self._sum(squared), count)
        deviation = v.sqrt(v.add(variance, v.constant(self.options["eps"])))
        self._write(
            lambda x, at: v.fma(v.div(v.sub(x, mean), deviation), self._parameter(1, at), self._parameter(2, at))
        )

    def normalize(self) -> None:
        """X divided by its Euclidean length, or by eps if that is more. Source: torch.nn.functional.normalize."""
        v = self.v
        length = v.at_least(v.sqrt(self._sum(lambda x: v.mul(x, x))), v.constant(self.options["eps"]))
        self._write(lambda x, _: v.div(x, length))

    def softmax(self) -> None:
        v, largest = self.v, self._largest()
        total = self._sum(lambda x: functions.exp(v, v.sub(x, largest)))
        self._write(lambda x, _: v.div(functions.exp(v, v.sub(x, largest)), total))

    def log_softmax(self) -> None:
        v, largest = self.v, self._largest()
        total = functions.log(v, self._sum(lambda x: functions.exp(v, v.sub(x, largest))))
        self._write(lambda x, _: v.sub(v.sub(x, largest), total))

    def _write(self, value: Callable[[Value, Value], Value]) -> None:
        v = self.v
        for at in self._places():
            v.store(value(v.load(self.f.at(self.x, at)), at), self.f.at(self.y, at))

    def _sum(self, value: Callable[[Value], Value]) -> Value:
        v = self.v
        total = self.f.variable(v.type, v.constant(0))
        for at in self._places():
            total.set(v.add(total.get(), self._unpadded(value(v.load(self.f.at(self.x, at))), at, 0.0)))
        return v.sum(total.get())

    def _largest(self) -> Value:
        v, f = self.v, self.f
        found = f.variable(v.type, v.constant(-np.inf))
        for at in self._places():
            found.set(v.at_least(found.get(), self._unpadded(v.load(f.at(self.x, at)), at, -np.inf)))
        return v.largest(found.get())

    def _places(self) -> Iterator[Value]:
        """The offset in bytes of each vector."""
        with self.f.loop(4 * self.columns, self.v.bytes) as at:
            yield at

    def _unpadded(self, value: Value, at: Value, padding: float) -> Value:
        v = self.v
        if self.size == self.columns:
            return value
        return v.select(self._parameter(0, at), "ogt", v.constant(0), value, v.constant(padding))

    def _parameter(self, row: int, at: Value) -> Value:
        return self.v.load(self.f.at("%parameters", self.f.add(at, 4 * row * self.columns)))


def maps(
    layers: Sequence[ChainLayer],
    weights: Mapping[str, Floats],
    dtype: WeightsDtype,
    processor: Processor,
    *,
    padded_inputs: bool,
) -> list[Map]:
    """The maps of layers in order; padded_inputs: whether the first may read whole vectors of its inputs."""
    made: list[Map] = []
    for layer in layers:
        if layer.type == "dropout":
            continue
        if layer.type == "linear":
            made.append(linear(layer, weights, dtype, processor))
            continue
        if layer.type == "embedding":
            size = layer.out_features
            table = embedding(weights[f"{layer.name}.weight"], dtype, processor)
            made.append(gather(table, padded(size, processor), processor, size))
            continue
        size = layer.in_features
        if not made and not padded_inputs:
            made.append(copy(size, processor))
        kind = "affine" if layer.type in ("batch_norm", "scale") else layer.type
        options = () if kind == "affine" else layer.options
        source = VectorMap(kind, options, size, processor)
        rows = _parameters(layer, weights)
        parameters = aligned(4 * len(rows) * source.columns)
        parameters.view(np.float32).reshape(len(rows), -1)[:, :size] = rows
        made.append(Map(compiled(source), parameters, source.columns, size))
    return made or [copy(layer.in_features, processor) for layer in layers[:1]]  # of dropout alone


def copy(size: int, processor: Processor) -> Map:
    source = VectorMap("copy", (), size, processor)
    return Map(compiled(source), aligned(0), source.columns, size)


def linear(layer: ChainLayer, weights: Mapping[str, Floats], dtype: WeightsDtype, processor: Processor) -> Map:
    source = Linear(layer.in_features, layer.out_features, dtype, processor)
    no_bias = np.zeros(layer.out_features, np.float32)
    panels, bias = source.panels, weights.get(f"{layer.name}.bias", no_bias)
    packed = panels.pack(weights[f"{layer.name}.weight"], bias, np.arange(layer.out_features))
    return Map(compiled(source), packed, panels.columns, layer.out_features)


def gather(table: Bytes, columns: int, processor: Processor, size: int | None = None) -> Map:
    """The map from a number to that row, of so many columns, of a table; `size` is the width without padding."""
    return Map(compiled(Gather(columns, processor)), table, columns, size or columns)


def embedding(weight: Floats, dtype: WeightsDtype, processor: Processor) -> Bytes:
    """An embedding's weight (V, E), rounded as other matrices are, with padding."""
    size = weight.shape[1]
    table = aligned(4 * len(weight) * padded(size, processor))
    if dtype == "bf16":
        weight = (bf16_bits(weight).astype(np.uint32) << 16).view(np.float32)
    table.view(np.float32).reshape(len(weight), -1)[:, :size] = weight
    return table


def padded(size: int, processor: Processor) -> int:
    """A vector's width with its padding, as `Linear` has it."""
    width = processor.width_for(size)
    return -(-size // width) * width


def _parameters(layer: ChainLayer, weights: Mapping[str, Floats]) -> list[Floats]:
    """A map's parameters: which values are no padding, and then those that its `MapBody` reads."""
    size = layer.in_features
    zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)

    def given(name: str, otherwise: Floats) -> Floats:
        return weights.get(f"{layer.name}.{name}", otherwise)

    weight, bias = given("weight", ones), given("bias", zeros)
    if layer.type == "layer_norm":
        return [ones, weight, bias]
    if layer.type == "batch_norm":
        deviation = np.sqrt(given("running_var", ones).astype(np.float64) + layer.option("eps"))
        return [ones, given("running_mean", zeros), np.asarray(weight / deviation, np.float32), bias]
    if layer.type == "scale":
        mean, scale = given("mean", zeros), given("scale", ones)
        return [ones, zeros, scale, mean] if layer.option("inverse") else [ones, mean, ones / scale, zeros]
    return [ones]


def _map(source: Gather | VectorMap, body: Callable[[Function, Value, Value], None]) -> str:
    """A kernel that does `body` for each vector, at x, and its place in the results, y."""
    module = Module()
    f = module.function(source.name, {"parameters": "ptr", "inputs": "ptr", "y": "ptr", "n": "i64"})
    with f.loop("%n") as i:
        body(f, f.pointer(f.at("%inputs", f.mul(i, 8))), f.element("%y", i, source.columns, 0))
    return module.text()
