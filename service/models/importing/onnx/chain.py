"""Recurrent nodes that feed each other are the layers of one stack: which do, by the axes of what flows between."""

import numpy as np

from service.models.importing.onnx.graph import Graph, Node, attributes
from service.models.importing.onnx.layer import KINDS, OnnxLayer

Axes = tuple[str, ...]

_MAX_LINKS = 16


def stacks(graph: Graph, layers: list[OnnxLayer]) -> list[list[OnnxLayer]]:
    """The layers grouped into stacks, first layer first; one that feeds no other and is fed by none stands alone."""
    by_output = {layer.node.output[0]: layer for layer in layers if layer.node.output}
    grouped: list[list[OnnxLayer]] = []
    taken: dict[int, list[OnnxLayer]] = {}
    for layer in layers:  # nodes of a valid graph are in topological order
        below = _below(graph, layer, by_output)
        stack = taken.pop(id(below), None) if below is not None else None
        if stack is None:
            stack = []
            grouped.append(stack)
        stack.append(layer)
        taken[id(layer)] = stack
    return grouped


def _below(graph: Graph, layer: OnnxLayer, by_output: dict[str, OnnxLayer]) -> OnnxLayer | None:
    """The layer whose outputs, rearranged at most, are this one's inputs, if both could be layers of one module."""
    path: list[Node] = []
    value = layer.node.input[0]
    while value not in by_output:
        node = graph.producers.get(value)
        if node is None or not node.input or node.op_type in KINDS or len(path) == _MAX_LINKS:
            return None
        path.append(node)
        value = node.input[0]
    below = by_output[value]
    if not _alike(below, layer):
        return None
    axes: Axes | None = ("T", "D", "B", "H") if below.layout == 0 else ("B", "T", "D", "H")
    for node in reversed(path):
        axes = _rearranged(graph, node, axes, below) if axes else None
    first = ("T", "B") if layer.layout == 0 else ("B", "T")
    merged = ("H",) if below.directions == 1 else ("DH",)
    return below if axes == first + merged else None


def _alike(below: OnnxLayer, layer: OnnxLayer) -> bool:
    same = ("kind", "nonlinearity", "directions", "hidden_size")
    return (
        all(getattr(below, name) == getattr(layer, name) for name in same)
        and layer.w.shape[2] == below.directions * below.hidden_size
    )


def _rearranged(graph: Graph, node: Node, axes: Axes, below: OnnxLayer) -> Axes | None:
    """The axes after one node, or None if it does more than rearrange them."""
    match node.op_type:
        case "Identity" | "Dropout" | "Cast":
            return axes
        case "Transpose":
            return _transposed(node, axes)
        case "Squeeze":
            return _squeezed(graph, node, axes, below)
        case "Reshape":
            return _merged(graph, node, axes, below)
    return None


def _transposed(node: Node, axes: Axes) -> Axes | None:
    places = list(range(len(axes)))
    order = attributes(node).get("perm", places[::-1])
    return tuple(axes[place] for place in order) if sorted(order) == places else None


def _squeezed(graph: Graph, node: Node, axes: Axes, below: OnnxLayer) -> Axes | None:
    if below.directions != 1 or "D" not in axes:
        return None
    place, given = axes.index("D"), _numbers(graph, node, "axes")
    return _without_d(axes) if given in (None, [place], [place - len(axes)]) else None


def _merged(graph: Graph, node: Node, axes: Axes, below: OnnxLayer) -> Axes | None:
    """Reshaped to three axes, directions and hidden values merged; what lies in memory side by side stays so."""
    shape = _numbers(graph, node, "shape") or []
    if len(axes) != 4 or len(shape) != 3 or shape[2] not in (-1, below.directions * below.hidden_size):
        return None
    if below.directions == 1:
        return _without_d(axes) if axes[-1] == "H" else None
    return (*axes[:2], "DH") if axes[2:] == ("D", "H") else None


def _without_d(axes: Axes) -> Axes:
    return tuple(axis for axis in axes if axis != "D")


def _numbers(graph: Graph, node: Node, attribute: str) -> list[int] | None:
    """A list of whole numbers that older operators have as an attribute and newer ones as their second input."""
    if len(node.input) < 2 or not node.input[1]:
        found = attributes(node).get(attribute)
        return None if found is None else [int(number) for number in found]
    constant = graph.constant(node.input[1])
    return [] if constant is None else [int(number) for number in np.ravel(constant)]
