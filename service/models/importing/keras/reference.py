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

Cell = Mapping[str, Numbers]
"""The arrays of a layer, of one direction, by Keras' names."""

MIN_DEVIATION = 1e-7
"""`keras.config.epsilon()`, below which a Normalization takes no standard deviation."""


def keras_reference(layers: Sequence[KerasLayer]) -> Reference:
    """The file's own layers in their order as a reference."""

    @refusing("the file's layers do not run by Keras' formulas")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        arrays = [
            [{name: np.asarray(stored.values, precision) for name, stored in cell.items()} for cell in layer.arrays]
            for layer in layers
        ]
        return [_run(layers, arrays, sequence, precision) for sequence in sequences]

    return run


def _run(
    layers: Sequence[KerasLayer], arrays: Sequence[Sequence[Cell]], sequence: Arrays, precision: Precision
) -> Arrays:
    x = sequence["x"].astype(precision)
    states = {name: sequence[name].astype(precision) for name in ("h", "c") if name in sequence}
    results: dict[str, Numbers] = dict(states)
    state = 0
    for layer, cells in zip(layers, arrays, strict=True):
        if layer.kind not in RECURRENT:
            x = _LAYERS[layer.kind](x, cells[0], layer.config)
            results |= {"predictions": x} if state else {}  # of the layers after the recurrent ones
            continue
        ways: list[Numbers] = []
        for way, cell in enumerate(cells):
            start = [array[state] for array in states.values()]
            ways.append(_recurrent(layer, cell, x[::-1] if way else x, start))
            for array, final in zip(states.values(), start, strict=True):
                array[state] = final
            state += 1
        results["outputs"] = np.concatenate([way[::-1] if index else way for index, way in enumerate(ways)], axis=-1)
        x = results["outputs"]
        if not layer.config.get("return_sequences"):
            x = results["predictions"] = np.concatenate([way[-1:] for way in ways], axis=-1)
    return results


def _recurrent(layer: KerasLayer, cell: Cell, x: Numbers, state: list[Numbers]) -> Numbers:
    """The outputs (T, H) of a layer in one direction; state becomes the final one."""
    units = cell["recurrent_kernel"].shape[0]
    bias = cell.get("bias", np.zeros(2, x.dtype))
    input_bias, recurrent_bias = bias if layer.kind == "GRU" else (bias if "bias" in cell else 0, 0)
    matrix_x = x @ cell["kernel"] + input_bias
    activation = _ACTIVATIONS[layer.config.get("activation", "tanh")]
    outputs = np.empty((len(x), units), x.dtype)
    for step, row in enumerate(matrix_x):
        inner = state[0] @ cell["recurrent_kernel"] + recurrent_bias
        match layer.kind:
            case "SimpleRNN":
                state[0] = activation(row + inner)
            case "GRU":
                z, r = np.split(_sigmoid((row + inner)[: 2 * units]), 2)
                hh = np.tanh(row[2 * units :] + r * inner[2 * units :])
                state[0] = z * state[0] + (1 - z) * hh
            case _:
                i, f, c, o = np.split(row + inner, 4)
                state[1] = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(c)
                state[0] = _sigmoid(o) * np.tanh(state[1])
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


def _activated(x: Any, _: Cell, config: Mapping[str, Any]) -> Any:
    options = {**config}
    return _ACTIVATIONS[options.pop("activation")](x, **options)


_LAYERS: dict[str, Callable[[Any, Cell, Mapping[str, Any]], Any]] = {
    "Embedding": lambda x, of, _: of["embeddings"][x[:, 0].astype(int)],
    "Dense": lambda x, of, _: x @ of["kernel"] + of.get("bias", 0),
    "Activation": _activated,
    "BatchNormalization": lambda x, of, o: _normalized(x, of["moving_mean"], of["moving_variance"], of, o),
    "LayerNormalization": lambda x, of, o: _normalized(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True), of, o),
    "Normalization": _scaled,
    "GlobalAveragePooling1D": lambda x, *_: x.mean(axis=0, keepdims=True),
    "GlobalMaxPooling1D": lambda x, *_: x.max(axis=0, keepdims=True),
}
