"""The native engine: a model's rows through kernels that were compiled for its very shape and this processor."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.engine.native.compiler import Processor
from service.engine.native.maps import gather, maps
from service.engine.native.panels import Bytes, aligned
from service.engine.native.rows import check_layout
from service.engine.native.stack import Layer, Pass, Stack
from service.spec import ModelSpec, flops

TABLE_BYTES = 256 * 2**20
"""Up to this, what token ids are before the first state comes in is computed once, for all of them."""


class NativeEngine(Engine):
    """On one machine a row's bits are the same whether it runs whole, in pieces, step by step, alone or with others."""

    name = "native"
    step_seconds = 5e-7  # the chain of dependent multiply-adds, and an activation
    flops_per_second = 3e10

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Floats], *, threads: int, processor: Processor | None = None
    ) -> None:
        processor = processor or Processor.host()
        check_layout(processor)
        self.spec = spec
        # Its threads start when first needed, and end when it is collected with the engine.
        pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="rnn-kernel")
        new_pass = partial(Pass, processor=processor, pool=pool, threads=threads)
        layers = [
            Layer(spec, weights, suffix, processor)
            for layer in range(spec.num_layers)
            for suffix in spec.suffixes(layer)
        ]
        of_chain = partial(maps, weights=weights, dtype=spec.weights_dtype, processor=processor)
        front = of_chain(spec.front, padded_inputs=False)
        first = layers[: spec.directions]
        ids = spec.num_embeddings or 0
        if 0 < 4 * ids * max(layer.x_parts.columns for layer in first) <= TABLE_BYTES:
            for layer in first:
                rows = new_pass(Stack([], head=[*front, layer.x_parts]), flops_per_step=spec.flops_per_step)
                columns = layer.x_parts.columns
                layer.x_parts = gather(_table(rows, ids, columns), columns, processor)
            front = []
        # Of a bidirectional layer each direction is a pass of its own, as it needs the whole sequence of the one below.
        self._front_pass = self._head_pass = None
        if spec.bidirectional and front:
            self._front_pass = new_pass(Stack([], head=front), flops_per_step=flops(spec.front))
        if spec.head and (spec.bidirectional or spec.pooling != "none"):
            head = of_chain(spec.head, padded_inputs=False)
            self._head_pass = new_pass(Stack([], head=head), flops_per_step=flops(spec.head))
        if not spec.bidirectional:
            head = of_chain(spec.head, padded_inputs=True)
            self._passes = [new_pass(Stack(layers, front, head), flops_per_step=spec.flops_per_step)]
        else:
            of_layer = spec.flops_per_step // len(layers)
            self._passes = [
                new_pass(Stack([layer]), flops_per_step=of_layer, first_state=number, backwards=number % 2 == 1)
                for number, layer in enumerate(layers)
            ]
        self.nbytes = sum(each.nbytes for each in (*self._passes, self._front_pass, self._head_pass) if each)

    def run(self, batches: Sequence[Rows]) -> None:
        if self.spec.bidirectional:
            self._run_both_ways(batches)
        else:
            self._passes[0].run(batches)

    def _run_both_ways(self, batches: Sequence[Rows]) -> None:
        spec = self.spec
        if self._front_pass:
            mapped = [np.empty((len(batch.inputs), spec.input_size), np.float32) for batch in batches]
            pairs = list(zip(batches, mapped, strict=True))
            self._front_pass.run([replace(batch, outputs=None, predictions=values) for batch, values in pairs])
            batches = [replace(batch, inputs=values) for batch, values in pairs]
        for layer in range(spec.num_layers):
            layer_outputs = [
                np.empty((len(batch.inputs), spec.output_size), np.float32)
                if layer < spec.num_layers - 1 or batch.outputs is None
                else batch.outputs
                for batch in batches
            ]
            for direction in range(2):
                half = slice(direction * spec.state_size, (direction + 1) * spec.state_size)
                self._passes[2 * layer + direction].run(
                    [
                        replace(batch, outputs=outputs[:, half], predictions=None)
                        for batch, outputs in zip(batches, layer_outputs, strict=True)
                    ]
                )
            batches = [replace(batch, inputs=outputs) for batch, outputs in zip(batches, layer_outputs, strict=True)]
        if self._head_pass:
            self._head_pass.run([replace(batch, outputs=None) for batch in batches if batch.predictions is not None])

    def predict(self, pooled: Floats) -> Floats:
        predictions = np.empty((len(pooled), self.spec.out_features or 0), np.float32)
        if self._head_pass:
            self._head_pass.run([_steps(pooled, predictions)])
        return predictions


def _table(rows: Pass, count: int, columns: int) -> Bytes:
    """What maps make of each of so many token ids, as a table for `gather`."""
    table = aligned(4 * count * columns)
    rows.run([_steps(np.arange(count, dtype=np.float32)[:, None], table.view(np.float32).reshape(count, columns))])
    return table


def _steps(inputs: Floats, predictions: Floats) -> Rows:
    """Rows of one step each, for maps alone."""
    count = len(inputs)
    state = np.empty((0, count, 0), np.float32)
    return Rows(inputs, np.arange(count), np.ones(count, np.int64), state, predictions=predictions)
