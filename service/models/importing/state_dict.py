"""Finds the recurrent layer in a state_dict, and its kind and sizes, by the names and shapes of the arrays."""

import re
from collections.abc import Iterable, Mapping

import torch

from service.models.importing.model import CheckpointModel, torch_reference
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, choose
from service.models.importing.tensors import Tensors, check_tensor
from service.spec import GATES, ModelSpec, Nonlinearity

_ARRAY = re.compile(r"(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?:_l([0-9]{1,4})(_reverse)?)?")
# Endings of what a weight is computed from at each call, and what makes layer store the weight itself.
_FOLDED = {
    "_g": "torch.nn.utils.remove_weight_norm(layer, '{0}')",
    "_raw": "layer.module.{0} = torch.nn.Parameter(layer.{0}_raw)",
    "_mask": "torch.nn.utils.prune.remove(layer, '{0}')",
    "_u": "torch.nn.utils.remove_spectral_norm(layer, '{0}')",
    ".original": "torch.nn.utils.parametrize.remove_parametrizations(layer, '{0}')",
}
_PARTS = re.compile(r"(.*?)(?:parametrizations\.)?(weight_[hir]+\w*?)(_g|_raw|_mask|_u|\.original0?)")
_TOP = "."  # how --layer names the layer whose arrays have no prefix


def model_from_tensors(
    tensors: Tensors, *, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None, file_bytes: int
) -> CheckpointModel:
    """The recurrent layer that is meant, with its head.

    layer is the prefix of its names (`encoder.lstm`, or any ending of it), head that of a linear layer over its
    outputs; nonlinearity is needed for an RNN. Raises CheckpointRefused, or ChoiceNeeded.
    """
    layers = _layers(tensors.by_name)
    if not layers:
        _refuse_parts(tensors.by_name, None)
        raise CheckpointRefused(
            f"no recurrent layer: none of the file's {len(tensors.by_name)} tensors is called weight_ih_l0 "
            "(RNN, GRU, LSTM) or weight_ih (RNNCell, GRUCell, LSTMCell), with or without a prefix"
        )
    name = choose(list(layers), layer, option="--layer", what="recurrent layer")
    prefix = "" if name == _TOP else f"{name}."
    _refuse_parts(tensors.by_name, prefix)
    cell = not any("_l" in array for array in layers[name])
    sources = {f"{array}_l0" if cell else array: f"{prefix}{array}" for array in layers[name]}
    if head is not None:
        sources |= _head_sources(tensors.by_name, head)
    for source in sources.values():
        check_tensor(source, tensors.by_name[source], file_bytes)
    arrays = {array: tensors.by_name[source] for array, source in sources.items()}
    spec = _infer_spec(arrays, name, nonlinearity)
    notes = []
    if head is not None and "head.bias" not in arrays:
        arrays["head.bias"] = torch.zeros(arrays["head.weight"].shape[0])
        notes.append(f"--head {head} has no bias; zeros were written")
    if nonlinearity and spec.kind != "rnn":
        notes.append(f"--nonlinearity {nonlinearity} was ignored: only an RNN has a choice of it")
    _check(spec, arrays, sources)
    used = set(sources.values())
    unused = [_described(other, tensor, spec) for other, tensor in tensors.by_name.items() if other not in used]
    reference, reference_name = torch_reference(spec, arrays)
    return CheckpointModel(
        layer="" if name == _TOP else name,
        spec=spec,
        arrays={array: arrays[array] for array in spec.weight_shapes()},
        sources=sources,
        reference=reference,
        reference_name=reference_name,
        ignored=unused + tensors.others,
        notes=notes,
    )


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
        if prefix in (None, parts[1], f"{parts[1]}module."):
            how = _FOLDED[parts[3].removesuffix("0")].format(parts[2])
            raise CheckpointRefused(f"{parts[2]} is computed from {parts[0]} at each call; in Python, store it: {how}")


def _head_sources(tensors: Mapping[str, torch.Tensor], head: str) -> dict[str, str]:
    matrices = [name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dim() == 2]
    linear = [name.removesuffix(".weight") for name in matrices]
    chosen = choose(linear, head.removesuffix(".weight"), option="--head", what="linear layer")
    sources = {f"head.{array}": f"{chosen}.{array}" for array in ("weight", "bias")}
    return {array: source for array, source in sources.items() if source in tensors}


def _infer_spec(arrays: Mapping[str, torch.Tensor], name: str, nonlinearity: Nonlinearity | None) -> ModelSpec:
    ih, hh = (_matrix(arrays, f"weight_{which}_l0") for which in ("ih", "hh"))
    projection = _matrix(arrays, "weight_hr_l0") if "weight_hr_l0" in arrays else None
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
    indexed = [match for match in map(_ARRAY.fullmatch, arrays) if match and match[1]]
    spec = ModelSpec(
        kind=kind,
        input_size=ih.shape[1],
        hidden_size=hidden,
        num_layers=1 + max(int(match[1]) for match in indexed),
        nonlinearity=nonlinearity if kind == "rnn" and nonlinearity else "tanh",
        bias=any(array.startswith("bias") for array in arrays),
        bidirectional=any(match[2] for match in indexed),
        proj_size=projection.shape[0] if projection is not None else 0,
    )
    return spec.with_linear_head(arrays["head.weight"].shape[0]) if "head.weight" in arrays else spec


def _matrix(arrays: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in arrays:
        raise CheckpointRefused(f"{name} is missing beside {', '.join(sorted(arrays)[:4])}")
    if arrays[name].dim() != 2:
        raise CheckpointRefused(f"{name} has shape {tuple(arrays[name].shape)}; expected two dimensions")
    return arrays[name]


def _check(spec: ModelSpec, arrays: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> None:
    expected = spec.weight_shapes()
    what = f"{'bidirectional ' if spec.bidirectional else ''}{spec.kind} of {spec.num_layers} layers"
    for name in [*expected, *arrays]:
        if name not in arrays:
            raise CheckpointRefused(f"{name} is missing for a {what}")
        if name not in expected:
            raise CheckpointRefused(f"{sources[name]} does not belong to a {what}")
        if tuple(arrays[name].shape) != expected[name]:
            raise CheckpointRefused(
                f"{sources[name]} has shape {tuple(arrays[name].shape)}; a {what} with input_size {spec.input_size}, "
                f"hidden_size {spec.hidden_size} needs {expected[name]}"
            )


def _described(name: str, tensor: torch.Tensor, spec: ModelSpec) -> str:
    fits = name.endswith(".weight") and tensor.dim() == 2 and tensor.shape[1] == spec.output_size
    hint = f", could be --head {name.removesuffix('.weight')}" if fits and not spec.out_features else ""
    return f"{name} {tuple(tensor.shape)}{hint}"
