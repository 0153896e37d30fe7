"""What an ONNX graph computes before and after its recurrent layers: `front`, `pooling` and `head`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.models.importing.model import Numbers
from service.models.importing.onnx.blocks import Layer, Point, Shape, near, random_numbers, read_block
from service.models.importing.onnx.graph import MOVING, Graph, Known, Node, node_input, run_nodes
from service.models.importing.onnx.layers import OnnxLayer, node_name, titled
from service.models.importing.refusal import ChoiceNeeded
from service.models.layer_config import MAX_LAYERS
from service.spec import Pooling

_MAX_POINTS = 4  # of a block that is one layer
_POOLING = (*MOVING, "ReduceMean", "ReduceSum", "ReduceMax", "Div", "Mul", "GlobalAveragePool", "GlobalMaxPool")


class Unread(Exception):
    """A node is no layer that is served; those before it are."""

    def __init__(self, nodes: Sequence[Node], layers: Sequence[Layer], why: str) -> None:
        node = next((node for node in nodes if node.op_type not in MOVING), nodes[0])
        self.node, self.layers = titled(node), layers
        super().__init__(f"{self.node} {why}")


@dataclass(frozen=True, slots=True)
class NodeChain:
    """Layers, and their nodes, from start, where numbers (T, B, F) of a shape are, to end, where F is width."""

    layers: list[Layer]
    nodes: list[Node]
    start: Point
    shape: Shape
    end: Point
    width: int
    pooling: Pooling = "none"

    def turned(self) -> "NodeChain":
        """The same nodes, their T and B the other way round."""
        start, end = (replace(point, swapped=not point.swapped) for point in (self.start, self.end))
        return replace(self, start=start, end=end, shape=(self.shape[1], self.shape[0], self.shape[2]))

    def run(self, graph: Graph, known: Known, rows: Numbers) -> Numbers:
        """Rows (N, F) through the chain's nodes, at the size at which it was found."""
        steps, batch, width = self.shape
        made_inside = {output for node in self.nodes for output in node.output}
        known |= {self.start.name: self.start.put(np.zeros(self.shape, rows.dtype))}
        outside = {name for node in self.nodes for name in node.input if name} - made_inside
        feed = {name: np.asarray(graph.value(name, known)) for name in outside}
        results: list[Numbers] = []
        for part in np.split(rows, range(steps * batch, len(rows), steps * batch)):
            array = np.zeros((steps * batch, width), rows.dtype)
            array[: len(part) if self.pooling == "none" else None] = part
            feed[self.start.name] = self.start.put(array.reshape(self.shape))
            [value] = run_nodes(graph.model, self.nodes, feed, [self.end.name])
            made = self.end.take(value, (steps if self.pooling == "none" else 1, batch, self.width))
            results.append(made.reshape(-1, self.width)[: len(part)])
        return np.concatenate(results)


def find_front(graph: Graph, stack: Sequence[OnnxLayer], known: Known) -> NodeChain | None:
    """The layers between an input of the graph and the first recurrent layer; None if nodes only move numbers there.

    known is as `stacks` gives it. Raises Unread.
    """
    target = stack[0].nodes[0].input[0]
    inputs = [value.name for value in graph.model.graph.input if value.name not in graph.initializers]
    nodes = graph.between(inputs, target)
    if all(node.op_type in MOVING and graph.constant(node.input[0]) is None for node in nodes):
        return None
    read = [name for name in inputs if any(name in node.input for node in nodes)]
    declared = tuple(graph.shapes.get(read[0], ())) if len(read) == 1 else ()
    unread: list[Unread] = []
    for sizes in ((*declared, 1)[:2], (*declared[:1], 1)) if declared else ():
        shape = np.empty(declared).reshape(*sizes, -1).shape
        start = Point(read[0], tuple(range(len(declared))), declared)
        try:
            chain = _follow(graph, known, NodeChain([], nodes, start, shape, start, shape[-1]), target)
        except Unread as error:
            unread.append(error)
            continue
        made = random_numbers(shape, chain.layers[0])
        x = graph.value(target, known | {start.name: start.put(made)})
        for layer in chain.layers:
            made = layer.run(made)
        for found, sequences in ((chain, made), (chain.turned(), made.swapaxes(0, 1))):
            # By the largest number: the layers are known, and a vector may be what rounding has left of larger ones.
            if x is not None and near(stack[0].turned(x, back=True), sequences, axis=None):
                return found
    unread = unread or [Unread(nodes, [], "does not follow from one input of the graph with a declared shape")]
    raise max(unread, key=lambda error: len(error.layers))


