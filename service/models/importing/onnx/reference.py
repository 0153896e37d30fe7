"""Runs an ONNX file's own nodes in `onnx.reference`: an import is verified against them."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from service.models.importing.model import Arrays, Numbers, Precision, Reference
from service.models.importing.onnx.graph import Graph, Node, run_nodes
from service.models.importing.onnx.head import OnnxHead
from service.models.importing.onnx.layers import OnnxLayer
from service.models.importing.refusal import refusing


def onnx_reference(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None) -> Reference:
    """Runs sequences through the nodes of a stack and of its head."""

    @refusing("the file's nodes do not run in onnx.reference")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        return [_run(graph, stack, head, sequence, precision) for sequence in sequences]

    return run


def _run(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None, sequence: Arrays, precision: Precision) -> Arrays:
    outputs, directions = sequence["x"].astype(precision), stack[0].directions
    states = {name: sequence[name].astype(precision) for name in ("h", "c") if name in sequence}
    finals: dict[str, list[Numbers]] = {name: [] for name in states}
    for index, layer in enumerate(stack):
        own = slice(index * directions, (index + 1) * directions)
        outputs, *last = _run_layer(graph, layer, outputs, {name: state[own] for name, state in states.items()})
        for name, state in zip(finals, last, strict=True):
            finals[name].append(state)
    results = {"outputs": outputs} | {name: np.concatenate(parts) for name, parts in finals.items()}
    return results | {"predictions": head.run(graph, outputs)} if head else results


def _run_layer(graph: Graph, layer: OnnxLayer, x: Numbers, states: Arrays) -> list[Numbers]:
    """One node of the file on one sequence, x (T, ·) and states (D, H): outputs (T, D·H) and the final states."""
    node: Node = NodeProto()
    node.CopyFrom(layer.node)
    del node.input[:], node.output[:]
    node.input.extend(["x", "w", "r", "b" if layer.b is not None else "", "", *states])
    node.output.extend(["y", *(f"y_{name}" for name in states)])
    # With layout 1 the batch, of one here, comes first; with layout 0 it follows time or direction.
    batch = 0 if layer.layout else 1
    weights = {"w": layer.w, "r": layer.r} | ({} if layer.b is None else {"b": layer.b})
    feed = {name: np.expand_dims(array, batch) for name, array in {"x": x, **states}.items()}
    feed |= {name: array.astype(x.dtype) for name, array in weights.items()}
    outputs, *last = run_nodes(graph.model, [node], feed, list(node.output))
    # (T, D, 1, H) or, with layout 1, (1, T, D, H)
    return [outputs.reshape(len(x), -1), *(np.squeeze(state, batch) for state in last)]
