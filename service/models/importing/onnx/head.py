"""The linear head of an ONNX graph: a Gemm, or a MatMul with its Add, found by its name or its weights' name."""

from dataclasses import dataclass

import numpy as np

from service.models.importing.model import Numbers
from service.models.importing.onnx.graph import Graph, Known, Node, attributes, node_input
from service.models.importing.onnx.layers import ZEROS, OnnxLayer, node_name
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded


@dataclass(frozen=True, slots=True)
class OnnxHead:
    """The nodes of a linear layer, weight (O, D·P), bias (O), and their names; bias_name is ZEROS if there is none."""

    nodes: list[Node]
    weight: Numbers
    bias: Numbers
    weight_name: str
    bias_name: str


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


def reads_last_step(graph: Graph, head: OnnxHead, layer: OnnxLayer, known: Known) -> bool:
    """Whether a head reads the outputs of the last step alone, or of all; known as `stacks` gives it.

    Raises ChoiceNeeded if it reads anything else.
    """
    node, outputs = head.nodes[0], layer.outputs(known)
    read = graph.value(node.input[0], known)
    for steps in (outputs, outputs[-1:]):
        orders = (order.reshape(-1, order.shape[-1]) for order in (steps, np.swapaxes(steps, 0, 1)))
        if read is not None and any(np.array_equal(read.reshape(-1, read.shape[-1]), order) for order in orders):
            return len(steps) < len(outputs)
    maker = graph.producers.get(graph.origin(node.input[0]))
    what = node.input[0] if maker is None else f"{maker.op_type} {node_name(maker)}"
    raise ChoiceNeeded(
        f"--head: {node_name(node)} reads {what}, not the outputs of {layer.name} as they are, so what it makes is not "
        "served as predictions: leave --head out, and compute it in the client"
    )


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
