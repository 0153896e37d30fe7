"""The model in an ONNX file: PyTorch's arrays of its nodes, and the graph in `onnx.reference` as its reference."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from service.models.importing.model import ZEROS, CheckpointModel, Entry, Stored, convert_layers
from service.models.importing.onnx.blocks import Layer
from service.models.importing.onnx.front_and_head import NodeChain, Unread, find_front, find_head
from service.models.importing.onnx.graph import MOVING, Graph, Known, Node, node_input
from service.models.importing.onnx.layers import (
    KINDS,
    STATES,
    OnnxLayer,
    initial_states,
    node_name,
    read_layer,
    stacks,
    titled,
)
from service.models.importing.onnx.reference import graph_reference
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, choose, refusing
from service.spec import ModelSpec, Nonlinearity

_UNCHANGED = "(none)"  # in place of the name of a scale's zeros or ones, which change nothing


@refusing("the file's graph makes no sense")
def model_from_onnx(
    path: Path, *, layer: str | None, nonlinearity: Nonlinearity | None, head: str | None
) -> CheckpointModel:
    """The RNN, GRU or LSTM that is meant, and what the graph computes before and after it.

    Nodes that feed each other are one stack. layer is a node's name or a part of its path (`lstm` for `/lstm/LSTM`),
    head the linear layer at which the head ends, or an output. Raises CheckpointRefused, or ChoiceNeeded.
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
    stored: dict[str, Stored] = {}
    for index, entry in enumerate(stack):
        stored |= entry.arrays(index, bias=spec.bias)
    notes = [
        f"{entry.name} has lengths of its rows (sequence_lens): requests must send rows cut to them"
        for entry in stack
        if node_input(entry.nodes[0], 4)
    ]
    if any(source == ZEROS for _, source in stored.values()):
        notes.append("some layers have no bias; zeros were written")
    states = [initial_states(graph, entry, known) for entry in stack]
    notes += [
        f"{entry.name} starts from a computed {letter} that is not zero: requests must send it"
        for entry, (_, computed) in zip(stack, states, strict=True)
        for letter in computed
    ]
    for place, letter in STATES:
        start = np.concatenate([own[letter] for own, _ in states])
        if start.any():
            stored[letter] = Stored(start, node_input(first.nodes[0], place) or ZEROS)
    left_out: list[str] = []
    found: dict[str, NodeChain | None] = {}
    for part, find in (("front", find_front), ("head", partial(find_head, name=head))):
        try:
            found[part] = find(graph, stack, known)
        except Unread as error:
            left_out.append(error.node)
            notes.append(_unread_note(part, error, head))
    before, behind = found.get("front"), found.get("head")
    front, of_front = convert_layers("front", [*map(_entry, before.layers if before else ())], spec.input_size)
    head_layers, of_head = convert_layers("head", [*map(_entry, behind.layers if behind else ())], spec.output_size)
    spec = replace(spec, front=front, head=head_layers, pooling=behind.pooling if behind else "none")
    results = [output for entry in stack for node in entry.nodes for output in node.output]
    if behind:
        results.append(behind.end.name)
        left_out += _behind(graph, behind.end.name)
    used = {id(node) for node in graph.upstream(results, first.nodes[0].input[:1] if "front" not in found else [])}
    others = [node for node in graph.nodes if node.op_type != "Constant" and id(node) not in used]
    others.sort(key=lambda node: node.op_type in MOVING)  # those that only move numbers come last
    return CheckpointModel(
        layer=first.name,
        spec=spec,
        stored=stored | of_front | of_head,
        reference=graph_reference(graph, stack, before, behind, known),
        reference_name=f"onnx.reference {first.nodes[0].op_type}",
        ignored=[titled(node) for node in others],
        notes=notes,
        left_out=left_out,
    )


def _unread_note(part: str, unread: Unread, head: str | None) -> str:
    """What a front or head that is not understood means. Raises ChoiceNeeded if the head was asked for."""
    if part == "front":
        return f"before the recurrent layers, {unread}: requests must send what these read"
    if head is not None:
        raise ChoiceNeeded(f"--head {head}: {unread}; leave --head out, and compute it in the client")
    linear = [[*layer.arrays.values()][-1].source for layer in unread.layers if layer.type == "linear"]  # often fc.bias
    shorter = f"; --head {linear[-1].rpartition('.')[0] or linear[-1]} ends the head before it" if linear else ""
    return f"behind the recurrent layers, {unread}: the model has no predictions{shorter}"


def _behind(graph: Graph, end: str) -> list[str]:
    """The nodes that the graph has between the end of a head that was asked for and its outputs."""
    nodes = [node for output in graph.model.graph.output for node in graph.between([end], output.name)]
    return [*dict.fromkeys(titled(node) for node in nodes if node.op_type not in MOVING)]


def _entry(layer: Layer) -> Entry:
    arrays = {name: Stored(array, source or _UNCHANGED) for name, (array, source) in layer.arrays.items()}
    return {"type": layer.type, **layer.options}, arrays


def _choose_stack(graph: Graph, wanted: str | None) -> tuple[list[OnnxLayer], Known]:
    nodes = [node for node in graph.nodes if node.op_type in KINDS]
    if not nodes:
        everywhere = (node for place in (graph.model.graph, *graph.model.functions) for node in _all_nodes(place.node))
        hidden = [titled(node) for node in everywhere if node.op_type.endswith(tuple(KINDS))]
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
