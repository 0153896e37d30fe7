"""One RNN, GRU or LSTM node of an ONNX graph as a layer of PyTorch: refused where PyTorch has no such layer.

Source: the operators RNN, GRU and LSTM of the ONNX specification, and the formulas of torch.nn.RNN, GRU and LSTM.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.models.importing.found import CheckpointRefused
from service.models.importing.onnx.graph import Array, Graph, Node, attributes
from service.models.printable import printable
from service.spec import GATES, Kind, Nonlinearity

KINDS: dict[str, Kind] = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}

# Where each gate of PyTorch's order stands in ONNX's: r z n in z r h, and i f g o in i o f c.
_ORDER: dict[Kind, list[int]] = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 2, 3, 1]}
_DEFAULT_ACTIVATIONS: dict[Kind, list[str]] = {
    "rnn": ["tanh"],
    "gru": ["sigmoid", "tanh"],
    "lstm": ["sigmoid", "tanh", "tanh"],
}


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """A node and what it holds: W (D, G·H, I), R (D, G·H, H), B (D, 2·G·H) or None, gates in ONNX's order."""

    node: Node
    name: str
    kind: Kind
    nonlinearity: Nonlinearity
    layout: int
    w: Array
    r: Array
    b: Array | None

    @property
    def directions(self) -> int:
        """D: 1 or 2."""
        return int(self.w.shape[0])

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.r.shape[2])

    def arrays(self, index: int, *, bias: bool) -> dict[str, Array]:
        """The layer's arrays under PyTorch's names for layer `index`, gates in PyTorch's order.

        With bias, a node without B gets zeros.
        """
        found: dict[str, Array] = {}
        for direction, suffix in enumerate([f"l{index}", f"l{index}_reverse"][: self.directions]):
            found[f"weight_ih_{suffix}"] = self._reordered(self.w[direction])
            found[f"weight_hh_{suffix}"] = self._reordered(self.r[direction])
            if bias:
                rows = self.w.shape[1]
                both = np.zeros(2 * rows, self.w.dtype) if self.b is None else self.b[direction]
                found[f"bias_ih_{suffix}"] = self._reordered(both[:rows])
                found[f"bias_hh_{suffix}"] = self._reordered(both[rows:])
        return found

    def _reordered(self, array: Array) -> Array:
        gates = np.split(array, GATES[self.kind])
        return np.concatenate([gates[place] for place in _ORDER[self.kind]])


def node_name(node: Node) -> str:
    """What a node is called; exporters may leave its name out, but not its output's."""
    return str(node.name or next((output for output in node.output if output), node.op_type))


def read_layer(graph: Graph, node: Node) -> OnnxLayer:
    """The node as a layer. Raises CheckpointRefused with what PyTorch cannot express."""
    kind, name, given = KINDS[node.op_type], node_name(node), attributes(node)
    try:
        direction = _text(given.get("direction", "forward"))
        if direction not in ("forward", "bidirectional"):
            raise CheckpointRefused(f"direction {printable(direction)!r} alone does not exist in PyTorch")
        directions = 2 if direction == "bidirectional" else 1
        _refuse_options(kind, node, given)
        nonlinearity = _nonlinearity(kind, directions, [_text(name).lower() for name in given.get("activations", [])])
        w, r = _parameter(graph, node, 1, "W"), _parameter(graph, node, 2, "R")
        b = _parameter(graph, node, 3, "B") if len(node.input) > 3 and node.input[3] else None
        if given.get("hidden_size", r.shape[-1]) != r.shape[-1]:
            raise CheckpointRefused(f"hidden_size is {given['hidden_size']}, and R has {r.shape[-1]} columns")
        _check_shapes(kind, directions, {"W": w, "R": r} | ({} if b is None else {"B": b}))
    except CheckpointRefused as error:
        raise CheckpointRefused(f"{node.op_type} node {printable(name)}: {error}") from None
    return OnnxLayer(node, name, kind, nonlinearity, int(given.get("layout", 0)), w, r, b)


def _refuse_options(kind: Kind, node: Node, given: dict[str, Any]) -> None:
    if kind == "gru" and not given.get("linear_before_reset", 0):
        raise CheckpointRefused(
            "linear_before_reset is 0: the reset gate applies before the recurrent product, in PyTorch's GRU after it"
        )
    if kind == "lstm" and len(node.input) > 7 and node.input[7]:
        raise CheckpointRefused("it has peepholes (input P), which PyTorch's LSTM has not")
    if given.get("input_forget", 0):
        raise CheckpointRefused("input_forget is 1: input and forget gates are coupled, in PyTorch they are not")
    if "clip" in given:
        raise CheckpointRefused(f"clip is {given['clip']:g}: PyTorch does not clip the inputs of activations")


def _nonlinearity(kind: Kind, directions: int, activations: list[str]) -> Nonlinearity:
    default = _DEFAULT_ACTIVATIONS[kind] * directions
    if not activations or activations == default:
        return "tanh"
    if kind == "rnn" and activations == ["relu"] * directions:
        return "relu"
    shown = printable(", ".join(activations))
    allowed = f"{', '.join(default)}{', or relu in all directions' if kind == 'rnn' else ''}"
    raise CheckpointRefused(f"activations are {shown}; PyTorch has {allowed}")


def _parameter(graph: Graph, node: Node, place: int, letter: str) -> Array:
    value = node.input[place] if len(node.input) > place else ""
    array = graph.constant(value)
    if array is None:
        raise CheckpointRefused(f"{letter} ({printable(value)}) is computed by the graph, not stored in the file")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CheckpointRefused(f"{letter} is {array.dtype}; expected float16, float32 or float64")
    return array


def _check_shapes(kind: Kind, directions: int, parameters: dict[str, Array]) -> None:
    w, r = parameters["W"], parameters["R"]
    if w.ndim != 3 or r.ndim != 3:
        raise CheckpointRefused(f"W has shape {w.shape} and R {r.shape}; expected three dimensions")
    hidden = r.shape[2]
    rows = GATES[kind] * hidden
    expected = {"W": (directions, rows, w.shape[2]), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    for letter, array in parameters.items():
        if array.shape != expected[letter]:
            raise CheckpointRefused(
                f"{letter} has shape {array.shape}; expected {expected[letter]} for hidden_size {hidden}"
            )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
