"""The model in a Keras file: front, stack, pooling and head of its layers, and its arrays under PyTorch's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.models.importing.keras.layers import POOLING, RECURRENT, KerasLayer, read_layers
from service.models.importing.keras.reference import MIN_DEVIATION, keras_reference
from service.models.importing.model import ZEROS, CheckpointModel, Entry, Numbers, Stored, convert_layers
from service.models.importing.refusal import CheckpointRefused, refusing
from service.spec import GATES, ChainLayer, Kind, ModelSpec, Pooling

_KINDS: dict[str, Kind] = {"SimpleRNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
_ACTIVATIONS: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in ("relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus")},
    **{name: {"type": name} for name in ("softmax", "log_softmax")},
    "leaky_relu": {"type": "leaky_relu", "negative_slope": 0.2},
    "swish": {"type": "silu"},
    "exponential": {"type": "exp"},
}


@refusing("the file's layers make no sense")
def model_from_keras(path: Path) -> CheckpointModel:
    """The whole model of a `.keras` or `.h5` file, which is a chain of layers. Raises CheckpointRefused."""
    layers, ignored = read_layers(path)
    before, stack, pooling, after = _parts(layers)
    first, ways = stack[0], len(stack[0].arrays)
    bias = any(layer.config.get("use_bias", True) for layer in stack)
    stored: dict[str, Stored] = {}
    for index, layer in enumerate(stack):
        for cell, suffix in zip(layer.arrays, ("", "_reverse"), strict=False):
            named = _recurrent(layer.kind, cell, bias=bias)
            stored |= {f"{name}_l{index}{suffix}": one for name, one in named.items()}
    input_size, hidden_size = (first.arrays[0][name].values.shape[0] for name in ("kernel", "recurrent_kernel"))
    front, of_front = convert_layers("front", [*map(_converted, before)], input_size)
    head, of_head = convert_layers("head", [*map(_converted, after)], ways * hidden_size)
    if pooling != "none" and not head:  # what is pooled is the prediction itself
        head = (ChainLayer("dropout", "head.0", ways * hidden_size, ways * hidden_size),)
    spec = ModelSpec(
        kind=_KINDS[first.kind],
        input_size=input_size,
        hidden_size=hidden_size,
        num_layers=len(stack),
        nonlinearity="relu" if first.config.get("activation") == "relu" else "tanh",
        bias=bias,
        bidirectional=ways == 2,
        front=front,
        pooling=pooling,
        head=head,
    )
    return CheckpointModel(
        layer=first.name,
        spec=spec,
        stored=stored | of_front | of_head,
        reference=keras_reference(layers),
        reference_name="Keras' formulas (numpy)",
        ignored=ignored,
        notes=[f"{layer} is stateful: a session keeps its state" for layer in stack if layer.config.get("stateful")],
    )


def _parts(layers: list[KerasLayer]) -> tuple[list[KerasLayer], list[KerasLayer], Pooling, list[KerasLayer]]:
    """The layers before the recurrent ones, these, the pooling, and the layers after it."""
    places = [index for index, layer in enumerate(layers) if layer.kind in RECURRENT]
    if not places:
        raise CheckpointRefused("the model has no recurrent layer: no LSTM, GRU or SimpleRNN")
    before, stack, after = layers[: places[0]], layers[places[0] : places[-1] + 1], layers[places[-1] + 1 :]
    for layer in stack:
        if layer.kind not in RECURRENT:
            raise CheckpointRefused(f"{layer} is between recurrent layers, where only Dropout is served")
        if _like(layer) != _like(stack[0]):
            raise CheckpointRefused(
                f"{layer} is {_like(layer)}, and {stack[0]} {_like(stack[0])}: a stack has equal layers"
            )
    *inner, last = (bool(layer.config.get("return_sequences")) for layer in stack)
    if not all(inner):
        raise CheckpointRefused(f"{stack[inner.index(False)]} returns no sequence for the recurrent layer after it")
    pooling: Pooling = "none" if last else "final" if len(stack[0].arrays) == 2 else "last"
    if last and after and after[0].kind in POOLING:
        pooling = POOLING[after.pop(0).kind]
    if wrong := [layer for layer in before + after if layer.kind in POOLING]:
        raise CheckpointRefused(
            f"{wrong[0]} is served directly after a recurrent layer that returns sequences, not here"
        )
    return before, stack, pooling, after


def _like(layer: KerasLayer) -> str:
    """What all layers of a stack have in common."""
    activation = f", {layer.config['activation']}" if layer.kind == "SimpleRNN" else ""
    ways = "bidirectional " if len(layer.arrays) == 2 else ""
    return f"{ways}{layer.kind} of {layer.config['units']} units{activation}"


def _recurrent(kind: str, cell: Mapping[str, Stored], *, bias: bool) -> dict[str, Stored]:
    """PyTorch's arrays of one direction of a layer, without the ending of their names.

    Keras' kernels are transposed, and only a GRU has two biases. Keras has the gates of a GRU as z, r, h, PyTorch as
    r, z, n; those of an LSTM, i, f, c, o, are PyTorch's i, f, g, o.
    """
    order = (1, 0, 2) if kind == "GRU" else range(GATES[_KINDS[kind]])

    def gates(values: Numbers) -> Numbers:
        blocks = np.split(values, len(order), axis=-1)
        return np.concatenate([blocks[gate] for gate in order], axis=-1).T

    named = {"weight_ih": cell["kernel"], "weight_hh": cell["recurrent_kernel"]}
    if bias:
        one = cell.get("bias", Stored(np.zeros(cell["kernel"].values.shape[1:], np.float32), ZEROS))
        two = kind == "GRU" and one.source != ZEROS
        named["bias_ih"], named["bias_hh"] = (
            (Stored(row, one.source) for row in one.values) if two else (one, Stored(np.zeros_like(one.values), ZEROS))
        )
    return {name: Stored(gates(values), path) for name, (values, path) in named.items()}


def _converted(layer: KerasLayer) -> Entry:
    of, config = layer.arrays[0], layer.config
    match layer.kind:
        case "Embedding":
            return {"type": "embedding"}, {"weight": of["embeddings"]}
        case "Dense":
            kernel, path = of["kernel"]
            bias = {"bias": of["bias"]} if "bias" in of else {}
            return {"type": "linear"}, {"weight": Stored(kernel.T, path), **bias}
        case "BatchNormalization":
            moments = {"running_mean": of["moving_mean"], "running_var": of["moving_variance"]}
            return {"type": "batch_norm", "eps": float(config.get("epsilon", 1e-3))}, moments | _affine(of)
        case "LayerNormalization":
            return {"type": "layer_norm", "eps": float(config.get("epsilon", 1e-3))}, _affine(of)
        case "Normalization":
            variance, path = of["variance"]
            scale = Stored(np.maximum(np.sqrt(variance), MIN_DEVIATION), path)
            return {"type": "scale", "inverse": bool(config.get("invert"))}, {"mean": of["mean"], "scale": scale}
    options = {**config}
    activation = options.pop("activation")
    if isinstance(activation, dict):  # a function or a layer
        activation = activation["config"] if isinstance(activation["config"], str) else activation["class_name"]
    if activation not in _ACTIVATIONS:
        raise CheckpointRefused(f"{layer.name} has the activation {activation!r}, which is not served")
    return _ACTIVATIONS[activation] | options, {}


def _affine(of: Mapping[str, Stored]) -> dict[str, Stored]:
    """The weight and bias of a normalization, both or none."""
    if not (some := of.get("gamma") or of.get("beta")):
        return {}
    like = some.values
    weight = of.get("gamma", Stored(np.ones_like(like), "(ones)"))
    return {"weight": weight, "bias": of.get("beta", Stored(np.zeros_like(like), ZEROS))}
