"""The native engine: a model's rows through kernels that were compiled for its very shape and this processor."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.engine.native.compiler import Processor
from service.engine.native.rows import check_layout
from service.engine.native.stack import Head, Layer, Pass, Stack
from service.spec import ModelSpec


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
        head = None
        if spec.out_features is not None:
            head = Head(weights["head.weight"], weights["head.bias"], spec.weights_dtype, processor)
        self._head_pass: Pass | None = None
        if not spec.bidirectional:
            self._passes = [new_pass(Stack(layers, head), flops_per_step=spec.flops_per_step)]
        else:
            # A bidirectional layer needs the whole sequence of the layer below, so each direction is a pass of its own.
            flops = spec.flops_per_step // len(layers)
            self._passes = [
                new_pass(Stack([layer]), flops_per_step=flops, first_state=number, backwards=number % 2 == 1)
                for number, layer in enumerate(layers)
            ]
            if head:
                self._head_pass = new_pass(Stack([], head), flops_per_step=flops)
        self.nbytes = sum(each.nbytes for each in (*self._passes, self._head_pass) if each)

    def run(self, batches: Sequence[Rows]) -> None:
        if self.spec.bidirectional:
            self._run_both_ways(batches)
        else:
            self._passes[0].run(batches)

    def _run_both_ways(self, batches: Sequence[Rows]) -> None:
        spec = self.spec
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
