"""`--front` and `--head` in words: layers by their names in the file, activations by PyTorch's.

`fc1,relu,fc2`; what a file does not tell is said with it: `layer_norm:norm:eps=0.001`, or `scale:scaler.npz`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file

from service.models.importing.model import Entry, Stored, convert_layers, weight_shape
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, choose, refusing
from service.models.importing.tensors import Tensors
from service.models.layer_config import LayerConfig
from service.spec import Activation, ChainLayer, LayerType, ModelSpec
from service.torch_layers import ARRAYS

_WITHOUT_ARRAYS = {*get_args(Activation), "normalize", "softmax", "log_softmax", "dropout"}
_CLASSES = {"LeakyReLU": "leaky_relu", "LogSoftmax": "log_softmax", "LayerNorm": "layer_norm"}
_CLASSES |= {"BatchNorm1d": "batch_norm", "Identity": "dropout", "ReLU": "relu", "ELU": "elu", "GELU": "gelu"}
_CLASSES |= {
    name.title(): name for name in ("embedding", "linear", "tanh", "sigmoid", "softplus", "softmax", "dropout")
}
_CLASSES |= {"SiLU": "silu"}


@dataclass(frozen=True, slots=True)
class FileLayer:
    """A layer in a file that front or head may have, and its arrays; recorded by a whole module, or told by the arrays.

    type may be the name of another class, or "" where the arrays do not tell it.
    """

    name: str
    type: str
    arrays: Mapping[str, Stored]
    options: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = False

    def __str__(self) -> str:
        shapes = [str(tuple(array.shape)) for array, _ in self.arrays.values()]
        return f"{self.name} ({' '.join([self.type, *shapes[:1]]).strip()})"

    @property
    def served(self) -> bool:
        return self.type in get_args(LayerType)

    @property
    def widths(self) -> tuple[int, int]:
        """What it takes and gives; an embedding takes 1, and a layer that leaves widths as they are 0."""
        shape = weight_shape(self.arrays)
        if len(shape) != 2:
            return 0, 0
        return (1, shape[1]) if self.type == "embedding" else (shape[1], shape[0])


def file_layers(tensors: Tensors, input_size: int) -> dict[str, FileLayer]:
    """All that are in a file, in its order."""
    arrays: dict[str, dict[str, Stored]] = {name: {} for name in tensors.modules}
    for name, tensor in tensors.by_name.items():
        layer, _, array = name.rpartition(".")
        if array in ARRAYS:
            arrays.setdefault(layer, {})[array] = Stored(tensor, name)
    found = {}
    for name, own in arrays.items():
        module = tensors.modules.get(name)
        if module is None:
            found[name] = FileLayer(name, _type(name, own, input_size), own)
        else:
            options = {key: value for key, value in module.options.items() if key in LayerConfig.model_fields}
            made = module.type.rpartition(".")[2]
            found[name] = FileLayer(name, _CLASSES.get(made, made), own, options, recorded=True)
    return found


def named_layers(
    part: str, text: str | None, layers: Mapping[str, FileLayer], spec: ModelSpec
) -> tuple[tuple[ChainLayer, ...], dict[str, Stored]]:
    """The layers that `--front` or `--head` names, and their arrays; none without a text.

    Raises ChoiceNeeded where one is not in the file or does not fit.
    """
    option, words = f"--{part}", [] if text is None else text.split(",")
    entries: list[Entry] = []
    for layer in (layer for word in words for layer in _named(option, word.strip(), layers)):
        if not layer.served:
            raise ChoiceNeeded(
                f"{option}: {layer} is no layer that is served; if it is one, say layer_norm:{layer.name}"
            )
        entry = {"type": layer.type, **layer.options}
        if entry.get("dim") == (2 if spec.pooling == "none" else 1):  # of (B, T, ·) or (B, ·): the last one
            del entry["dim"]
        entries.append((entry, layer.arrays))
    try:
        return convert_layers(part, entries, spec.input_size if part == "front" else spec.output_size)
    except ValueError as error:
        raise ChoiceNeeded(f"{option}: {error}") from None


def suggested(layers: Mapping[str, FileLayer], spec: ModelSpec) -> list[str]:
    """Options that name linear layers and embeddings which fit before and after the recurrent layer by their widths."""
    front: list[str] = []
    head: list[str] = []
    after, before = spec.output_size, spec.input_size
    for layer in layers.values():
        if layer.type == "linear" and layer.widths[0] == after:
            head.append(layer.name)
            after = layer.widths[1]
        elif head and layer.type in _WITHOUT_ARRAYS - {"dropout"}:
            head.append(layer.name)
    for layer in reversed([*layers.values()]):
        if layer.type in ("linear", "embedding") and layer.widths[1] == before and layer.name not in head:
            front.insert(0, layer.name)
            before = layer.widths[0]
    options = {"--front": "" if spec.front else ",".join(front), "--head": "" if spec.head else ",".join(head)}
    return [f'{option} "{names}"' for option, names in options.items() if names]


def _type(name: str, arrays: Mapping[str, Stored], input_size: int) -> str:
    """What a layer is by its arrays alone."""
    shape = weight_shape(arrays)
    if "running_mean" in arrays:
        return "batch_norm"
    if arrays.keys() == {"mean", "scale"}:
        return "scale"
    if len(shape) == 2:
        ids = "bias" not in arrays and ("emb" in name.lower() or shape[1] == input_size != shape[0])
        return "embedding" if ids else "linear"
    return "layer_norm" if len(shape) == 1 and "bias" in arrays else ""


def _named(option: str, word: str, layers: Mapping[str, FileLayer]) -> list[FileLayer]:
    """The layer that a word names: `[TYPE:]NAME[:argument=value]`, or TYPE; several for a recorded Sequential."""
    parts = word.split(":")
    options = {part.split("=", 1)[0]: _value(part.split("=", 1)[1]) for part in parts if "=" in part}
    *kinds, name = [part for part in parts if "=" not in part] or [""]
    if not name:
        raise ChoiceNeeded(f"{option} names no layer before, after or between its commas")
    usable = [layer.name for layer in layers.values() if layer.arrays or layer.served]
    if kinds == ["scale"] and Path(name).suffix in (".npz", ".safetensors"):
        return [FileLayer(name, "scale", _scaler(option, Path(name)), options)]
    if not any(layer == name or layer.endswith(f".{name}") for layer in usable):
        if name in _WITHOUT_ARRAYS or (name == "layer_norm" and all(layers[of].type != name for of in usable)):
            return [FileLayer(name, name, {}, options)]
        inside = [layer for layer in layers.values() if f".{name}." in f".{layer.name}"]
        inside = [layer for layer in inside if not any(other.startswith(f"{layer.name}.") for other in layers)]
        if inside and all(layer.recorded for layer in inside):
            return inside
        if inside:
            listed = ", ".join(map(str, inside[:8]))
            raise ChoiceNeeded(f"{option}: {name} holds {listed}; name each, and the activations between them")
        if name in get_args(LayerType):
            kinds, usable = [name], [layer for layer in usable if layers[layer].type == name]
            name = choose(usable, None, option=f"{option} {name}:NAME", what=f"{name} layer")
    chosen = layers[choose(usable, name, option=option, what="layer")]
    return [replace(chosen, type=kinds[0] if kinds else chosen.type, options={**chosen.options, **options})]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _scaler(option: str, path: Path) -> dict[str, Stored]:
    """The mean and scale of a file of numpy.savez or safetensors; `std` is another name of scale."""
    try:
        with refusing("it is no npz or safetensors file of numbers"):
            opened = np.load(path, allow_pickle=False) if path.suffix == ".npz" else load_file(path)
            found = {name.rstrip("_"): torch.from_numpy(np.asarray(opened[name]).astype(np.float64)) for name in opened}
    except CheckpointRefused as error:
        raise ChoiceNeeded(f"{option}: {path}: {error}") from None
    if "std" in found:
        found["scale"] = found["std"]
    if not {"mean", "scale"} <= found.keys():
        raise ChoiceNeeded(f"{option}: {path} has {', '.join(found) or 'nothing'}; expected mean and scale")
    return {name: Stored(found[name], f"{path}.{name}") for name in ("mean", "scale")}
