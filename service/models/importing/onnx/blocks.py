"""Layers of PyTorch among the nodes of an ONNX graph.

A block of nodes is run on random numbers, and is the layer that makes the same numbers of them. So a layer is found in
every form that exporters give it, and nothing is taken for a layer that it only resembles.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Self

import numpy as np
import torch

from service.models.importing.model import Numbers, Stored
from service.models.importing.onnx.graph import MOVING, Graph, Known, Node, attributes
from service.spec import ChainLayer, LayerType
from service.torch_layers import run_layers

TOLERANCE = 1e-5
_MAX_AXES = 5

Shape = tuple[int, ...]

# The operators that each layer without arrays is written with, and its option: a number among those of the nodes.
_FORMS: dict[LayerType, tuple[str, str]] = {
    "relu": ("Relu", ""),
    "leaky_relu": ("LeakyRelu PRelu", "negative_slope"),
    "elu": ("Elu", "alpha"),
    "gelu": ("Gelu Erf Tanh Mul Add Div Pow", "approximate"),
    "silu": ("Sigmoid Mul Swish", ""),
    "tanh": ("Tanh", ""),
    "sigmoid": ("Sigmoid", ""),
    "softplus": ("Softplus Mul Div Greater Where", "beta"),
    "exp": ("Exp", ""),
    "layer_norm": ("ReduceMean Sub Pow Mul Add Sqrt Div Reciprocal", "eps"),
    "normalize": ("LpNormalization ReduceL2 ReduceSum Pow Mul Sqrt Clip Max Expand Div", "eps"),
    "softmax": ("Softmax", ""),
    "log_softmax": ("LogSoftmax", ""),
}
_NORMS: dict[str, tuple[LayerType, list[str]]] = {
    "LayerNormalization": ("layer_norm", ["weight", "bias"]),
    "BatchNormalization": ("batch_norm", ["weight", "bias", "running_mean", "running_var"]),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of front or head: its options and its arrays by PyTorch's names; one without a source changes nothing."""

    type: LayerType
    options: Mapping[str, Any]
    arrays: Mapping[str, Stored]

    def run(self, x: Numbers) -> Numbers:
        layer = ChainLayer(self.type, "of", 0, 0, tuple(self.options.items()))
        arrays = {f"of.{name}": torch.from_numpy(array.astype(np.float64)) for name, (array, _) in self.arrays.items()}
        rows = torch.from_numpy(x.reshape(-1, x.shape[-1]))
        return run_layers([layer], arrays, rows).numpy().reshape(*x.shape[:-1], -1)

    def joined(self, after: "Layer") -> "Layer | None":
        """Both as one layer, where PyTorch has that: a product and the sum with its bias. None where it has not."""
        [changed] = [name for name, (_, source) in after.arrays.items() if source] if after.type == "scale" else [""]
        inverse = after.options.get("inverse")
        own = {name for name, (_, source) in self.arrays.items() if source}
        name = _JOINED.get((self.type, inverse, changed, *own))
        if name is None or self.options.get("inverse", inverse) != inverse:
            return None
        return replace(self, arrays={**self.arrays, name: after.arrays[changed]})


