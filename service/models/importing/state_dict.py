"""Finds the recurrent layer in a state_dict, and its kind and sizes, by the names and shapes of the arrays."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

import torch

from service.models.importing.model import ZEROS, CheckpointModel, Stored, torch_reference
from service.models.importing.named_layers import file_layers, named_layers, suggested
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, choose
from service.models.importing.tensors import Tensors, check_tensor
from service.models.weights import expected_shapes
from service.spec import GATES, ModelSpec, Nonlinearity, Pooling

_ARRAY = re.compile(r"(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?:_l([0-9]{1,4})(_reverse)?)?")
# Endings of what a weight is computed from at each call, and what makes layer store the weight itself.
_FOLDED = {
    "_raw": "layer.module.{0} = torch.nn.Parameter(layer.{0}_raw)",
    "_mask": "torch.nn.utils.prune.remove(layer, '{0}')",
    "_u": "torch.nn.utils.remove_spectral_norm(layer, '{0}')",
    ".original": "torch.nn.utils.parametrize.remove_parametrizations(layer, '{0}')",
}
_PARTS = re.compile(r"(.*?)(?:parametrizations\.)?(weight\w*?)(_raw|_mask|_u|\.original)")
_NORMED = re.compile(r"(.*?)(?:parametrizations\.)?(weight\w*?)(_g|\.original0)")
_TOP = "."  # how --layer names the layer whose arrays have no prefix


def model_from_tensors(
    tensors: Tensors,
    *,
    layer: str | None,
    nonlinearity: Nonlinearity | None,
    head: str | None,
    file_bytes: int,
    front: str | None = None,
    pooling: Pooling = "none",
) -> CheckpointModel:
    """The recurrent layer that is meant, with its front, pooling and head.

    layer is the prefix of its names (`encoder.lstm`, or any ending of it), front and head are as in `named_layers`;
    nonlinearity is needed for an RNN. Raises CheckpointRefused, or ChoiceNeeded.
    """
    in_file = tensors.by_name
    by_name, notes = _normed(in_file, file_bytes)
    tensors = replace(tensors, by_name=by_name)
    layers = _layers(by_name)
    if not layers:
        _refuse_parts(by_name, None)
        _refuse_quantized(tensors)
        raise CheckpointRefused(
            f"no recurrent layer: none of the file's {len(by_name)} tensors is called weight_ih_l0 "
            "(RNN, GRU, LSTM) or weight_ih (RNNCell, GRUCell, LSTMCell), with or without a prefix"
        )
    name = choose(list(layers), layer, option="--layer", what="recurrent layer")
    prefix = "" if name == _TOP else f"{name}."
    _refuse_parts(by_name, prefix)
    recorded = tensors.modules[name].options if name in tensors.modules else {}
    cell = not any("_l" in array for array in layers[name])
    stored = {
        f"{array}_l0" if cell else array: Stored(by_name[f"{prefix}{array}"], f"{prefix}{array}")
        for array in layers[name]
    }
    said = recorded.get("nonlinearity")
    spec = _infer_spec(stored, name, said if said in get_args(Nonlinearity) else nonlinearity)
    if nonlinearity and spec.kind == "rnn" and nonlinearity != spec.nonlinearity:
        raise ChoiceNeeded(f"--nonlinearity {nonlinearity} contradicts the file, which says {spec.nonlinearity}")
    if nonlinearity and spec.kind != "rnn":
        notes.append(f"--nonlinearity {nonlinearity} was ignored: only an RNN has a choice of it")
    if recorded.get("batch_first") is False and not cell:
        notes.append(f"{name} has batch_first False: requests are batch first, or say batch_first false")
    if pooling != "none" and head is None:
        raise ChoiceNeeded(f"--pooling {pooling} says what a head reads: name its layers with --head")
    spec = replace(spec, pooling=pooling)
    others = file_layers(tensors, spec.input_size)
    before, of_front = named_layers("front", front, others, spec)
    after, of_head = named_layers("head", head, others, spec)
    spec = replace(spec, front=before, head=after)
    stored |= of_front | of_head
    named = dict.fromkeys(source for _, source in stored.values())
    used = {source.rpartition(".")[0] for source in named}
    for owner in used - {name}:
        _refuse_parts(by_name, f"{owner}.")
    for source in filter(in_file.__contains__, named):
        check_tensor(source, in_file[source], file_bytes)
    if ZEROS in named:
        notes.append(f"--head {head} has no bias; zeros were written")
    _check(spec, stored)
    left_out = [str(other) for other in others.values() if other.arrays and other.name not in used]
    left_out += [f"{other} (recurrent)" for other in layers if other != name]
    ignored = [f"{other} {tuple(tensor.shape)}" for other, tensor in by_name.items() if other not in named]
    if options := suggested(others, spec):
        notes.append(f"by their widths more layers fit: {' '.join(options)}, with the activations between them")
    reference, reference_name = torch_reference(spec, {array: values for array, (values, _) in stored.items()})
    return CheckpointModel(
        layer="" if name == _TOP else name,
        spec=spec,
        stored=stored,
        reference=reference,
        reference_name=reference_name,
        ignored=ignored + tensors.others,
        notes=notes,
        left_out=left_out,
    )


def _normed(tensors: Mapping[str, torch.Tensor], file_bytes: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors with weight norm folded, g·v/‖v‖ in float64, in either form of PyTorch; and notes of it."""
    folded, notes = dict(tensors), []
    for name, g in tensors.items():
        if parts := _NORMED.fullmatch(name):
            other = name.removesuffix(parts[3]) + {"_g": "_v", ".original0": ".original1"}[parts[3]]
            v = tensors.get(other)
            if v is None or g.dim() not in (0, v.dim()):
                continue
            check_tensor(name, g, file_bytes)
            check_tensor(other, v, file_bytes)
            axes = [axis for axis in range(v.dim()) if not g.dim() or g.shape[axis] == 1]
            del folded[name], folded[other]
            folded[f"{parts[1]}{parts[2]}"] = v.double() * (g.double() / v.double().norm(dim=axes, keepdim=True))
            notes.append(f"{parts[1]}{parts[2]} is g·v/‖v‖ of its weight norm")
    return folded, notes