def find_head(graph: Graph, stack: Sequence[OnnxLayer], known: Known, name: str | None) -> NodeChain | None:
    """What makes an output of the graph of the results of a stack, or the part of it up to the linear layer name.

    None if the graph only gives these results out. Raises Unread, or ChoiceNeeded if several outputs are understood or
    there is no such layer.
    """
    if name is not None:
        return _head_to(graph, stack, known, _named(graph, name))
    chains: dict[str, NodeChain] = {}
    unread = None
    for output in _outputs(graph, stack, known):
        try:
            chains[output] = _head_to(graph, stack, known, output)
        except Unread as error:
            unread = unread or error
    if len(chains) > 1:
        raise ChoiceNeeded(f"the graph has {len(chains)} outputs: {', '.join(chains)}; say which with --head")
    if unread and not chains:
        raise unread
    return next(iter(chains.values()), None)


def _head_to(graph: Graph, stack: Sequence[OnnxLayer], known: Known, target: str) -> NodeChain:
    results, readable = dict(known), pooled(stack, known)
    sources = [output for layer in stack for node in layer.nodes for output in node.output]
    nodes = graph.between(sources, target)
    read = [source for source in sources if source == target or any(source in node.input for node in nodes)]
    points = [(0, source) for source in read if len(read) == 1] + _points(nodes, sources, target)
    working = next((place for place, node in enumerate(nodes) if node.op_type not in _POOLING), len(nodes))
    starts = [
        NodeChain([], nodes[count:], start, array.shape, start, array.shape[-1], pooling)
        for count, point in points
        if count <= working
        for pooling, array in readable.items()
        if (start := Point.find(point, graph.value(point, results), array))
    ]
    if not starts:
        why = f"reads neither the outputs of {stack[-1].name} nor what pools them"
        raise Unread(nodes, [], why) if nodes else ChoiceNeeded(f"--head: {target} {why}")
    # With one step or direction some poolings are the same: the first one counts.
    chain = next(chain for chain in starts if chain.start.name == starts[-1].start.name)
    chain = _follow(graph, known, chain, target)
    return chain if chain.layers else replace(chain, layers=[Layer("dropout", {}, {})])


def _outputs(graph: Graph, stack: Sequence[OnnxLayer], known: Known) -> list[str]:
    """The outputs of the graph that follow from a stack's results, but are not these."""
    sources = [output for layer in stack for node in layer.nodes for output in node.output]
    served = [stack[-1].outputs(known)]
    for place in range(1, len(stack[0].nodes[0].output)):
        states = [layer.result(place, known) for layer in stack]
        served += [np.concatenate(states), *states, *(state[None] for layer in states for state in layer)]
    results = dict(known)
    outputs = [value.name for value in graph.model.graph.output if value.name not in sources]
    outputs = [output for output in outputs if graph.between(sources, output)]
    return [o for o in outputs if not any(Point.find(o, graph.value(o, results), array) for array in served)]


