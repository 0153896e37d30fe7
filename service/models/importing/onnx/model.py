"""The model in an ONNX file: PyTorch's arrays of its nodes, and the nodes in `onnx.reference` as its reference."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from service.models.importing.model import Arrays, CheckpointModel, Numbers, Precision, Reference
from service.models.importing.onnx.graph import MOVING, Graph, Known, Node, node_input
from service.models.importing.onnx.head import OnnxHead, find_head, reads_last_step
from service.models.importing.onnx.layers import KINDS, ZEROS, OnnxLayer, initial_states, node_name, read_layer, stacks
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
    stack, known = _choose_stack(graph, layer)
    first = stack[0]
    spec = ModelSpec(
        kind=first.kind,
        input_size=int(first.w.shape[2]),
        hidden_size=first.hidden_size,
        num_layers=len(stack),
        nonlinearity=first.nonlinearity,
        bias=any(node_input(node, 3) for layer in stack for node in layer.nodes),
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
        for letter, how in initial_states(graph, entry, known).items():  # the service starts from zeros
            notes.append(f"{entry.name} starts from a {how} {letter} that is not zero: requests must send it")
        lengths = f"{entry.name} has lengths of its rows (sequence_lens): requests must send rows cut to them"
        notes += [lengths] if node_input(entry.nodes[0], 4) else []
    if ZEROS in sources.values():
        notes.append("some layers have no bias; zeros were written")
    linear = find_head(graph, head) if head is not None else None
    used = [node for entry in stack for node in entry.nodes] + (linear.nodes if linear else [])
    if linear:
        if linear.weight.shape[1] != spec.output_size:
            raise ChoiceNeeded(
                f"--head has weights {linear.weight.shape}; outputs of the layer are {spec.output_size} wide"
            )
        if reads_last_step(graph, linear, stack[-1], known):
            notes.append("the file has its head over the last step alone: its result is the last of the predictions")
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
        reference=_reference(graph, stack, linear, known),
        reference_name=f"onnx.reference {first.nodes[0].op_type}",
        ignored=[f"{node.op_type} {node_name(node)}" for node in others],
        notes=notes,
    )


def _choose_stack(graph: Graph, wanted: str | None) -> tuple[list[OnnxLayer], Known]:
    nodes = [node for node in graph.nodes if node.op_type in KINDS]
    if not nodes:
        everywhere = (node for place in (graph.model.graph, *graph.model.functions) for node in _all_nodes(place.node))
        hidden = [f"{node.op_type} {node_name(node)}" for node in everywhere if node.op_type.endswith(tuple(KINDS))]
        why = "an exporter has taken its layers apart into smaller operators: import the model's state_dict"
        if hidden:
            why = f"{hidden[0]} is quantized, or in a branch, loop or function: export the model without that"
        raise CheckpointRefused(
            f"no RNN, GRU or LSTM node among the {len(graph.nodes)} of the file's main graph; {why}"
        )
    layers: list[OnnxLayer] = []
    for node in nodes:
        try:
            layers.append(read_layer(graph, node))
        except CheckpointRefused:
            # A stack with a refused layer in it is not a smaller model.
            if _fits(node, wanted):
                raise
    grouped, known = stacks(graph, layers)
    found = [stack for stack in grouped if any(_fits(node, wanted) for layer in stack for node in layer.nodes)]
    if len(found) != 1:
        name = choose([stack[0].name for stack in grouped], wanted, option="--layer", what="recurrent layer")
        found = [stack for stack in grouped if stack[0].name == name]
    if found[0][0].reverse:
        what = f"{found[0][0].nodes[0].op_type} node {found[0][0].name}"
        raise CheckpointRefused(f"{what}: direction 'reverse' alone does not exist in PyTorch")
    return found[0], known


def _all_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g.node)


def _fits(node: Node, wanted: str | None) -> bool:
    return wanted is None or wanted in (node_name(node), *node_name(node).split("/"))


def _reference(graph: Graph, stack: list[OnnxLayer], head: OnnxHead | None, followed: Known) -> Reference:
    """Runs sequences through the file's graph, from the inputs of the stack to its outputs and predictions.

    A graph that was exported for sequences of one length cannot run others: its layers and its head run one by one, as
    they were followed at that length.
    """
    steps, batch, _ = stack[0].outputs(followed).shape
    whole = {steps, batch} <= graph.open_sizes
    graph = replace(graph, operators=(*graph.operators, *KINDS, "Gemm", "MatMul"), max_values=math.inf)
    nodes = [node for layer in stack for node in layer.nodes]
    for node in nodes:
        states = (f"{output} at the start" for output in node.output[1:])
        node.input[:] = [*[*node.input, ""][:4], "", *states]
    nodes += head.nodes if head else []
    stored = {name: graph.constant(name) for node in nodes for name in node.input}

    @refusing("the file's nodes do not run in onnx.reference")
    def run(sequences: Sequence[Arrays], precision: Precision) -> list[Arrays]:
        weights: Known = {name: array.astype(precision) for name, array in stored.items() if array is not None}
        results: list[Arrays] = []
        for sequence in sequences:
            outputs, *states = (sequence[name].astype(precision) for name in ("x", "h", "c") if name in sequence)
            known = graph.inputs({steps: len(outputs), batch: 1}) | weights
            outputs = outputs[:, None]
            finals = [np.empty_like(state) for state in states]
            for index, layer in enumerate(stack):
                if index == 0 or not whole:
                    known |= {node.input[0]: layer.turned(outputs) for node in layer.nodes}
                own = slice(index * layer.directions, (index + 1) * layer.directions)
                known |= layer.named([node.input[5:] for node in layer.nodes], [state[own, None] for state in states])
                for node in layer.nodes:
                    graph.value(node.output[0], known)
                outputs = layer.outputs(known)
                for place, final in enumerate(finals, 1):
                    final[own] = layer.result(place, known)[:, 0]
            result = {"outputs": outputs[:, 0], **dict(zip(("h", "c"), finals, strict=False))}
            if head:
                if not whole:
                    known[head.nodes[0].input[0]] = outputs[:, 0]
                predictions = np.asarray(graph.value(head.nodes[-1].output[0], known))
                result["predictions"] = predictions.reshape(-1, predictions.shape[-1])
            results.append(result)
        return results

    return run
