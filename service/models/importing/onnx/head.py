"""The linear head of an ONNX graph: a Gemm, or a MatMul with its Add, found by its name or its weights' name."""

from dataclasses import dataclass

import numpy as np

from service.models.importing.found import CheckpointRefused, ChoiceNeeded
from service.models.importing.onnx.graph import Array, Graph, Node, attributes, run_nodes
from service.models.printable import printable


@dataclass(frozen=True, slots=True)
class OnnxHead:
    """The nodes of a linear layer, weight (O, D·P), bias (O) or None, and their names."""

    nodes: list[Node]
    weight: Array
    bias: Array | None
    weight_name: str
    bias_name: str

    def run(self, graph: Graph, outputs: Array) -> Array:
        """Run it: predictions (T, O) of outputs (T, D·P), by the graph's own nodes and the reference implementation."""
        feed = {self.nodes[0].input[0]: outputs}
        for node in self.nodes:
            for value in node.input:
                constant = graph.constant(value) if value not in feed else None
                if constant is not None:
                    feed[value] = constant.astype(outputs.dtype)
        return run_nodes(graph.model, self.nodes, feed, [self.nodes[-1].output[0]])[0]


def find_head(graph: Graph, name: str) -> OnnxHead:
    """The linear layer called name: its node (`/fc/MatMul`, or any part of that path) or its weights (`fc.weight`).

    Raises ChoiceNeeded if there is none or several, CheckpointRefused if it is no linear layer.
    """
    linear = [
        node for node in graph.nodes if node.op_type in ("Gemm", "MatMul") and graph.constant(node.input[1]) is not None
    ]
    found = [
        node
        for node in linear
        if name == node.name or name in node.name.split("/") or _weights_called(graph, node, name)
    ]
    if len(found) != 1:
        listed = ", ".join(printable(node.name or node.output[0]) for node in found or linear)
        count = "no" if not found else "more than one"
        raise ChoiceNeeded(
            f"--head {printable(name)} fits {count} linear layer of the graph; it has {listed or 'none'}"
        )
    node = found[0]
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        raise CheckpointRefused(f"--head {printable(name)}: its weights are not a matrix of floats")
    if node.op_type == "MatMul":
        return _with_add(graph, node, weight.T)
    given = attributes(node)
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0):
        raise CheckpointRefused(f"--head {printable(name)} scales or transposes: it is no linear layer of PyTorch")
    bias = node.input[2] if len(node.input) > 2 else ""
    return _head(graph, [node], weight if given.get("transB", 0) else weight.T, bias)


def _with_add(graph: Graph, node: Node, weight: Array) -> OnnxHead:
    """A MatMul, and the Add of a stored bias to what it gives."""
    for add in graph.consumers(node.output[0]):
        bias = next((value for value in add.input if value != node.output[0]), "")
        if add.op_type == "Add" and graph.constant(bias) is not None:
            return _head(graph, [node, add], weight, bias)
    return _head(graph, [node], weight, "")


def _head(graph: Graph, nodes: list[Node], weight: Array, bias_name: str) -> OnnxHead:
    bias = graph.constant(bias_name) if bias_name else None
    return OnnxHead(nodes, weight, _vector(bias, weight), nodes[0].input[1], bias_name or "(zeros)")


def _vector(bias: Array | None, weight: Array) -> Array | None:
    """A bias of one number, or of any shape that spreads over the rows of predictions, as (O)."""
    if bias is None:
        return None
    if bias.size not in (1, weight.shape[0]):
        raise CheckpointRefused(f"the head's bias has shape {bias.shape}; its weights are {weight.shape}")
    return np.ravel(bias)


def _weights_called(graph: Graph, node: Node, name: str) -> bool:
    value = node.input[1]
    producer = graph.producers.get(value)
    made_from = (
        list(producer.input[:1]) if producer is not None and producer.op_type in ("Transpose", "Identity") else []
    )
    bias = list(node.input[2:3])
    for add in graph.consumers(node.output[0]):
        bias += [other for other in add.input if add.op_type == "Add" and other in graph.initializers]
    names = {name, f"{name}.weight", f"{name}.bias"}
    return any(candidate in names for candidate in [value, *made_from, *bias])