def pooled(stack: Sequence[OnnxLayer], known: Known) -> dict[Pooling, Numbers]:
    """What a head may read: (T, B, D·H), or (1, B, D·H) where it is one vector of each row."""
    outputs = stack[-1].outputs(known)
    final = stack[-1].result(1, known).swapaxes(0, 1).reshape(1, outputs.shape[1], -1)
    mean, highest = outputs.mean(axis=0, keepdims=True), outputs.max(axis=0, keepdims=True)
    return {"none": outputs, "last": outputs[-1:], "final": final, "mean": mean, "max": highest}


def _named(graph: Graph, name: str) -> str:
    """The output of the graph that is called name, or what the linear layer makes that is called so.

    By its node (`/fc/MatMul`, or a part of that path) or its weights (`fc.weight`). Raises ChoiceNeeded.
    """
    if name in (value.name for value in graph.model.graph.output):
        return name
    linear = [node for node in graph.nodes if node.op_type in ("Gemm", "MatMul")]
    linear = [node for node in linear if graph.constant(node.input[1]) is not None]
    names = {name, f"{name}.weight", f"{name}.bias"}
    found = [node for node in linear if name in (node.name, *node.name.split("/")) or names & _stored(graph, node)]
    if len(found) != 1:
        count = "more than one" if found else "no"
        listed = ", ".join(map(node_name, found or linear)) or "none"
        raise ChoiceNeeded(f"--head {name} fits {count} linear layer of the graph; it has {listed}")
    return str(_bias(graph, found[0])[0].output[0])


def _bias(graph: Graph, node: Node) -> tuple[Node, str]:
    """The last node of a linear layer, which may be the Add of its bias, and what that is called, if it has one."""
    for add in graph.nodes:
        if add.op_type == "Add" and node.output[0] in add.input:
            for value in add.input:
                if value != node.output[0] and graph.constant(value) is not None:
                    return add, value
    return node, node_input(node, 2)


def _stored(graph: Graph, node: Node) -> set[str]:
    """What the file calls a linear layer's weights and bias."""
    value = node.input[1]
    producer = graph.producers.get(value)
    behind = producer.input[:1] if producer is not None and producer.op_type in ("Transpose", "Identity") else ()
    return {value, *behind, _bias(graph, node)[1]}


def _follow(graph: Graph, known: Known, chain: NodeChain, target: str) -> NodeChain:
    """A chain that has no layers yet with those up to target. Raises Unread."""
    layers: list[Layer] = []
    end, shape, pooling = chain.end, chain.shape, chain.pooling
    done = tried = 0
    for count, name in _points(chain.nodes, [end.name], target):
        block = read_block(graph, known, chain.nodes[done:count], end, shape, name)
        tried = tried + 1 if block is None else 0
        if block:
            layer, end, made = block
            pooling = "last" if made[0] < shape[0] else pooling
            done, shape = count, made
            joined = layers[-1].joined(layer) if layers and layer else None
            if layer:
                layers[len(layers) - bool(joined) :] = [joined or layer]
        if tried == _MAX_POINTS or len(layers) > MAX_LAYERS:
            break
    if len(layers) > MAX_LAYERS:
        raise Unread(chain.nodes[done - 1 : done], layers, f"is behind {MAX_LAYERS} layers, as many as are served")
    if tried:
        raise Unread(chain.nodes[done : done + 1], layers, "is none of the layers that are served")
    return replace(chain, layers=layers, end=end, width=shape[-1], pooling=pooling)


def _points(nodes: Sequence[Node], sources: Sequence[str], target: str) -> list[tuple[int, str]]:
    """The values that all follows from behind them: how many nodes make each, and its name."""
    last_use = {name: place for place, node in enumerate(nodes) for name in node.input} | {target: len(nodes)}
    points: list[tuple[int, str]] = []
    furthest = max((last_use.get(source, -1) for source in sources), default=-1)
    for place, node in enumerate(nodes):
        used = [name for name in node.output if name in last_use]
        if furthest <= place and len(used) == 1:
            points.append((place + 1, used[0]))
        furthest = max([furthest, *(last_use[name] for name in used)])
    return points
