"""RNN, GRU and LSTM nodes of an ONNX graph as layers of PyTorch: refused where PyTorch has no such layer.

Nodes that feed each other with nothing but axes rearranged between them are the layers of one stack.

Source: the operators RNN, GRU and LSTM of the ONNX specification, and the formulas of torch.nn.RNN, GRU and LSTM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.models.importing.model import ZEROS, Numbers, Stored
from service.models.importing.onnx.graph import Graph, Known, Node, attributes, node_input
from service.models.importing.refusal import CheckpointRefused
from service.spec import GATES, Kind, Nonlinearity

KINDS: dict[str, Kind] = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}

# Where each gate of PyTorch's order stands in ONNX's: r z n in z r h, and i f g o in i o f c.
_ORDER: dict[Kind, list[int]] = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 2, 3, 1]}
STATES = ((5, "h0"), (6, "c0"))  # which inputs of a node are its initial states
_ACTIVATIONS = {"rnn": ["tanh"], "gru": ["sigmoid", "tanh"], "lstm": ["sigmoid", "tanh", "tanh"]}


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """A node, or a forward node and its reverse: W (D, G·H, I), R (D, G·H, H), B (D, 2·G·H), gates in ONNX's order."""

    nodes: list[Node]
    name: str
    kind: Kind
    nonlinearity: Nonlinearity
    layout: int
    reverse: bool
    w: Numbers
    r: Numbers
    b: Numbers

    @property
    def directions(self) -> int:
        return int(self.w.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.r.shape[2])

    @property
    def common(self) -> tuple[Any, ...]:
        """What all layers of a module have in common."""
        return self.kind, self.nonlinearity, self.directions, self.hidden_size, self.layout

    def arrays(self, index: int, *, bias: bool) -> Iterator[tuple[str, Stored]]:
        """The arrays of layer `index` with PyTorch's names; without B these are zeros."""
        for direction, suffix in enumerate([f"l{index}", f"l{index}_reverse"][: self.directions]):
            node = self.nodes[direction % len(self.nodes)]
            yield f"weight_ih_{suffix}", Stored(self._reordered(self.w[direction]), node_input(node, 1))
            yield f"weight_hh_{suffix}", Stored(self._reordered(self.r[direction]), node_input(node, 2))
            for which, half in zip(("ih", "hh"), np.split(self.b[direction], 2), strict=True):
                if bias:
                    yield f"bias_{which}_{suffix}", Stored(self._reordered(half), node_input(node, 3) or ZEROS)

    def _reordered(self, array: Numbers) -> Numbers:
        gates = np.split(array, GATES[self.kind])
        return np.concatenate([gates[place] for place in _ORDER[self.kind]])

    def outputs(self, known: Known) -> Numbers:
        """Its outputs (T, B, D·H), as torch.nn has them."""
        y = self.result(0, known)
        return np.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)

    def result(self, place: int, known: Known) -> Numbers:
        """The nodes' output y (T, D, B, H), h or c (D, B, H) by its place."""
        parts = [self.turned(np.asarray(known[node.output[place]]), back=True) for node in self.nodes]
        return np.concatenate(parts, axis=-3)

    def named(self, names: Sequence[Sequence[str]], arrays: Sequence[Numbers]) -> Known:
        """Arrays y (T, D, B, H), h and c (D, B, H) by the names that each node has for them."""
        known: Known = {}
        for direction, own in enumerate(names):
            part = slice(None) if len(names) == 1 else slice(direction, direction + 1)
            known |= {name: self.turned(array[..., part, :, :]) for name, array in zip(own, arrays, strict=True)}
        return known

    def turned(self, array: Numbers, *, back: bool = False) -> Numbers:
        """An array as the nodes have it, or back: with layout 1 they have B first, torch.nn has it last but one."""
        return array if not self.layout else np.moveaxis(array, 0, -2) if back else np.moveaxis(array, -2, 0)


