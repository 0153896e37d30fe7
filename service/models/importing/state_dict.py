"""Finds the recurrent layer in a state_dict, and what it is, by the names and shapes of its arrays."""

import re
from collections.abc import Mapping
from itertools import chain

import torch

from service.models.importing.checkpoint import Tensors, check_tensor
from service.models.importing.found import CheckpointRefused, ChoiceNeeded, Found, choose
from service.models.importing.torch_reference import reference_name, torch_reference
from service.models.printable import printable
from service.spec import GATES, Kind, ModelSpec, Nonlinearity

_ARRAY = re.compile(r"(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?:_l([0-9]{1,4})(_reverse)?)?")

TOP = "."
"""What the layer is called whose arrays have no prefix."""

Group = dict[str, torch.Tensor]


def find_layer(
    tensors: Tensors, *, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None, file_bytes: int
) -> Found:
    """The recurrent layer that is meant, and its head.

    layer is the prefix of its names (`encoder.lstm`, or any ending of it), head that of a linear layer over its
    outputs; nonlinearity is asked for where shapes cannot tell. Raises CheckpointRefused, or ChoiceNeeded.
    """
    groups = _groups(tensors.by_name)
    if not groups:
        raise CheckpointRefused(
            f"no recurrent layer: none of the file's {len(tensors.by_name)} tensors is called weight_ih_l0 "
            "(RNN, GRU, LSTM) or weight_ih (RNNCell, GRUCell, LSTMCell), with or without a prefix"
        )
    name = choose(list(groups), layer, option="--layer", what="recurrent layer")
    prefix = "" if name == TOP else f"{name}."
    sources = {array: f"{prefix}{array}" for array in groups[name]}
    cell = not any("_l" in array for array in sources)
    if cell:
        sources = {f"{array}_l0": source for array, source in sources.items()}
    if head is not None:
        sources |= _head_sources(tensors.by_name, head)
    for source in sources.values():
        check_tensor(source, tensors.by_name[source], file_bytes)
    arrays = {array: tensors.by_name[source] for array, source in sources.items()}
    spec = infer_spec(arrays, name, nonlinearity)
    notes = _fill_head_bias(arrays, f"--head {printable(head)}") if head is not None else []
    _check(spec, arrays, sources)
    if nonlinearity and spec.kind != "rnn":
        notes.append(f"--nonlinearity {nonlinearity} was ignored: only an RNN has a choice of it")
    ignored = [
        _described(other, tensor, spec)
        for other, tensor in tensors.by_name.items()
        if other not in set(sources.values())
    ] + [printable(other) for other in tensors.others]
    return Found(
        layer=name,
        spec=spec,
        arrays={array: arrays[array] for array in spec.weight_shapes()},
        sources=sources,
        reference=torch_reference(spec, arrays, cell=cell),
        reference_name=reference_name(spec, cell=cell),
        ignored=ignored,
        notes=notes,
    )


def infer_spec(arrays: Mapping[str, torch.Tensor], name: str, nonlinearity: Nonlinearity | None) -> ModelSpec:
    """Kind and sizes from names and shapes. Raises CheckpointRefused, or ChoiceNeeded for an RNN's nonlinearity."""
    ih, hh = (_matrix(arrays, f"weight_{which}_l0") for which in ("ih", "hh"))
    projection = _matrix(arrays, "weight_hr_l0") if "weight_hr_l0" in arrays else None
    hidden = (projection if projection is not None else hh).shape[1]
    kinds: list[Kind] = [kind for kind, gates in GATES.items() if hidden and hh.shape[0] == gates * hidden]
    if not kinds:
        raise CheckpointRefused(
            f"weight_hh_l0 has {hh.shape[0]} rows and hidden_size is {hidden}; "
            "an RNN has hidden_size rows, a GRU 3 times and an LSTM 4 times as many"
        )
    kind = kinds[0]
    if kind == "rnn" and nonlinearity is None:
        raise ChoiceNeeded(
            f"{'the layer' if name == TOP else printable(name)} is an RNN, and weights do not tell the nonlinearity: "
            "say --nonlinearity tanh (PyTorch's default) or --nonlinearity relu"
        )
    indexed = [match for match in map(_ARRAY.fullmatch, arrays) if match and match[1]]
    return ModelSpec(
        kind=kind,
        input_size=ih.shape[1],
        hidden_size=hidden,
        num_layers=1 + max(int(match[1]) for match in indexed),
        nonlinearity=nonlinearity if kind == "rnn" and nonlinearity else "tanh",
        bias=any(array.startswith("bias") for array in arrays),
        bidirectional=any(match[2] for match in indexed),
        proj_size=projection.shape[0] if projection is not None else 0,
        out_features=_matrix(arrays, "head.weight").shape[0] if "head.weight" in arrays else None,
    )


def _groups(tensors: Mapping[str, torch.Tensor]) -> dict[str, Group]:
    """The tensors of every recurrent layer, by its prefix."""
    groups: dict[str, Group] = {}
    for name, tensor in tensors.items():
        prefix, _, array = name.rpartition(".")
        if _ARRAY.fullmatch(array):
            groups.setdefault(prefix or TOP, {})[array] = tensor
    return groups


def _head_sources(tensors: Mapping[str, torch.Tensor], head: str) -> dict[str, str]:
    linear = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.dim() == 2
    ]
    chosen = choose(linear, head.removesuffix(".weight"), option="--head", what="linear layer")
    sources = {"head.weight": f"{chosen}.weight"}
    if f"{chosen}.bias" in tensors:
        sources["head.bias"] = f"{chosen}.bias"
    return sources


def _fill_head_bias(arrays: Group, option: str) -> list[str]:
    if "head.bias" in arrays:
        return []
    arrays["head.bias"] = torch.zeros(arrays["head.weight"].shape[0])
    return [f"{option} has no bias; zeros were written"]


def _matrix(arrays: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in arrays:
        raise CheckpointRefused(f"{name} is missing beside {', '.join(sorted(arrays)[:4])}")
    if arrays[name].dim() != 2:
        raise CheckpointRefused(f"{name} has shape {tuple(arrays[name].shape)}; expected two dimensions")
    return arrays[name]


def _check(spec: ModelSpec, arrays: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> None:
    expected = spec.weight_shapes()
    what = f"{'bidirectional ' if spec.bidirectional else ''}{spec.kind} of {spec.num_layers} layers"
    for name in chain(expected, arrays):
        if name not in arrays:
            raise CheckpointRefused(f"{name} is missing for a {what}")
        if name not in expected:
            raise CheckpointRefused(f"{printable(sources[name])} does not belong to a {what}")
        if tuple(arrays[name].shape) != expected[name]:
            shown = printable(sources.get(name, name))
            raise CheckpointRefused(
                f"{shown} has shape {tuple(arrays[name].shape)}; a {what} with input_size {spec.input_size}, "
                f"hidden_size {spec.hidden_size} needs {expected[name]}"
            )


def _described(name: str, tensor: torch.Tensor, spec: ModelSpec) -> str:
    fits = name.endswith(".weight") and tensor.dim() == 2 and tensor.shape[1] == spec.output_size
    hint = f", could be --head {printable(name.removesuffix('.weight'))}" if fits and not spec.out_features else ""
    return f"{printable(name)} {tuple(tensor.shape)}{hint}"
