"""RNN, GRU and LSTM nodes of an ONNX graph as layers of PyTorch: refused where PyTorch has no such layer.

Nodes that feed each other with nothing but axes rearranged between them are the layers of one stack.

Source: the operators RNN, GRU and LSTM of the ONNX specification, and the formulas of torch.nn.RNN, GRU and LSTM.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.models.importing.model import Numbers
from service.models.importing.onnx.graph import Graph, Node, attributes, node_input
from service.models.importing.refusal import CheckpointRefused
from service.spec import GATES, Kind, Nonlinearity

KINDS: dict[str, Kind] = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
ZEROS = "(zeros)"  # in place of the name of an array that is not in the file

# Where each gate of PyTorch's order stands in ONNX's: r z n in z r h, and i f g o in i o f c.
_ORDER: dict[Kind, list[int]] = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 2, 3, 1]}
_ACTIVATIONS = {"rnn": ["tanh"], "gru": ["sigmoid", "tanh"], "lstm": ["sigmoid", "tanh", "tanh"]}
_MAX_LINKS = 16  # nodes between two layers


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """A node with its W (D, G·H, I), R (D, G·H, H), B (D, 2·G·H) or None, gates in ONNX's order."""

    node: Node
    name: str
    kind: Kind
    nonlinearity: Nonlinearity
    layout: int
    w: Numbers
    r: Numbers
    b: Numbers | None

    @property
    def directions(self) -> int:
        return int(self.w.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.r.shape[2])

    def arrays(self, index: int, *, bias: bool) -> Iterator[tuple[str, Numbers, str]]:
        """PyTorch's name, array, and name in the file of each array of layer `index`; with bias, zeros if without B."""
        rows = self.w.shape[1]
        b_name = ZEROS if self.b is None else node_input(self.node, 3)
        for direction, suffix in enumerate([f"l{index}", f"l{index}_reverse"][: self.directions]):
            yield f"weight_ih_{suffix}", self._reordered(self.w[direction]), node_input(self.node, 1)
            yield f"weight_hh_{suffix}", self._reordered(self.r[direction]), node_input(self.node, 2)
            if bias:
                both = np.zeros(2 * rows, self.w.dtype) if self.b is None else self.b[direction]
                yield f"bias_ih_{suffix}", self._reordered(both[:rows]), b_name
                yield f"bias_hh_{suffix}", self._reordered(both[rows:]), b_name

    def _reordered(self, array: Numbers) -> Numbers:
        gates = np.split(array, GATES[self.kind])
        return np.concatenate([gates[place] for place in _ORDER[self.kind]])