def node_name(node: Node) -> str:
    """The name of a node or, as exporters may leave that out, of its output."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def titled(node: Node) -> str:
    return f"{node.op_type} {node_name(node)}"


def read_layer(graph: Graph, node: Node) -> OnnxLayer:
    """The node as a layer. Raises CheckpointRefused with what PyTorch cannot express."""
    kind, name, given = KINDS[node.op_type], node_name(node), attributes(node)
    try:
        direction = _text(given.get("direction", "forward"))
        if direction not in ("forward", "reverse", "bidirectional"):
            raise CheckpointRefused(f"direction {direction!r} does not exist")
        directions = 2 if direction == "bidirectional" else 1
        _refuse_options(kind, node, given)
        nonlinearity = _nonlinearity(kind, directions, [_text(name).lower() for name in given.get("activations", [])])
        w, r = _parameter(graph, node, 1, "W"), _parameter(graph, node, 2, "R")
        zeros = np.zeros((directions, 2 * w.shape[1]), w.dtype)
        b = _parameter(graph, node, 3, "B") if node_input(node, 3) else zeros
        if given.get("hidden_size", r.shape[-1]) != r.shape[-1]:
            raise CheckpointRefused(f"hidden_size is {given['hidden_size']}, and R has {r.shape[-1]} columns")
        _check_shapes(kind, directions, w, r, b)
    except CheckpointRefused as error:
        raise CheckpointRefused(f"{node.op_type} node {name}: {error}") from None
    outputs = [*node.output, "", "", ""][: 3 if kind == "lstm" else 2]
    node.output[:] = [output or f"{name} {place}" for place, output in enumerate(outputs)]
    return OnnxLayer([node], name, kind, nonlinearity, int(given.get("layout", 0)), direction == "reverse", w, r, b)


def _refuse_options(kind: Kind, node: Node, given: dict[str, Any]) -> None:
    if kind == "gru" and not given.get("linear_before_reset", 0):
        raise CheckpointRefused(
            "linear_before_reset is 0: the reset gate applies before the recurrent product, in PyTorch's GRU after it; "
            "PyTorch's dynamo exporter leaves it out by mistake (microsoft/onnxscript#2852): import the .pt instead"
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


def _check_shapes(kind: Kind, directions: int, w: Numbers, r: Numbers, b: Numbers) -> None:
    hidden = r.shape[-1]
    rows = GATES[kind] * hidden
    expected = {"W": (directions, rows, w.shape[-1]), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    for array, (letter, shape) in zip((w, r, b), expected.items(), strict=True):
        if array.shape != shape:
            raise CheckpointRefused(f"{letter} has shape {array.shape}; expected {shape} for hidden_size {hidden}")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def stacks(graph: Graph, layers: list[OnnxLayer]) -> tuple[list[list[OnnxLayer]], Known]:
    """The layers grouped into stacks, first layer first, and the values by which they were followed.

    Random numbers stand for the results of each layer. A layer is above another if its inputs are the other's outputs,
    number by number, and if the graph does not compute its initial state.
    """
    known = graph.inputs()
    grouped: list[list[OnnxLayer]] = []
    for layer in _paired(graph, layers):  # nodes of a valid graph are in topological order
        x = graph.value(layer.nodes[0].input[0], dict(known))
        x = layer.turned(x, back=True) if x is not None and x.ndim == 3 else None
        below = None
        _, computed = initial_states(graph, layer, known)
        if x is not None and not computed:
            tops = (stack for stack in grouped if stack[-1].common == layer.common)
            below = next((stack for stack in tops if np.array_equal(x, stack[-1].outputs(known))), None)
        if below is None:
            grouped.append([layer])
        else:
            below.append(layer)
        shape = graph.shapes.get(layer.nodes[0].input[0], [4, 2])
        steps, batch = x.shape[:2] if x is not None else shape[1::-1] if layer.layout else shape[:2]
        random, sizes = np.random.default_rng(len(known)), (layer.directions, batch, layer.hidden_size)
        y, c = (8 * random.standard_normal(shape).astype(np.float32) for shape in ((steps, *sizes), sizes))
        results = [y, np.stack([y[-1, 0], *y[0, 1:]]), c]
        known |= layer.named([node.output for node in layer.nodes], results[: len(layer.nodes[0].output)])
    return grouped, known


def _paired(graph: Graph, layers: list[OnnxLayer]) -> list[OnnxLayer]:
    """The layers, a forward and a reverse node over the same inputs that a Concat joins made one of two directions."""
    by_output = {layer.nodes[0].output[0]: layer for layer in layers}
    for concat in (node for node in graph.nodes if node.op_type == "Concat"):
        match [by_output.get(graph.origin(value)) for value in concat.input]:
            case [OnnxLayer(reverse=False) as one, OnnxLayer(reverse=True) as other]:
                if (one.common, one.nodes[0].input[0]) == (other.common, other.nodes[0].input[0]):
                    del by_output[other.nodes[0].output[0]]
                    w, r, b = (np.concatenate(pair) for pair in ((one.w, other.w), (one.r, other.r), (one.b, other.b)))
                    both = replace(one, nodes=[*one.nodes, *other.nodes], w=w, r=r, b=b)
                    by_output[one.nodes[0].output[0]] = both
    return list(by_output.values())


def initial_states(graph: Graph, layer: OnnxLayer, known: Known) -> tuple[dict[str, Numbers], list[str]]:
    """h0 and c0 (D, H) of the file, zeros where a request sends them or nobody does; and which the graph computes."""
    changed = {name: -2 * array if array is not None else None for name, array in known.items()}
    inputs = (known.get(value.name) for value in graph.model.graph.input)
    given = [array for array in inputs if array is not None]
    found: dict[str, Numbers] = {}
    computed: list[str] = []
    for place, letter in STATES:
        parts: list[Numbers] = []
        for name in (node_input(node, place) for node in layer.nodes):
            state, other = (graph.value(name, dict(values)) if name else None for values in (known, changed))
            parts.append(np.zeros((layer.directions // len(layer.nodes), layer.hidden_size), layer.w.dtype))
            if state is not None and other is not None and np.array_equal(state, other):
                rows = layer.turned(state, back=True)
                if (rows == rows[:, :1]).all():
                    parts[-1] = rows[:, 0]
                    continue
            elif not name or (state is not None and any(np.isin(state, array).all() for array in given)):
                continue
            computed.append(letter)
        found[letter] = np.concatenate(parts)
    return found, [*dict.fromkeys(computed)]
