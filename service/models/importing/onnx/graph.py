"""An ONNX graph as an import reads it: who makes which value, and what the constants are.

The `onnx` package is optional (`pip install onnx`), so it is imported where it is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.importing.found import CheckpointRefused
from service.models.printable import printable

Node = Any
Array = NDArray[np.floating[Any]]

# Operators that exporters put between a stored parameter and its use. None makes much of little.
_FOLDED = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Slice", "Concat")
_MAX_FOLDS = 64
_MAX_CONSTANT_BYTES = 2**32


def onnx_package() -> ModuleType:
    """The onnx package. Raises CheckpointRefused that says how to get it."""
    try:
        import onnx  # noqa: PLC0415  # optional
        import onnx.reference  # noqa: PLC0415
    except ImportError:
        raise CheckpointRefused("reading .onnx files needs the onnx package: pip install onnx") from None
    module: ModuleType = onnx
    return module


@dataclass(frozen=True, slots=True)
class Graph:
    """The main graph of an ONNX file; nodes inside loops and branches are not looked at."""

    model: Any
    nodes: list[Node]
    producers: dict[str, Node]
    initializers: dict[str, Any]
    folder: Path

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """Parse a file; weights in files beside it are read too. Raises CheckpointRefused with the reason."""
        onnx = onnx_package()
        try:
            model = onnx.load(str(path))
        except OSError as error:
            raise CheckpointRefused(f"the file cannot be read: {error.strerror or 'I/O error'}") from None
        except Exception as error:  # protobuf's errors, and those of weights stored beside the file
            reason = printable(str(error) or type(error).__name__)
            raise CheckpointRefused(f"the file is not an ONNX model, or is damaged: {reason}") from None
        nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx")]
        producers = {output: node for node in nodes for output in node.output if output}
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        return cls(model, nodes, producers, initializers, path.parent)

    def consumers(self, value: str) -> Iterator[Node]:
        """The nodes that take a value as input."""
        return (node for node in self.nodes if value in node.input)

    def constant(self, value: str, depth: int = _MAX_FOLDS) -> Array | None:
        """A value that does not depend on the graph's inputs; None if it does, or if no simple operator makes it.

        Raises CheckpointRefused for a constant that is damaged or too large.
        """
        onnx = onnx_package()
        try:
            if value in self.initializers:
                return np.asarray(onnx.numpy_helper.to_array(self.initializers[value]))
            node = self.producers.get(value)
            if node is None or depth == 0:
                return None
            if node.op_type == "Constant":
                return np.asarray(onnx.reference.ReferenceEvaluator(node).run(None, {})[0])
            if node.op_type not in _FOLDED:
                return None
            inputs = {name: self.constant(name, depth - 1) for name in node.input if name}
            if any(array is None for array in inputs.values()):
                return None
            if sum(array.nbytes for array in inputs.values() if array is not None) > _MAX_CONSTANT_BYTES:
                raise CheckpointRefused(f"constant {printable(value)} is larger than {_MAX_CONSTANT_BYTES} bytes")
            return np.asarray(run_nodes(self.model, [node], inputs, [value])[0])
        except CheckpointRefused:
            raise
        except Exception as error:  # whatever onnx makes of a constant that is none
            raise CheckpointRefused(f"constant {printable(value)} is damaged: {printable(error)}") from None


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes by name."""
    onnx = onnx_package()
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def run_nodes(model: Any, nodes: list[Node], feed: dict[str, Any], outputs: list[str]) -> list[Array]:
    """Run nodes of a model, by the model's own operator versions, with onnx's reference implementation."""
    onnx = onnx_package()
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in feed],
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in outputs],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    results: list[Array] = onnx.reference.ReferenceEvaluator(part, new_ops=[_rnn_with_relu()]).run(outputs, feed)
    return results


def _rnn_with_relu() -> type:
    """The reference RNN, which knows tanh alone, with ONNX's other common activation."""
    from onnx.reference.ops.op_rnn import RNN_14  # noqa: PLC0415  # optional

    class RNN(RNN_14):
        op_domain = ""

        def choose_act(self, name: str, alpha: Any, beta: Any) -> Any:
            if name.lower() == "relu":
                return lambda x: np.maximum(x, 0)
            return super().choose_act(name, alpha, beta)  # type: ignore[no-untyped-call]

    return RNN