def node_name(node: Node) -> str:
    """The name of a node or, as exporters may leave that out, of its output."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def read_layer(graph: Graph, node: Node) -> OnnxLayer:
    """The node as a layer. Raises CheckpointRefused with what PyTorch cannot express."""
    kind, name, given = KINDS[node.op_type], node_name(node), attributes(node)
    try:
        direction = _text(given.get("direction", "forward"))
        if direction not in ("forward", "bidirectional"):
            raise CheckpointRefused(f"direction {direction!r} alone does not exist in PyTorch")
        directions = 2 if direction == "bidirectional" else 1
        _refuse_options(kind, node, given)
        nonlinearity = _nonlinearity(kind, directions, [_text(name).lower() for name in given.get("activations", [])])
        w, r = _parameter(graph, node, 1, "W"), _parameter(graph, node, 2, "R")
        b = _parameter(graph, node, 3, "B") if node_input(node, 3) else None
        if given.get("hidden_size", r.shape[-1]) != r.shape[-1]:
            raise CheckpointRefused(f"hidden_size is {given['hidden_size']}, and R has {r.shape[-1]} columns")
        _check_shapes(kind, directions, w, r, b)
    except CheckpointRefused as error:
        raise CheckpointRefused(f"{node.op_type} node {name}: {error}") from None
    return OnnxLayer(node, name, kind, nonlinearity, int(given.get("layout", 0)), w, r, b)


def _refuse_options(kind: Kind, node: Node, given: dict[str, Any]) -> None:
    if kind == "gru" and not given.get("linear_before_reset", 0):
        raise CheckpointRefused(
            "linear_before_reset is 0: the reset gate applies before the recurrent product, in PyTorch's GRU after it"
        )
    if kind == "lstm" and node_input(node, 7):
        raise CheckpointRefused("it has peepholes (input P), which PyTorch's LSTM does not have")
    if given.get("input_forget", 0):
        raise CheckpointRefused("input_forget is 1: input and forget gates are coupled, in PyTorch they are not")
    if "clip" in given:
        raise CheckpointRefused(f"clip is {given['clip']:g}: PyTorch does not clip the inputs of activations")


def _nonlinearity(kind: Kind, directions: int, activations: list[str]) -> Nonlinearity:
    default = _ACTIVATIONS[kind] * directions
    if not activations or activations == default:
        return "tanh"
    if kind == "rnn" and activations == ["relu"] * directions:
        return "relu"
    allowed = f"{', '.join(default)}{', or relu in all directions' if kind == 'rnn' else ''}"
    raise CheckpointRefused(f"activations are {', '.join(activations)}; PyTorch has {allowed}")


def _parameter(graph: Graph, node: Node, place: int, letter: str) -> Numbers:
    value = node_input(node, place)
    array = graph.constant(value)
    if array is None:
        raise CheckpointRefused(f"{letter} ({value}) is computed by the graph, not stored in the file")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CheckpointRefused(f"{letter} is {array.dtype}; expected float16, float32 or float64")
    return array


def _check_shapes(kind: Kind, directions: int, w: Numbers, r: Numbers, b: Numbers | None) -> None:
    hidden = r.shape[-1]
    rows = GATES[kind] * hidden
    expected = {"W": (directions, rows, w.shape[-1]), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    for array, (letter, shape) in zip((w, r, b), expected.items(), strict=True):
        if array is not None and array.shape != shape:
            raise CheckpointRefused(f"{letter} has shape {array.shape}; expected {shape} for hidden_size {hidden}")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def stacks(graph: Graph, layers: list[OnnxLayer]) -> list[list[OnnxLayer]]:
    """The layers grouped into stacks, first layer first."""
    by_output = {layer.node.output[0]: layer for layer in layers if layer.node.output}
    grouped: list[list[OnnxLayer]] = []
    for layer in layers:  # nodes of a valid graph are in topological order
        below = _below(graph, layer, by_output)
        stack = next((stack for stack in grouped if stack[-1] is below), None)
        if stack is None:
            grouped.append([layer])
        else:
            stack.append(layer)
    return grouped


def _below(graph: Graph, layer: OnnxLayer, by_output: dict[str, OnnxLayer]) -> OnnxLayer | None:
    """The layer whose outputs, at most rearranged, are this one's inputs, if both could be layers of one module."""
    between: list[Node] = []
    value = layer.node.input[0]
    while value not in by_output:
        node = graph.producers.get(value)
        if node is None or not node.input or node.op_type in KINDS or len(between) == _MAX_LINKS:
            return None
        between.append(node)
        value = node.input[0]
    below = by_output[value]
    same = ("kind", "nonlinearity", "directions", "hidden_size")
    width = below.directions * below.hidden_size
    if any(getattr(below, name) != getattr(layer, name) for name in same) or layer.w.shape[2] != width:
        return None
    axes: tuple[str, ...] | None = ("T", "D", "B", "H") if below.layout == 0 else ("B", "T", "D", "H")
    for node in reversed(between):
        axes = _rearranged(graph, node, axes, below) if axes else None
    first = ("T", "B") if layer.layout == 0 else ("B", "T")
    return below if axes == (*first, "H" if below.directions == 1 else "DH") else None


def _rearranged(graph: Graph, node: Node, axes: tuple[str, ...], below: OnnxLayer) -> tuple[str, ...] | None:
    """The axes after one node, or None if it does more than rearrange them."""
    after: tuple[str, ...] | None = None
    without_d = tuple(axis for axis in axes if axis != "D")
    match node.op_type:
        case "Identity" | "Dropout" | "Cast":
            after = axes
        case "Transpose":
            places = list(range(len(axes)))
            order = attributes(node).get("perm", places[::-1])
            if sorted(order) == places:
                after = tuple(axes[place] for place in order)
        case "Squeeze" if below.directions == 1 and "D" in axes:
            place = axes.index("D")
            if _numbers(graph, node, "axes") in (None, [place], [place - len(axes)]):
                after = without_d
        case "Reshape" if len(axes) == 4:  # to three axes: directions and hidden values become one
            shape = _numbers(graph, node, "shape") or []
            if len(shape) == 3 and shape[2] in (-1, below.directions * below.hidden_size):
                if below.directions == 1 and axes[-1] == "H":
                    after = without_d
                elif axes[2:] == ("D", "H"):
                    after = (*axes[:2], "DH")
    return after


def _numbers(graph: Graph, node: Node, attribute: str) -> list[int] | None:
    """Whole numbers that older operators have as an attribute and newer ones as their second input."""
    if not node_input(node, 1):
        found = attributes(node).get(attribute)
        return None if found is None else [int(number) for number in found]
    constant = graph.constant(node.input[1])
    return [] if constant is None else [int(number) for number in np.ravel(constant)]