# The operators that are a scale, the array that each has, and the scale's `inverse`.
_SCALES = {"Sub": ("mean", False), "Div": ("scale", False), "Mul": ("scale", True), "Add": ("mean", True)}
# What the array of such a scale is to the layer before it, by that layer, `inverse`, the array and the layer's own one.
_JOINED: dict[tuple[LayerType | bool | str | None, ...], str] = {
    ("linear", True, "mean", "weight"): "bias",
    ("layer_norm", True, "scale"): "weight",
    ("layer_norm", True, "mean", "weight"): "bias",
    ("scale", True, "mean", "scale"): "mean",
    ("scale", False, "scale", "mean"): "scale",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A value of the graph, and how numbers (T, B, F) lie in it.

    With its axes in the order of axes it has a shape, which is (T, B, F), or (B, T, F) if swapped, but for axes of
    size 1 and axes that are merged.
    """

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    swapped: bool = False

    @classmethod
    def find(cls, name: str, value: Numbers | None, array: Numbers) -> Self | None:
        """Where an array (T, B, F) is; None if the value is anything else."""
        if value is None or value.size != array.size or value.ndim > _MAX_AXES:
            return None
        for axes in permutations(range(value.ndim)):
            moved = value.transpose(axes)
            for swapped in (False, True) if array.shape[-1] in (1, *moved.shape[-1:]) else ():
                point = cls(name, axes, moved.shape, swapped)
                if near(point.take(value, array.shape), array):
                    return point
        return None

    def take(self, value: Numbers, shape: tuple[int, ...]) -> Numbers:
        """The numbers (T, B, F) in a value."""
        steps, batch, width = shape
        moved = value.transpose(self.axes)
        return moved.reshape(batch, steps, width).swapaxes(0, 1) if self.swapped else moved.reshape(shape)

    def put(self, array: Numbers) -> Numbers:
        """The value with these numbers (T, B, F)."""
        ordered = array.swapaxes(0, 1) if self.swapped else array
        return ordered.reshape(self.shape).transpose(np.argsort(self.axes))


def near(some: Numbers, others: Numbers, axis: int | None = -1) -> bool:
    """Whether arrays are the same but for rounding, each vector by its own largest number, or all by the largest."""
    if some.shape != others.shape:
        return False
    largest = np.abs(others).max(axis=axis, keepdims=True)
    return bool((np.abs(some - others) <= TOLERANCE * largest).all())


def random_numbers(shape: Shape, first: Layer | None, seed: int = 0) -> Numbers:
    """Numbers (T, B, F) for a layer: vectors small and large, or token ids."""
    random = np.random.default_rng(seed)
    if first and first.type == "embedding":
        return np.asarray(random.integers(len(first.arrays["weight"].values), size=shape))
    return random.standard_normal(shape) * 10.0 ** random.integers(-6, 2, (*shape[:2], 1))


def read_block(
    graph: Graph, known: Known, nodes: Sequence[Node], start: Point, shape: Shape, name: str
) -> tuple[Layer | None, Point, Shape] | None:
    """What nodes make of numbers (T, B, F) of a shape at start: the value called name, and the layer that it is.

    No layer if they only move numbers, or move those of the last step. None if they are nothing of this.
    """
    tables = [layer for node in nodes if node.op_type == "Gather" for layer in _embedding(graph, node)]
    arrays: list[Numbers] = []
    values: list[Numbers] = []
    for seed in range(1 + 16 // (shape[0] * shape[1])):
        array = random_numbers(shape, tables[0] if tables else None, seed)
        value = graph.value(name, known | {start.name: start.put(array)})
        if value is None or not np.isfinite(value).all():
            return None
        arrays.append(array)
        values.append(value)
    moves = not tables and all(node.op_type in MOVING for node in nodes)
    for layer in (None,) if moves else tables or _candidates(graph, nodes, start, shape):
        for steps in (slice(None), slice(-1, None)) if moves else (slice(None),):
            with suppress(Exception):  # a layer that does not fit the numbers cannot take them
                wanted = [(layer.run(array) if layer else array)[steps] for array in arrays]
                point = Point.find(name, values[0], wanted[0])
                if point and all(near(point.take(v, w.shape), w) for v, w in zip(values, wanted, strict=True)):
                    return layer, point, wanted[0].shape
    return None


def _embedding(graph: Graph, node: Node) -> Iterator[Layer]:
    table = graph.constant(node.input[0])
    if table is not None and table.ndim == 2 and table.dtype.kind == "f" and attributes(node).get("axis", 0) == 0:
        options = dict(zip(("num_embeddings", "embedding_dim"), table.shape, strict=True))
        yield Layer("embedding", options, {"weight": Stored(table, node.input[0])})


def _candidates(graph: Graph, nodes: Sequence[Node], start: Point, shape: Shape) -> Iterator[Layer]:
    """The layers that nodes may be, but for the numbers that these make."""
    if len(nodes) == 1:
        with suppress(Exception):  # arrays that do not fit
            yield from _with_arrays(graph, nodes[0], start, shape)
    operators = {node.op_type for node in nodes} - set(MOVING)
    constants = [graph.constant(name) for node in nodes for name in node.input]
    numbers = [value for node in nodes for value in attributes(node).values() if isinstance(value, float)]
    numbers += [
        array.item() for array in constants if array is not None and array.size == 1 and array.dtype.kind == "f"
    ]
    values = [*(_written(number) for number in numbers if number >= 0), "tanh"]
    for kind, (forms, option) in _FORMS.items():
        if operators <= set(forms.split()):
            yield from (Layer(kind, {option: value}, {}) for value in values if option)
            yield Layer(kind, {}, {})


def _with_arrays(graph: Graph, node: Node, start: Point, shape: Shape) -> Iterator[Layer]:
    constants = [graph.constant(name) if name else None for name in node.input]
    given = attributes(node)
    match node.op_type, constants:
        case "Gemm" | "MatMul", [None, weight, *rest] if weight is not None:
            weight = given.get("alpha", 1.0) * (weight if given.get("transB", 0) else weight.T)
            arrays = {"weight": Stored(weight, node.input[1])}
            if rest and rest[0] is not None:
                bias = np.broadcast_to(given.get("beta", 1.0) * np.ravel(rest[0]), weight.shape[:1])
                arrays["bias"] = Stored(bias, node.input[2])
            yield Layer("linear", {}, arrays)
        case "LayerNormalization" | "BatchNormalization", [None, *rest]:
            kind, names = _NORMS[node.op_type]
            own = zip(names, rest, node.input[1:], strict=False)
            arrays = {name: Stored(np.ravel(array), source) for name, array, source in own if array is not None}
            yield Layer(kind, {"eps": _written(given.get("epsilon", 1e-5))}, arrays)
        case "Add" | "Sub" | "Mul" | "Div", [None, array] | [array, None] if array is not None:
            name, inverse = _SCALES[node.op_type]
            array = _per_feature(array, start, shape)
            unchanged = {"mean": Stored(np.zeros_like(array), ""), "scale": Stored(np.ones_like(array), "")}
            source = node.input[0 if constants[1] is None else 1]
            yield Layer("scale", {"inverse": inverse}, unchanged | {name: Stored(array, source)})


def _per_feature(array: Numbers, start: Point, shape: Shape) -> Numbers:
    """The numbers (F,) of a constant that an operator spreads over a value; one step's, if they are not all alike."""
    value = np.broadcast_to(array, start.put(np.empty(shape)).shape)
    return np.array(start.take(value, shape)[0, 0])


def _written(number: float) -> float:
    """A float32 as the shortest decimal number that it stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))
