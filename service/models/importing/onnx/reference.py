"""An ONNX file's own graph, run by `onnx.reference`, as the reference of the model that was found in it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.models.importing.model import Arrays, Numbers, Precision, Reference
from service.models.importing.onnx.front_and_head import NodeChain, pooled
from service.models.importing.onnx.graph import Graph, Known
from service.models.importing.onnx.layers import KINDS, OnnxLayer
from service.models.importing.refusal import refusing


def graph_reference(
    graph: Graph, stack: list[OnnxLayer], front: NodeChain | None, head: NodeChain | None, followed: Known
) -> Reference:
    """Runs sequences through the graph: from its input, or that of the stack without a front, to the predictions.

    A graph that was exported for sequences of one length cannot run others: its front, layers and head run one by one,
    as they were followed at that length.
    """
    steps, batch, _ = stack[0].outputs(followed).shape
    whole = steps in graph.open_sizes and batch in (1, *graph.open_sizes)
    graph = replace(graph, operators=(*graph.operators, *KINDS), max_values=math.inf)
    nodes = [node for layer in stack for node in layer.nodes]
    for node in nodes:
        states = (f"{output} at the start" for output in node.output[1:])
        node.input[:] = [*[*node.input, ""][:4], "", *states]
    nodes += [node for chain in (front, head) if chain for node in chain.nodes]
    constants = {name: graph.constant(name) for node in nodes for name in node.input}
    stored = {name: array for name, array in constants.items() if array is not None and array.dtype.kind == "f"}

    @refusing("the file's nodes do not run in onnx.reference")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        weights: Known = {name: array.astype(precision) for name, array in stored.items()}
        results: list[Arrays] = []
        for sequence in sequences:
            x, *states = (sequence[name].astype(precision) for name in ("x", "h", "c") if name in sequence)
            known = graph.inputs({steps: len(x), batch: 1}) | weights
            if front:
                value = np.asarray(known[front.start.name])
                x = x if value.dtype.kind == "f" else x.astype(value.dtype)
                known[front.start.name] = x.reshape(value.shape) if whole else value
                x = x if whole else front.run(graph, followed | weights, x)
            if not front or not whole:
                known |= {node.input[0]: stack[0].turned(x[:, None]) for node in stack[0].nodes}
            result = _run_layers(graph, stack, known, states, whole=whole)
            if head and whole:
                made = np.asarray(graph.value(head.end.name, known))
                result["predictions"] = made.transpose(head.end.axes).reshape(-1, head.width)
            elif head:
                result["predictions"] = head.run(graph, followed | weights, pooled(stack, known)[head.pooling][:, 0])
            results.append(result)
        return results

    return run


def _run_layers(
    graph: Graph, stack: list[OnnxLayer], known: Known, states: Sequence[Numbers], *, whole: bool
) -> dict[str, Numbers]:
    """Outputs and final states of a stack whose inputs are known; whole: the graph moves them from layer to layer."""
    finals = [np.empty_like(state) for state in states]
    for index, layer in enumerate(stack):
        if index and not whole:
            known |= {node.input[0]: layer.turned(stack[index - 1].outputs(known)) for node in layer.nodes}
        own = slice(index * layer.directions, (index + 1) * layer.directions)
        known |= layer.named([node.input[5:] for node in layer.nodes], [state[own, None] for state in states])
        for node in layer.nodes:
            graph.value(node.output[0], known)
        for place, final in enumerate(finals, 1):
            final[own] = layer.result(place, known)[:, 0]
    return {"outputs": stack[-1].outputs(known)[:, 0], **dict(zip(("h", "c"), finals, strict=False))}
