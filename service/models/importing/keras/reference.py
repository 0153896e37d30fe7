"""Keras' layers by Keras' formulas in numpy, from the arrays as the file has them: what an import is verified against.

Source: Keras 3, `src/layers` (rnn/lstm.py, gru.py, simple_rnn.py, bidirectional.py; core, normalization, activations,
pooling; preprocessing/normalization.py) and `src/activations/activations.py`, as they are outside training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from service.models.importing.keras.layers import RECURRENT, KerasLayer
from service.models.importing.model import Arrays, Numbers, Precision, Reference
from service.models.importing.refusal import refusing

Cell = Mapping[str, Numbers]  # the arrays of a layer, of one direction, by Keras' names
MIN_DEVIATION = 1e-7  # `keras.config.epsilon()`, below which a Normalization takes no standard deviation


def keras_reference(layers: Sequence[KerasLayer]) -> Reference:
    """The file's own layers in their order as a reference."""

    @refusing("the file's layers do not run by Keras' formulas")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        return [_run(layers, sequence, precision) for sequence in sequences]

    return run


def _run(layers: Sequence[KerasLayer], sequence: Arrays, precision: Precision) -> Arrays:
    x, *states = (sequence[name].astype(precision) for name in ("x", "h", "c") if name in sequence)
    results: dict[str, Numbers] = dict(zip("hc", states, strict=False))
    done = 0  # directions of recurrent layers
    for layer in layers:
        cells = [{name: np.asarray(of.values, precision) for name, of in cell.items()} for cell in layer.arrays]
        if layer.kind not in RECURRENT:
            x = _LAYERS[layer.kind](x, cells[0], layer.config)
            results |= {"predictions": x} if done else {}
            continue
        ways: list[Numbers] = []
        for way, cell in enumerate(cells):
            ways.append(_recurrent(layer, cell, x[::-1] if way else x, [array[done] for array in states]))
            done += 1
        x = results["outputs"] = np.concatenate([*ways[:1], *(way[::-1] for way in ways[1:])], axis=-1)
        if not layer.config.get("return_sequences"):
            x = results["predictions"] = np.concatenate([way[-1:] for way in ways], axis=-1)
    return results


def _recurrent(layer: KerasLayer, cell: Cell, x: Numbers, state: Sequence[Numbers]) -> Numbers:
    """The outputs (T, H) of a layer in one direction; h (H), and c (H) of an LSTM, become the final ones in place."""
    biases: Any = cell.get("bias", (0, 0))
    input_bias, recurrent_bias = biases if layer.kind == "GRU" or "bias" not in cell else (biases, 0)
    matrix_x, units = x @ cell["kernel"] + input_bias, len(cell["recurrent_kernel"])
    activation = _ACTIVATIONS[layer.config.get("activation", "tanh")]
    outputs = np.empty((len(x), units), x.dtype)
    for step, row in enumerate(matrix_x):
        inner = state[0] @ cell["recurrent_kernel"] + recurrent_bias
        match layer.kind:
            case "SimpleRNN":
                state[0][:] = activation(row + inner)
            case "GRU":
                z, r = np.split(_sigmoid((row + inner)[: 2 * units]), 2)
                hh = np.tanh(row[2 * units :] + r * inner[2 * units :])
                state[0][:] = z * state[0] + (1 - z) * hh
            case _:
                i, f, c, o = np.split(row + inner, 4)
                state[1][:] = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(c)
                state[0][:] = _sigmoid(o) * np.tanh(state[1])
        outputs[step] = state[0]
    return outputs


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _gelu(x: Any) -> Any:
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def _log_softmax(x: Any) -> Any:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x, negative_slope=0.2: np.where(x < 0, negative_slope * x, x),
    "elu": lambda x, alpha=1.0: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
    "gelu": _gelu,
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "exponential": np.exp,
    "softmax": lambda x: np.exp(_log_softmax(x)),
    "log_softmax": _log_softmax,
}


def _normalized(x: Any, mean: Any, variance: Any, of: Cell, config: Mapping[str, Any]) -> Any:
    return (x - mean) / np.sqrt(variance + config.get("epsilon", 1e-3)) * of.get("gamma", 1) + of.get("beta", 0)


def _scaled(x: Any, of: Cell, config: Mapping[str, Any]) -> Any:
    deviation = np.maximum(np.sqrt(of["variance"]), MIN_DEVIATION)
    return of["mean"] + x * deviation if config.get("invert") else (x - of["mean"]) / deviation


_LAYERS: dict[str, Callable[[Any, Cell, Mapping[str, Any]], Any]] = {
    "Embedding": lambda x, of, _: of["embeddings"][x[:, 0].astype(int)],
    "Dense": lambda x, of, _: x @ of["kernel"] + of.get("bias", 0),
    "Activation": lambda x, _, o: _ACTIVATIONS[o["activation"]](x, *(o[name] for name in o if name != "activation")),
    "BatchNormalization": lambda x, of, o: _normalized(x, of["moving_mean"], of["moving_variance"], of, o),
    "LayerNormalization": lambda x, of, o: _normalized(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True), of, o),
    "Normalization": _scaled,
    "GlobalAveragePooling1D": lambda x, *_: x.mean(axis=0, keepdims=True),
    "GlobalMaxPooling1D": lambda x, *_: x.max(axis=0, keepdims=True),
}
