"""The linear head of an ONNX graph: a Gemm, or a MatMul with its Add, found by its name or its weights' name."""

from dataclasses import dataclass

import numpy as np

from service.models.importing.model import Numbers
from service.models.importing.onnx.graph import Graph, Node, attributes, node_input, run_nodes
from service.models.importing.onnx.layers import ZEROS
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded


@dataclass(frozen=True, slots=True)
class OnnxHead:
    """The nodes of a linear layer, weight (O, D·P), bias (O), and their names; bias_name is ZEROS if there is none."""

    nodes: list[Node]
    weight: Numbers
    bias: Numbers
    weight_name: str
    bias_name: str

    def run(self, graph: Graph, outputs: Numbers) -> Numbers:
        """Predictions (T, O) of outputs (T, D·P), by the graph's own nodes and the reference implementation."""
        feed = {self.nodes[0].input[0]: outputs}
        for value in (value for node in self.nodes for value in node.input):
            constant = graph.constant(value) if value not in feed else None
            if constant is not None:
                feed[value] = constant.astype(outputs.dtype)
        return run_nodes(graph.model, self.nodes, feed, [self.nodes[-1].output[0]])[0]


def find_head(graph: Graph, name: str) -> OnnxHead:
    """The linear layer called name: its node (`/fc/MatMul`, or a part of that path) or its weights (`fc.weight`).

    Raises ChoiceNeeded if there is none or several, CheckpointRefused if it is no linear layer.
    """
    linear = [node for node in graph.nodes if node.op_type in ("Gemm", "MatMul")]
    linear = [node for node in linear if graph.constant(node.input[1]) is not None]
    names = {name, f"{name}.weight", f"{name}.bias"}
    found = [node for node in linear if name in (node.name, *node.name.split("/")) or names & _stored(graph, node)]
    if len(found) != 1:
        count = "more than one" if found else "no"
        listed = ", ".join(node.name or node.output[0] for node in found or linear) or "none"
        raise ChoiceNeeded(f"--head {name} fits {count} linear layer of the graph; it has {listed}")
    node, given = found[0], attributes(found[0])
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        raise CheckpointRefused(f"--head {name}: its weights are not a matrix of floats")
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0):
        raise CheckpointRefused(f"--head {name} scales or transposes: it is no linear layer of PyTorch")
    weight = weight if given.get("transB", 0) else weight.T
    add, bias_name = _bias(graph, node)
    bias = graph.constant(bias_name)
    if bias is None:
        bias, bias_name = np.zeros(1, weight.dtype), ZEROS
    rows = weight.shape[0]
    if bias.size not in (1, rows):
        raise CheckpointRefused(f"the head's bias has shape {bias.shape}; its weights are {weight.shape}")
    bias = np.broadcast_to(np.ravel(bias), (rows,))
    return OnnxHead([node, *add], weight, bias, node.input[1], bias_name)


def _bias(graph: Graph, node: Node) -> tuple[list[Node], str]:
    """A MatMul's Add of a constant, if there is one, and the name of the bias: "" for none."""
    if node.op_type == "Gemm":
        return [], node_input(node, 2)
    for add in graph.nodes:
        if add.op_type == "Add" and node.output[0] in add.input:
            for value in add.input:
                if value != node.output[0] and graph.constant(value) is not None:
                    return [add], value
    return [], ""


def _stored(graph: Graph, node: Node) -> set[str]:
    """What the file calls a linear layer's weights and bias."""
    value = node.input[1]
    producer = graph.producers.get(value)
    behind = producer.input[:1] if producer is not None and producer.op_type in ("Transpose", "Identity") else ()
    return {value, *behind, _bias(graph, node)[1]}
