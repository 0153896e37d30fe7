"""The same layer in other engines, each as a function of no arguments that returns outputs (B, T, H)."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper

from service.engine.interface import Floats
from service.spec import Kind, ModelSpec

Call = Callable[[], Floats]
Peer = Callable[[ModelSpec, Mapping[str, Floats], Floats, int], Call]

# Where ONNX has its gates among PyTorch's: iofc and zrh against ifgo and rzn.
ONNX_GATES: dict[Kind, list[int]] = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def torch_eager(spec: ModelSpec, weights: Mapping[str, Floats], x: Floats, threads: int) -> Call:
    """torch.nn.RNN, GRU or LSTM; for single steps their cells, which are faster."""
    torch.set_num_threads(threads)
    if x.shape[1] == 1:
        return _torch_cell(spec, weights, x, threads)
    kinds: dict[Kind, type[torch.nn.RNNBase]] = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    module = kinds[spec.kind](spec.input_size, spec.hidden_size, batch_first=True)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    inputs = torch.from_numpy(x)

    def call() -> Floats:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return module(inputs)[0].numpy()

    return call


def _torch_cell(spec: ModelSpec, weights: Mapping[str, Floats], x: Floats, threads: int) -> Call:
    kinds = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
    cell = kinds[spec.kind](spec.input_size, spec.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(array) for name, array in weights.items()})
    inputs, zeros = torch.from_numpy(x[:, 0]), torch.zeros(len(x), spec.hidden_size)
    state = (zeros, zeros) if spec.has_cell_state else zeros

    def call() -> Floats:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            result = cell(inputs, state)
            return (result[0] if spec.has_cell_state else result).numpy()[:, None]

    return call


def onnx_runtime(spec: ModelSpec, weights: Mapping[str, Floats], x: Floats, threads: int) -> Call:
    """ONNX Runtime's RNN, GRU or LSTM on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    model = onnx_model(spec, weights, x).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": np.ascontiguousarray(x.transpose(1, 0, 2))}
    return lambda: session.run(["y"], inputs)[0][:, 0].transpose(1, 0, 2)


def open_vino(spec: ModelSpec, weights: Mapping[str, Floats], x: Floats, threads: int) -> Call:
    """OpenVINO's CPU plug-in, for latency, in f32."""
    core = openvino.Core()
    model = core.read_model(onnx_model(spec, weights, x).SerializeToString())
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(x.transpose(1, 0, 2))))

    def call() -> Floats:
        request.infer()
        return request.get_output_tensor().data[:, 0].transpose(1, 0, 2)

    return call


def onnx_model(spec: ModelSpec, weights: Mapping[str, Floats], x: Floats) -> onnx.ModelProto:
    """One RNN, GRU or LSTM node with PyTorch's weights: x (T, B, I) to y (T, 1, B, H)."""
    batch, steps, _ = x.shape
    hidden, gates = spec.hidden_size, ONNX_GATES[spec.kind]

    def ordered(name: str) -> Floats:
        array = weights[name]
        return array.reshape(len(gates), hidden, -1)[gates].reshape(array.shape)

    arrays = {
        "w": ordered("weight_ih_l0")[None],
        "r": ordered("weight_hh_l0")[None],
        "b": np.concatenate([ordered("bias_ih_l0"), ordered("bias_hh_l0")])[None],
    }
    extra = {"linear_before_reset": 1} if spec.kind == "gru" else {}
    node = helper.make_node(spec.kind.upper(), ["x", "w", "r", "b"], ["y"], hidden_size=hidden, **extra)
    graph = helper.make_graph(
        [node],
        spec.kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, spec.input_size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, hidden])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


PEERS: Mapping[str, Peer] = {"torch": torch_eager, "onnxruntime": onnx_runtime, "openvino": open_vino}