def _refuse_quantized(tensors: Tensors) -> None:
    for name in [*tensors.others, *(f"{name} {module.type}" for name, module in tensors.modules.items())]:
        if "_all_weight_values" in name or ".quantized." in name:
            layer = name.split("._all")[0].split(" ")[0]
            raise CheckpointRefused(f"layer {layer} is quantized; import the model as it was before quantization")


def _layers(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The names of every recurrent layer's arrays, by their prefix."""
    layers: dict[str, list[str]] = {}
    for name in tensors:
        prefix, _, array = name.rpartition(".")
        if _ARRAY.fullmatch(array):
            layers.setdefault(prefix or _TOP, []).append(array)
    return layers


def _refuse_parts(names: Iterable[str], prefix: str | None) -> None:
    """Raises CheckpointRefused where a layer computes a weight from others: what is under its name may be old."""
    for parts in filter(None, map(_PARTS.fullmatch, names)):
        if prefix in (parts[1], f"{parts[1]}module.") or (prefix is None and "weight_" in parts[2]):
            how = _FOLDED[parts[3]].format(parts[2])
            raise CheckpointRefused(f"{parts[2]} is computed from {parts[0]} at each call; in Python, store it: {how}")


def _infer_spec(stored: Mapping[str, Stored], name: str, nonlinearity: Nonlinearity | None) -> ModelSpec:
    ih, hh = (_matrix(stored, f"weight_{which}_l0") for which in ("ih", "hh"))
    projection = _matrix(stored, "weight_hr_l0") if "weight_hr_l0" in stored else None
    hidden = (projection if projection is not None else hh).shape[1]
    kind = next((kind for kind, gates in GATES.items() if hidden and hh.shape[0] == gates * hidden), None)
    if kind is None:
        raise CheckpointRefused(
            f"weight_hh_l0 has {hh.shape[0]} rows and hidden_size is {hidden}; "
            "an RNN has hidden_size rows, a GRU 3 times and an LSTM 4 times as many"
        )
    if kind == "rnn" and nonlinearity is None:
        raise ChoiceNeeded(
            f"{'the layer' if name == _TOP else name} is an RNN, and weights do not tell the nonlinearity: "
            "say --nonlinearity tanh (PyTorch's default) or --nonlinearity relu"
        )
    indexed = [match for match in map(_ARRAY.fullmatch, stored) if match and match[1]]
    return ModelSpec(
        kind=kind,
        input_size=ih.shape[1],
        hidden_size=hidden,
        num_layers=1 + max(int(match[1]) for match in indexed),
        nonlinearity=nonlinearity if kind == "rnn" and nonlinearity else "tanh",
        bias=any(array.startswith("bias") for array in stored),
        bidirectional=any(match[2] for match in indexed),
        proj_size=projection.shape[0] if projection is not None else 0,
    )


def _matrix(stored: Mapping[str, Stored], name: str) -> torch.Tensor:
    if name not in stored:
        raise CheckpointRefused(f"{name} is missing beside {', '.join(sorted(stored)[:4])}")
    matrix: torch.Tensor = stored[name].values
    if matrix.dim() != 2:
        raise CheckpointRefused(f"{name} has shape {tuple(matrix.shape)}; expected two dimensions")
    return matrix


def _check(spec: ModelSpec, stored: Mapping[str, Stored]) -> None:
    """Raises CheckpointRefused in the file's words for what would be refused in the words of the model's folder."""
    expected = expected_shapes(spec, stored)
    what = f"{'bidirectional ' if spec.bidirectional else ''}{spec.kind} of {spec.num_layers} layers"
    for name in [*expected, *stored]:
        if name not in stored:
            raise CheckpointRefused(f"{name} is missing for a {what}")
        values, source = stored[name]
        if name not in expected:
            raise CheckpointRefused(f"{source} does not belong to a {what}")
        if tuple(values.shape) != expected[name]:
            raise CheckpointRefused(
                f"{source} has shape {tuple(values.shape)}; a {what} with input_size {spec.input_size}, "
                f"hidden_size {spec.hidden_size} needs {expected[name]}"
            )
