"""An ONNX graph as an import reads it: which node makes which value, and what follows from values that are known."""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_rnn import RNN_14

from service.models.importing.model import Numbers
from service.models.importing.refusal import refusing

Node = Any
Known = dict[str, Numbers | None]
"""Arrays by the names of values; None for a value that does not follow from the others."""

# Operators that exporters put between a stored parameter and its use, and between two layers.
MOVING = (
    *("Constant", "Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten"),
    *("Slice", "Split", "Concat", "Gather", "ReverseSequence"),
)
# Operators that they compute sizes with.
_SIZING = ("Shape", "Size")
_FILLING = ("ConstantOfShape", "Expand", "Tile")
# Operators that they write the layers of front and head with, and pooling.
_NUMBER_BY_NUMBER = ("Add", "Sub", "Mul", "Div", "Where", "Equal", "Greater", "Pow", "Max")
_LAYERS = (
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Erf", "Sigmoid", "Swish", "Tanh", "Softplus", "Exp", "Neg", "Sqrt"),
    *("Gemm", "MatMul", "LayerNormalization", "BatchNormalization", "LpNormalization", "Softmax", "LogSoftmax", "Clip"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "GlobalAveragePool", "GlobalMaxPool", "Reciprocal"),
)
_MAX_VALUES = 2**26
_MAX_DECLARED = 2**24


@dataclass(frozen=True, slots=True)
class Graph:
    """The main graph of an ONNX file; graphs inside loops and branches are not read.

    shapes are those that the file declares, with sizes of our own, open_sizes, for the axes that it leaves open.
    `value` runs nodes of these operators, and makes no more numbers than max_values of one graph.
    """

    model: Any
    nodes: list[Node]
    producers: dict[str, Node]
    initializers: dict[str, Any]
    shapes: dict[str, list[int]]
    open_sizes: set[int]
    max_values: float
    operators: tuple[str, ...] = (*MOVING, *_SIZING, *_FILLING, *_NUMBER_BY_NUMBER, *_LAYERS)

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """Parse a file; weights in files beside it are read too. Raises CheckpointRefused."""
        with refusing("the file is not an ONNX model, or is damaged"):
            model = onnx.load(str(path))
        nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx")]
        producers = {output: node for node in nodes for output in node.output if output}
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        shapes: dict[str, list[int]] = {}
        values = (*model.graph.value_info, *model.graph.input)
        declared = {axis.dim_value for value in values for axis in value.type.tensor_type.shape.dim}
        # Unlike each other and those that are declared, so that no axis passes for another.
        free = (size for size in itertools.count(5, 2) if size not in declared)
        sizes: dict[str, int] = defaultdict(lambda: next(free))
        for value in values:
            shape = [
                axis.dim_value or sizes[axis.dim_param or f"{value.name} {place}"]
                for place, axis in enumerate(value.type.tensor_type.shape.dim)
            ]
            if shape and 0 < math.prod(shape) <= _MAX_DECLARED and value.name not in initializers:
                shapes[value.name] = shape
        stored = sum(len(tensor.raw_data) for tensor in initializers.values())
        return cls(model, nodes, producers, initializers, shapes, set(sizes.values()), _MAX_VALUES + stored)

    def constant(self, name: str) -> Numbers | None:
        """A value that does not depend on the graph's inputs; None if it does, or if other operators make it."""
        return self.value(name, {})

    def value(self, name: str, known: Known) -> Numbers | None:
        """What follows from known and stored values; known remembers it. Raises CheckpointRefused for damaged numbers.

        None if it does not follow, or would take too much memory.
        """
        if name not in known:
            known[name] = None  # until it is found, and in a cycle
            node = self.producers.get(name)
            if name in self.initializers:
                with refusing(f"constant {name} is damaged"):
                    known[name] = np.asarray(onnx.numpy_helper.to_array(self.initializers[name]))
            elif node is not None and node.op_type in self.operators:
                arrays: dict[str, Numbers | None] = {}
                with suppress(RecursionError):
                    arrays = {value: self.value(value, known) for value in node.input if value}
                feed = {value: array for value, array in arrays.items() if array is not None}
                held = sum(array.size for array in known.values() if array is not None)
                with suppress(Exception):  # anything can be wrong with a node of an untrusted file
                    if len(feed) == len(arrays) and held + _most_values(node, list(feed.values())) <= self.max_values:
                        outputs = [output for output in node.output if output]
                        known.update(zip(outputs, run_nodes(self.model, [node], feed, outputs), strict=True))
        return known[name]

    def origin(self, name: str) -> str:
        """The value that a value is, but for moves: an output of another operator, an input or a stored value."""
        for _ in self.nodes:
            node = self.producers.get(name)
            if node is None or node.op_type not in MOVING or not node.input:
                break
            name = node.input[0]
        return name

    def upstream(self, targets: Collection[str], sources: Collection[str]) -> list[Node]:
        """The nodes by which targets follow from sources and from all else, first ones first."""
        needed, nodes = set(targets), list[Node]()
        for node in reversed(self.model.graph.node):
            if needed.intersection(node.output) and not set(sources).intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def between(self, sources: Collection[str], target: str) -> list[Node]:
        """Those of them that numbers of sources pass, not only their shapes."""
        reached, nodes = set(sources), list[Node]()
        for node in self.upstream([target], sources):
            inside = any(attribute.type == attribute.GRAPH for attribute in node.attribute)  # it may read any value
            if node.op_type not in _SIZING and (inside or reached.intersection(node.input)):
                reached.update(node.output)
                nodes.append(node)
        return nodes

    def inputs(self, sizes: Mapping[int, int] | None = None) -> Known:
        """Random numbers, or zeros of whole numbers, in the shapes of the graph's inputs; sizes replace open ones."""
        known: Known = {}
        for value in (value for value in self.model.graph.input if value.name in self.shapes):
            shape = [(sizes or {}).get(size, size) for size in self.shapes[value.name]]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            random = np.random.default_rng(len(known)).standard_normal(shape)
            known[value.name] = (random if dtype.kind == "f" else np.zeros(shape)).astype(dtype)
        return known


