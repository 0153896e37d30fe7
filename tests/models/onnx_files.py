"""ONNX files made of a spec and PyTorch's weights, gate by gate, by the ONNX specification."""

from ast import literal_eval

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PYTORCH_GATES = {"rnn": "h", "gru": "rzn", "lstm": "ifgo"}
ONNX_GATES = {"rnn": "h", "gru": "zrn", "lstm": "iofg"}


def _in_onnx_order(kind, array):
    by_gate = dict(zip(PYTORCH_GATES[kind], np.split(array, len(PYTORCH_GATES[kind])), strict=True))
    return np.concatenate([by_gate[gate] for gate in ONNX_GATES[kind]])


def parameters(spec, weights, index=0):
    """W, R and B (or None) of one layer."""
    suffixes = spec.suffixes(index)
    w = np.stack([_in_onnx_order(spec.kind, weights[f"weight_ih_{suffix}"]) for suffix in suffixes])
    r = np.stack([_in_onnx_order(spec.kind, weights[f"weight_hh_{suffix}"]) for suffix in suffixes])
    if not spec.bias:
        return w, r, None
    halves = [[_in_onnx_order(spec.kind, weights[f"bias_{of}_{suffix}"]) for of in ("ih", "hh")] for suffix in suffixes]
    return w, r, np.stack([np.concatenate(pair) for pair in halves])


def node_attributes(spec, **more):
    found = {"hidden_size": spec.hidden_size, "direction": "bidirectional" if spec.bidirectional else "forward"}
    if spec.kind == "gru":
        found["linear_before_reset"] = 1
    if spec.nonlinearity == "relu":
        found["activations"] = ["Relu"] * spec.directions
    found |= more
    return {name: value for name, value in found.items() if value is not None}


def _between(spec, layout, source, target, squeeze):
    """The nodes that make (T, B, D·H) of (T, D, B, H), or with layout 1 (B, T, D·H) of (B, T, D, H)."""
    if squeeze and spec.directions == 1:
        return [helper.make_node("Squeeze", [source, "axis_d"], [target])]
    if layout:
        return [helper.make_node("Reshape", [source, "merged"], [target])]
    turned = helper.make_node("Transpose", [source], [f"{target}_turned"], perm=[0, 2, 1, 3])
    return [turned, helper.make_node("Reshape", [f"{target}_turned", "merged"], [target])]


def save_stack(path, spec, weights, *, layout=0, squeeze=True, head=None, dtype=np.float32, **more):
    """Write spec's layers as nodes that feed each other; head is None, "Gemm" or "MatMul". Gives the ModelProto."""
    stored = {
        "axis_d": np.array([2 if layout else 1], np.int64),
        "merged": np.array([0, 0, -1], np.int64),
        "flat": np.array([-1, spec.output_size], np.int64),
    }
    nodes, value = [], "x"
    for index in range(spec.num_layers):
        arrays = zip("wrb", parameters(spec, weights, index), strict=True)
        arrays = {f"{letter}{index}": array.astype(dtype) for letter, array in arrays if array is not None}
        stored |= arrays
        attributes = node_attributes(spec, **({"layout": 1} if layout else {}), **more)
        name = f"/encoder/{spec.kind}/{spec.kind.upper()}{f'_{index}' if index else ''}"
        nodes.append(helper.make_node(spec.kind.upper(), [value, *arrays], [f"y{index}"], name=name, **attributes))
        value = f"merged{index}"
        nodes += _between(spec, layout, f"y{index}", value, squeeze)
    if head == "Gemm":
        nodes.append(helper.make_node("Reshape", [value, "flat"], ["rows"]))
        nodes.append(helper.make_node("Gemm", ["rows", "fc.weight", "fc.bias"], ["y"], name="/fc/Gemm", transB=1))
        stored |= {"fc.weight": weights["head.weight"], "fc.bias": weights["head.bias"]}
    elif head == "MatMul":
        nodes.append(helper.make_node("MatMul", [value, "onnx::MatMul_9"], ["product"], name="/fc/MatMul"))
        nodes.append(helper.make_node("Add", ["fc.bias", "product"], ["y"], name="/fc/Add"))
        stored |= {"onnx::MatMul_9": np.ascontiguousarray(weights["head.weight"].T), "fc.bias": weights["head.bias"]}
    else:
        nodes.append(helper.make_node("Identity", [value], ["y"]))
    return save_graph(path, nodes, stored)


def save_graph(path, nodes, stored, *, x_shape=None, more_inputs=()):
    """x_shape and the shapes of more_inputs have names for axes that are left open."""
    inputs = {"x": x_shape, **dict(more_inputs)}
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(path))
    return model


def nodes(text):
    """Nodes of lines "Operator inputs > outputs attribute=value …"; - is an input that is left out."""
    made = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        (operator, *inputs), (*rest,) = (part.split() for part in line.split(">"))
        attributes = dict(entry.split("=") for entry in rest if "=" in entry)
        values = {
            name: value if name in ("name", "direction") else literal_eval(value) for name, value in attributes.items()
        }
        inputs = ["" if name == "-" else name for name in inputs]
        made.append(helper.make_node(operator, inputs, [name for name in rest if "=" not in name], **values))
    return made
