"""The model in an ONNX file: PyTorch's arrays of its nodes, and the nodes in `onnx.reference` as its reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from onnx import NodeProto

from service.models.importing.model import Arrays, CheckpointModel, Numbers, Precision, Reference
from service.models.importing.onnx.graph import MOVING, Graph, Node, node_input, run_nodes
from service.models.importing.onnx.head import OnnxHead, find_head
from service.models.importing.onnx.layers import KINDS, ZEROS, OnnxLayer, node_name, read_layer, stacks
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, choose, refusing
from service.spec import ModelSpec, Nonlinearity


@refusing("the file's graph makes no sense")
def model_from_onnx(
    path: Path, *, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None
) -> CheckpointModel:
    """The RNN, GRU or LSTM that is meant; nodes that feed each other are one stack.

    layer is a node's name or a part of its path (`lstm` for `/lstm/LSTM`). Raises CheckpointRefused, or ChoiceNeeded.
    """
    graph = Graph.read(path)
    stack = _choose_stack(graph, layer)
    first = stack[0]
    spec = ModelSpec(
        kind=first.kind,
        input_size=int(first.w.shape[2]),
        hidden_size=first.hidden_size,
        num_layers=len(stack),
        nonlinearity=first.nonlinearity,
        bias=any(layer.b is not None for layer in stack),
        bidirectional=first.directions == 2,
    )
    if nonlinearity and spec.kind == "rnn" and nonlinearity != spec.nonlinearity:
        raise ChoiceNeeded(f"--nonlinearity {nonlinearity} contradicts the file, which says {spec.nonlinearity}")
    arrays: dict[str, Numbers] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for index, entry in enumerate(stack):
        for name, array, source in entry.arrays(index, bias=spec.bias):
            arrays[name], sources[name] = array, source
        for place, letter in ((5, "h0"), (6, "c0")):
            stored = graph.constant(node_input(entry.node, place))
            if stored is not None and np.any(stored):  # the service starts from zeros
                notes.append(f"{entry.name} starts from a stored {letter} that is not zero: requests must send it")
    if ZEROS in sources.values():
        notes.append("some layers have no bias; zeros were written")
    linear = find_head(graph, head) if head is not None else None
    used = [entry.node for entry in stack] + (linear.nodes if linear else [])
    if linear:
        if linear.weight.shape[1] != spec.output_size:
            raise ChoiceNeeded(
                f"--head has weights {linear.weight.shape}; outputs of the layer are {spec.output_size} wide"
            )
        spec = spec.with_linear_head(linear.weight.shape[0])
        arrays |= {"head.weight": linear.weight, "head.bias": linear.bias}
        sources |= {"head.weight": linear.weight_name, "head.bias": linear.bias_name}
        if linear.bias_name == ZEROS:
            notes.append("--head has no bias; zeros were written")
    others = [node for node in graph.nodes if node.op_type != "Constant" and not any(node is one for one in used)]
    others.sort(key=lambda node: node.op_type in MOVING)  # those that only move numbers come last
    return CheckpointModel(
        layer=first.name,
        spec=spec,
        arrays={name: torch.from_numpy(np.array(arrays[name])) for name in spec.weight_shapes()},
        sources=sources,
        reference=_reference(graph, stack, linear),
        reference_name=f"onnx.reference {first.node.op_type}",
        ignored=[f"{node.op_type} {node_name(node)}" for node in others],
        notes=notes,
    )


def _choose_stack(graph: Graph, wanted: str | None) -> list[OnnxLayer]:
    nodes = [node for node in graph.nodes if node.op_type in KINDS]
    if not nodes:
        raise CheckpointRefused(
            f"no RNN, GRU or LSTM node among the {len(graph.nodes)} nodes of the file's main graph; "
            "layers that an exporter has taken apart into smaller operators cannot be imported"
        )
    layers: list[OnnxLayer] = []
    for node in nodes:
        try:
            layers.append(read_layer(graph, node))
        except CheckpointRefused:
            # A stack with a refused layer in it is not a smaller model.
            if _fits(node_name(node), wanted):
                raise
    grouped = stacks(graph, layers)
    found = [stack for stack in grouped if any(_fits(layer.name, wanted) for layer in stack)]
    if len(found) == 1:
        return found[0]
    name = choose([stack[0].name for stack in grouped], wanted, option="--layer", what="recurrent layer")
    return next(stack for stack in grouped if stack[0].name == name)


def _fits(name: str, wanted: str | None) -> bool:
    return wanted is None or wanted in (name, *name.split("/"))


def _reference(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None) -> Reference:
    """Runs sequences through the nodes of a stack and of its head."""

    @refusing("the file's nodes do not run in onnx.reference")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        results: list[Arrays] = []
        for sequence in sequences:
            outputs, *states = (sequence[name].astype(precision) for name in ("x", "h", "c") if name in sequence)
            finals = [np.empty_like(state) for state in states]
            for index, layer in enumerate(stack):
                own = slice(index * layer.directions, (index + 1) * layer.directions)
                outputs, *last = _run_layer(graph, layer, outputs, [state[own] for state in states])
                for final, state in zip(finals, last, strict=True):
                    final[own] = state
            result = {"outputs": outputs, **dict(zip(("h", "c"), finals, strict=False))}
            results.append(result | ({"predictions": head.run(graph, outputs)} if head else {}))
        return results

    return run


def _run_layer(graph: Graph, layer: OnnxLayer, x: Numbers, states: list[Numbers]) -> list[Numbers]:
    """One node of the file on one sequence, x (T, ·) and states (D, H): outputs (T, D·H) and the final states."""
    node: Node = NodeProto()
    node.CopyFrom(layer.node)
    del node.input[:], node.output[:]
    state_names = ["h", "c"][: len(states)]
    node.input.extend(["x", "w", "r", "b" if layer.b is not None else "", "", *state_names])
    node.output.extend(["y", *(f"y_{name}" for name in state_names)])
    # With layout 1 the batch, of one here, comes first; with layout 0 it follows time or direction.
    batch = 0 if layer.layout else 1
    feed = {"x": np.expand_dims(x, batch), "w": layer.w.astype(x.dtype), "r": layer.r.astype(x.dtype)}
    if layer.b is not None:
        feed["b"] = layer.b.astype(x.dtype)
    feed |= {name: np.expand_dims(state, batch) for name, state in zip(state_names, states, strict=True)}
    outputs, *last = run_nodes(graph.model, [node], feed, list(node.output))
    # (T, D, 1, H) or, with layout 1, (1, T, D, H)
    return [outputs.reshape(len(x), -1), *(np.squeeze(state, batch) for state in last)]