def _most_values(node: Node, arrays: list[Numbers]) -> float:
    """At least as many values as a node makes of its inputs."""
    sizes = [float(array.size) for array in arrays]
    if node.op_type in _FILLING:
        return math.prod(sizes[:-1]) * math.prod(abs(float(size)) for size in np.ravel(arrays[-1]))
    if node.op_type == "Gather":
        return sizes[1] * sizes[0] / float(max(1, arrays[0].shape[attributes(node).get("axis", 0)]))
    if node.op_type in ("Gemm", "MatMul"):
        return math.prod(array.size / float(max(1, min(array.shape[-2:]))) for array in arrays[:2])
    if node.op_type in _NUMBER_BY_NUMBER:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    return sum(sizes)


def attributes(node: Node) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def node_input(node: Node, place: int) -> str:
    """The name of one of a node's inputs, "" if it is left out."""
    return str(node.input[place]) if len(node.input) > place else ""


def run_nodes(model: Any, nodes: list[Node], feed: dict[str, Any], outputs: list[str]) -> list[Numbers]:
    """Run nodes with onnx's reference implementation, by the operator versions that the model states."""
    # It wants floats of one type, and a Cast of the file may have narrowed some.
    floats = [array.dtype for array in feed.values() if array.dtype.kind == "f"]
    feed = {
        name: array.astype(max(floats), copy=False) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }
    untyped = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in (*feed, *outputs)
    }
    graph = helper.make_graph(nodes, "part", [untyped[name] for name in feed], [untyped[name] for name in outputs])
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(part, new_ops=[RNN]).run(outputs, feed))


class RNN(RNN_14):
    """The reference RNN, which knows tanh alone, with ONNX's other common activation."""

    op_domain = ""

    def choose_act(self, name: str, alpha: Any, beta: Any) -> Any:
        if name.lower() == "relu":
            return lambda x: np.maximum(x, 0)
        return super().choose_act(name, alpha, beta)  # type: ignore[no-untyped-call]
