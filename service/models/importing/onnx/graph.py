"""An ONNX graph as an import reads it: which node makes which value, and what the constants are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_rnn import RNN_14

from service.models.importing.model import Numbers
from service.models.importing.refusal import CheckpointRefused, refusing

Node = Any

# Operators that exporters put between a stored parameter and its use. None makes a large value of a small one.
MOVING = ("Constant", "Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Slice", "Concat")
_MAX_FOLDS = 64
_MAX_CONSTANT_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class Graph:
    """The main graph of an ONNX file; graphs inside loops and branches are not read."""

    model: Any
    nodes: list[Node]
    producers: dict[str, Node]
    initializers: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """Parse a file; weights in files beside it are read too. Raises CheckpointRefused."""
        with refusing("the file is not an ONNX model, or is damaged"):
            model = onnx.load(str(path))
        nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx")]
        producers = {output: node for node in nodes for output in node.output if output}
        return cls(model, nodes, producers, {tensor.name: tensor for tensor in model.graph.initializer})

    def constant(self, value: str, depth: int = _MAX_FOLDS) -> Numbers | None:
        """A value that does not depend on the graph's inputs; None if it does, or if no simple operator makes it.

        Raises CheckpointRefused for a constant that is damaged or too large.
        """
        with refusing(f"constant {value} is damaged"):
            if value in self.initializers:
                return np.asarray(onnx.numpy_helper.to_array(self.initializers[value]))
            node = self.producers.get(value)
            if node is None or node.op_type not in MOVING or depth == 0:
                return None
            inputs = {name: self.constant(name, depth - 1) for name in filter(None, node.input)}
            known = {name: array for name, array in inputs.items() if array is not None}
            if len(known) < len(inputs):
                return None
            if sum(array.nbytes for array in known.values()) > _MAX_CONSTANT_BYTES:
                raise CheckpointRefused(f"constant {value} is larger than {_MAX_CONSTANT_BYTES} bytes")
            return np.asarray(run_nodes(self.model, [node], known, [value])[0])


def attributes(node: Node) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def node_input(node: Node, place: int) -> str:
    """The name of one of a node's inputs, "" if it is left out."""
    return str(node.input[place]) if len(node.input) > place else ""


def run_nodes(model: Any, nodes: list[Node], feed: dict[str, Any], outputs: list[str]) -> list[Numbers]:
    """Run nodes with onnx's reference implementation, by the operator versions that the model states."""
    untyped = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in (*feed, *outputs)
    }
    graph = helper.make_graph(nodes, "part", [untyped[name] for name in feed], [untyped[name] for name in outputs])
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return list(ReferenceEvaluator(part, new_ops=[RNN]).run(outputs, feed))


class RNN(RNN_14):
    """The reference RNN, which knows tanh alone, with ONNX's other common activation."""

    op_domain = ""

    def choose_act(self, name: str, alpha: Any, beta: Any) -> Any:
        if name.lower() == "relu":
            return lambda x: np.maximum(x, 0)
        return super().choose_act(name, alpha, beta)  # type: ignore[no-untyped-call]
