"""The layers of a Keras file in their order, with their options and arrays; what is not served is refused by name."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from service.models.importing.keras import hdf5
from service.models.importing.model import Numbers, Stored
from service.models.importing.refusal import CheckpointRefused, refusing
from service.spec import Pooling

SECONDS = 60
RECURRENT = ("SimpleRNN", "GRU", "LSTM")
POOLING: dict[str, Pooling] = {"GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max"}
_ACTIVATIONS = {"Activation": None, "ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "Softmax": "softmax"}
_TRAINING = (
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
)

# The arrays of each class in Keras' order, and the options that say whether a layer has one.
_ARRAYS: dict[str, tuple[str, ...]] = {
    "Embedding": ("embeddings",),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "Normalization": ("mean", "variance", "count"),
    **dict.fromkeys(RECURRENT, ("kernel", "recurrent_kernel", "bias")),
    **dict.fromkeys((*_ACTIVATIONS, *POOLING), ()),
}
_HAS = {"bias": "use_bias", "gamma": "scale", "beta": "center"}

# What is served of the options that change what a layer computes; the first is the default.
_FORWARD = {"return_state": (False,), "go_backwards": (False,), "time_major": (False,)}
_GATED = {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), **_FORWARD}
_POOLED = {"data_format": ("channels_last",), "keepdims": (False,)}
_SERVED: dict[str, dict[str, tuple[Any, ...]]] = {
    "Embedding": {"mask_zero": (False,)},
    "SimpleRNN": {"activation": ("tanh", "relu"), **_FORWARD},
    "GRU": {"reset_after": (True,), **_GATED},
    "LSTM": _GATED,
    "Bidirectional": {"merge_mode": ("concat",)},
    "BatchNormalization": {"renorm": (False,)},
    "LayerNormalization": {"rms_scaling": (False,)},
    "ReLU": {"max_value": (None,), "negative_slope": (0,), "threshold": (0,)},
    "GlobalAveragePooling1D": _POOLED,
    "GlobalMaxPooling1D": _POOLED,
}
# What the layers of a Bidirectional have in common.
_BOTH = ("units", "activation", "recurrent_activation", "use_bias", "reset_after", "return_sequences")


@dataclass(frozen=True, slots=True)
class KerasLayer:
    """A layer by Keras' names of classes, options and arrays; arrays has two entries if it is bidirectional.

    A Dense is without its activation, which is a layer `Activation` of its own; so are ReLU, LeakyReLU, ELU, Softmax.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    arrays: tuple[Mapping[str, Stored], ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@refusing("the file's model makes no sense")
def read_layers(path: Path) -> tuple[list[KerasLayer], list[str]]:
    """The layers that compute something, and names of those that do so in training alone. Raises CheckpointRefused."""
    arrays = _read(path)
    model, paths = (json.loads(arrays.pop(name).tobytes()) for name in (":config", ":paths"))
    kind, config = model["class_name"], model["config"]
    if kind not in ("Sequential", "Functional", "Model"):
        raise CheckpointRefused(f"the model is a {kind}; a Sequential is imported, and a Functional that is a chain")
    entries = config if isinstance(config, list) else config["layers"]
    if kind != "Sequential":
        _check_chain(entries, config["output_layers"])
    layers: list[KerasLayer] = []
    axis = 2  # of the features
    for entry in entries:
        if entry["class_name"] not in ("InputLayer", *_TRAINING):
            layer = _layer(entry, axis, arrays, paths)
            layers += _expanded(layer)
            if layer.kind in POOLING or (layer.kind in RECURRENT and not layer.config.get("return_sequences")):
                axis = 1  # there is no time any more
    training = [entry for entry in entries if entry["class_name"] in _TRAINING]
    return layers, [f"{entry['class_name']} {entry['config']['name']}" for entry in training]


def _read(path: Path) -> dict[str, Numbers]:
    command = [sys.executable, "-P", hdf5.__file__, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603  # is our own
    except subprocess.TimeoutExpired:
        raise CheckpointRefused("the file is damaged: the HDF5 library does not come to an end with it") from None
    if done.returncode not in (0, 1):
        raise CheckpointRefused("the file is damaged: the HDF5 library crashes on it")
    if done.returncode:
        raise CheckpointRefused(done.stderr.decode(errors="replace").strip())
    return dict(safetensors.numpy.load(done.stdout))


def _check_chain(entries: Any, ends: Any) -> None:
    """Raises CheckpointRefused unless each layer of a functional model reads exactly the one before it."""
    before: list[str] = []
    for entry in entries:
        sources = list(_sources(entry["inbound_nodes"]))
        if sources != before:
            raise CheckpointRefused(f"the model is no chain: {entry['name']} reads {', '.join(sources) or 'nothing'}")
        before = [entry["name"]]
    if list(_sources(ends)) != before:
        raise CheckpointRefused(f"the model is no chain: it does not end with its last layer, {', '.join(before)}")


def _sources(nodes: Any) -> Iterator[str]:
    """The layers whose outputs are meant: each stands as [name, call, output, …], in lists and records of any depth."""
    if isinstance(nodes, list) and [type(part) for part in nodes[:3]] == [str, int, int]:
        yield nodes[0] if nodes[1:3] == [0, 0] else f"call {nodes[1]}, output {nodes[2]} of {nodes[0]}"
    for node in nodes.values() if isinstance(nodes, dict) else nodes if isinstance(nodes, list) else ():
        yield from _sources(node)


def _layer(entry: Any, axis: int, arrays: Mapping[str, Numbers], paths: dict[str, list[list[str]]]) -> KerasLayer:
    wrapper, name = entry["class_name"], str(entry["config"]["name"])
    wraps = wrapper in ("Bidirectional", "TimeDistributed")
    inner = entry["config"]["layer"] if wraps else entry
    kind, config = inner["class_name"], inner["config"]
    by_step = _ARRAYS.keys() - {*RECURRENT, *POOLING, "Embedding"}
    served = RECURRENT if wrapper == "Bidirectional" else by_step if wraps else _ARRAYS
    if kind not in served or not all(map(_is_of_keras, (entry, inner))):
        raise CheckpointRefused(f"{name} is a {f'{wrapper} of {kind}' if wraps else kind}, which is not served")
    options = {"reset_after": False, **entry["config"], **config}  # a GRU without it is older than it
    _check_options(name, {**_SERVED.get(wrapper, {}), **_SERVED.get(kind, {})}, options)
    if (value := config.get("axis", -1)) not in (-1, [-1], axis, [axis]) and (kind != "Normalization" or value):
        raise CheckpointRefused(f"{name} has axis {value!r}; served is -1, that of the features")
    other = entry["config"].get("backward_layer") or inner
    if other["class_name"] != kind or any(config.get(option) != other["config"].get(option) for option in _BOTH):
        raise CheckpointRefused(f"{name} has a backward_layer that differs from its layer")
    if kind == "Normalization" and config.get("mean") is not None:
        moments = ("mean", "variance")
        own = {each: Stored(np.asarray(config[each], np.float64), f"{each} of {name}") for each in moments}
        return KerasLayer(kind, name, config, (own,))
    names = [array for array in _ARRAYS[kind] if config.get(_HAS.get(array, ""), True)]
    cells = 2 if wrapper == "Bidirectional" else 1
    found = (paths.get(f"/{name}") or paths.get(wrapper.lower()) or []) if names else []
    stored = [Stored(arrays[path], path) for path in (found.pop(0) if found else [])]
    if len(stored) != cells * len(names):
        raise CheckpointRefused(f"{name} needs {cells * len(names)} arrays, and the file has {len(stored)} of it")
    each = (stored[cell * len(names) :][: len(names)] for cell in range(cells))
    return KerasLayer(kind, name, config, tuple(dict(zip(names, own, strict=True)) for own in each))


def _is_of_keras(entry: Any) -> bool:
    """Whether its class is Keras' own, as far as the file says: one of a user's may have any name."""
    module = str(entry.get("module") or "keras").partition(".")[0]
    return module in ("keras", "tf_keras", "tensorflow") and entry.get("registered_name") in (None, entry["class_name"])


def _check_options(name: str, served: Mapping[str, tuple[Any, ...]], config: Mapping[str, Any]) -> None:
    for option, values in served.items():
        if (value := config.get(option, values[0])) not in values:
            raise CheckpointRefused(f"{name} has {option} {value!r}; served is {' or '.join(map(repr, values))}")


def _expanded(layer: KerasLayer) -> Iterator[KerasLayer]:
    """The layer without its activation, and its activation."""
    kind, config = layer.kind, layer.config
    if kind not in _ACTIVATIONS:
        yield layer
    if kind in _ACTIVATIONS or kind == "Dense":
        options = {"activation": config.get("activation", _ACTIVATIONS.get(kind))}
        if kind == "LeakyReLU":
            options["negative_slope"] = float(config.get("negative_slope", config.get("alpha", 0.3)))
        if kind == "ELU":
            options["alpha"] = float(config.get("alpha", 1.0))
        if options["activation"] != "linear":
            yield KerasLayer("Activation", layer.name, options, ({},))
