"""Finds the recurrent layers in an ONNX file and makes PyTorch's arrays of them, with onnx's own reference to check."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from service.models.importing.found import (
    CheckpointRefused,
    ChoiceNeeded,
    Found,
    Numbers,
    Precision,
    Probe,
    Reference,
    Results,
    choose,
)
from service.models.importing.onnx.chain import stacks
from service.models.importing.onnx.graph import Graph, Node, onnx_package, run_nodes
from service.models.importing.onnx.head import OnnxHead, find_head
from service.models.importing.onnx.layer import KINDS, OnnxLayer, node_name, read_layer
from service.models.printable import printable
from service.spec import ModelSpec, Nonlinearity

_MOVING = (
    *("Cast", "Concat", "ConstantOfShape", "Expand", "Identity", "Reshape", "Shape", "Slice", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)


def find_onnx_layer(path: Path, *, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None) -> Found:
    """The RNN, GRU or LSTM of an ONNX file that is meant; nodes that feed each other are one stack.

    layer is a node's name or a part of its path (`lstm` for `/lstm/LSTM`). Raises CheckpointRefused with what PyTorch
    cannot express, or ChoiceNeeded.
    """
    try:
        return _find(path, layer, nonlinearity, head)
    except CheckpointRefused:
        raise
    except Exception as error:  # attributes and shapes of a damaged file can be anything
        reason = printable(f"{type(error).__name__} {error}")
        raise CheckpointRefused(f"the file's graph makes no sense: {reason}") from None


def _find(path: Path, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None) -> Found:
    graph = Graph.read(path)
    layers, refused = _read_layers(graph)
    grouped = stacks(graph, layers)
    stack = _chosen(grouped, refused, layer)
    spec = _spec(stack)
    if nonlinearity and spec.kind == "rnn" and nonlinearity != spec.nonlinearity:
        raise ChoiceNeeded(f"--nonlinearity {nonlinearity} contradicts the file, which says {spec.nonlinearity}")
    arrays = _arrays(stack, spec)
    notes = _state_notes(graph, stack)
    if spec.bias and any(entry.b is None for entry in stack):
        notes.append("some layers have no bias; zeros were written")
    linear = find_head(graph, head) if head is not None else None
    if linear is not None:
        spec = _add_head(spec, arrays, linear, notes)
    used = [entry.node for entry in stack] + (linear.nodes if linear else [])
    return Found(
        layer=stack[0].name,
        spec=spec,
        arrays={name: torch.from_numpy(np.array(arrays[name])) for name in spec.weight_shapes()},
        sources=_sources(stack, spec, linear),
        reference=_reference(graph, stack, linear),
        reference_name=f"onnx.reference {stack[0].node.op_type}",
        ignored=_ignored(graph, used),
        notes=notes,
    )


def _ignored(graph: Graph, used: list[Node]) -> list[str]:
    """The other nodes; those that only move numbers about come last."""
    others = [node for node in graph.nodes if node.op_type != "Constant" and not any(node is one for one in used)]
    others.sort(key=lambda node: node.op_type in _MOVING)
    return [f"{node.op_type} {printable(node_name(node))}" for node in others]


def _read_layers(graph: Graph) -> tuple[list[OnnxLayer], dict[str, CheckpointRefused]]:
    """The layers that PyTorch can express, and the reason for each other one by its name."""
    layers: list[OnnxLayer] = []
    refused: dict[str, CheckpointRefused] = {}
    for node in graph.nodes:
        if node.op_type in KINDS:
            try:
                layers.append(read_layer(graph, node))
            except CheckpointRefused as error:
                refused[node_name(node)] = error
    if not layers and not refused:
        raise CheckpointRefused(
            f"no RNN, GRU or LSTM node among the {len(graph.nodes)} nodes of the file's main graph; "
            "layers that an exporter has taken apart into smaller operators cannot be imported"
        )
    return layers, refused


def _chosen(
    grouped: list[list[OnnxLayer]], refused: dict[str, CheckpointRefused], wanted: str | None
) -> list[OnnxLayer]:
    names = {entry.name: stack for stack in grouped for entry in stack}
    if wanted is not None:
        fitting = [name for name in [*names, *refused] if name == wanted or wanted in name.split("/")]
        found = list({id(names[name]): names[name] for name in fitting if name in names}.values())
        bad = [refused[name] for name in fitting if name in refused]
        if bad:
            raise bad[0]
        if len(found) == 1:
            return found[0]
    elif refused:
        # A stack with a refused layer in it is not a smaller model.
        raise next(iter(refused.values()))
    first = [stack[0].name for stack in grouped]
    name = choose(first, wanted, option="--layer", what="recurrent layer")
    return names[name]


def _spec(stack: list[OnnxLayer]) -> ModelSpec:
    first = stack[0]
    return ModelSpec(
        kind=first.kind,
        input_size=int(first.w.shape[2]),
        hidden_size=first.hidden_size,
        num_layers=len(stack),
        nonlinearity=first.nonlinearity,
        bias=any(layer.b is not None for layer in stack),
        bidirectional=first.directions == 2,
    )


def _arrays(stack: list[OnnxLayer], spec: ModelSpec) -> dict[str, Numbers]:
    arrays: dict[str, Numbers] = {}
    for index, layer in enumerate(stack):
        arrays |= layer.arrays(index, bias=spec.bias)
    return arrays


def _add_head(spec: ModelSpec, arrays: dict[str, Numbers], head: OnnxHead, notes: list[str]) -> ModelSpec:
    rows, width = head.weight.shape
    if width != spec.output_size:
        raise ChoiceNeeded(f"--head has weights {head.weight.shape}; outputs of the layer are {spec.output_size} wide")
    arrays["head.weight"] = head.weight
    if head.bias is None:
        notes.append("--head has no bias; zeros were written")
    bias = np.zeros(rows, head.weight.dtype) if head.bias is None else head.bias
    arrays["head.bias"] = np.array(np.broadcast_to(bias, (rows,)))
    return replace(spec, out_features=rows)


def _sources(stack: list[OnnxLayer], spec: ModelSpec, head: OnnxHead | None) -> dict[str, str]:
    letters = {"weight_ih": 1, "weight_hh": 2, "bias_ih": 3, "bias_hh": 3}
    sources: dict[str, str] = {}
    for name in spec.weight_shapes():
        if name.startswith("head."):
            sources[name] = (head.weight_name if name == "head.weight" else head.bias_name) if head else ""
            continue
        which, _, suffix = name.rpartition("_l")
        node = stack[int(suffix.partition("_")[0])].node
        place = letters[which]
        sources[name] = node.input[place] if len(node.input) > place and node.input[place] else "(zeros)"
    return sources


def _state_notes(graph: Graph, stack: list[OnnxLayer]) -> list[str]:
    """Initial states that the graph itself sets: a request says its own, and zeros are the default."""
    notes = []
    for layer in stack:
        for place, letter in ((5, "h0"), (6, "c0")):
            value = layer.node.input[place] if len(layer.node.input) > place else ""
            stored = graph.constant(value) if value else None
            if stored is not None and np.any(stored):
                notes.append(
                    f"{printable(layer.name)} starts from a stored {letter} that is not zero: requests must send it"
                )
    return notes


def _reference(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None) -> Reference:
    def run(probes: Sequence[Probe], precision: Precision) -> list[Results]:
        try:
            return [_run(graph, stack, head, probe, precision) for probe in probes]
        except Exception as error:  # onnx's reference may refuse what its checker would have
            reason = printable(str(error) or type(error).__name__)
            raise CheckpointRefused(f"the file's nodes do not run in onnx.reference: {reason}") from None

    return run


def _run(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None, probe: Probe, precision: Precision) -> Results:
    outputs, directions = probe.x.astype(precision), stack[0].directions
    finals: tuple[list[Numbers], list[Numbers]] = ([], [])
    for index, layer in enumerate(stack):
        own = slice(index * directions, (index + 1) * directions)
        states = [state[own].astype(precision) for state in (probe.h, probe.c) if state is not None]
        outputs, *last = _run_layer(graph, layer, outputs, states)
        for final, state in zip(finals, last, strict=False):
            final.append(state)
    predictions = head.run(graph, outputs) if head else None
    return Results(outputs, np.concatenate(finals[0]), np.concatenate(finals[1]) if finals[1] else None, predictions)


def _run_layer(graph: Graph, layer: OnnxLayer, x: Numbers, states: list[Numbers]) -> list[Numbers]:
    """One node of the file on one sequence, x (T, ·) and states (D, H): outputs (T, D·H) and the final states."""
    names = ["x", "w", "r", "b", "", "h", "c"][: 5 + len(states)]
    results = ["y", "y_h", "y_c"][: 1 + len(states)]
    node: Node = onnx_package().NodeProto()
    node.CopyFrom(layer.node)
    del node.input[:], node.output[:]
    node.input.extend(name if name != "b" or layer.b is not None else "" for name in names)
    node.output.extend(results)
    # With layout 1 the batch, of one here, comes first; with layout 0 it follows time or direction.
    batch = 0 if layer.layout else 1
    feed = {"x": np.expand_dims(x, batch), "w": layer.w.astype(x.dtype), "r": layer.r.astype(x.dtype)}
    if layer.b is not None:
        feed["b"] = layer.b.astype(x.dtype)
    feed |= {name: np.expand_dims(state, batch) for name, state in zip(("h", "c"), states, strict=False)}
    outputs, *last = run_nodes(graph.model, [node], feed, results)
    # (T, D, 1, H) or, with layout 1, (1, T, D, H)
    flat = outputs.reshape(len(x), -1)
    return [flat, *(np.squeeze(state, batch) for state in last)]
