"""The native engine: a model's rows through kernels that were compiled for its very shape and this processor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.engine.interface import Engine, Floats, OneStep, Rows
from service.engine.native.compiler import compiled
from service.engine.native.layers import Head, Layer, LayerWeights, Stack
from service.engine.native.one_step import NativeStep
from service.engine.native.passes import FEW_ROWS, NEAR_BYTES, SHARED_FLOPS, Pass
from service.engine.native.prepared import PreparedRows
from service.engine.native.processor import Processor
from service.engine.native.rows import Way, row_table
from service.engine.native.schedule import Schedule
from service.engine.native.split import Split, SplitRule
from service.engine.native.step import Stage, single_steps
from service.engine.native.threads import Crew
from service.engine.native.work import LANES
from service.spec import ModelSpec


class NativeEngine(Engine):
    """One model on the CPU.

    Rows of different batches and lengths run side by side without being copied together. On one machine a row's bits
    are the same whether it runs whole, in pieces, step by step, alone or with others.
    """

    name = "native"
    step_seconds = 5e-7  # the chain of dependent multiply-adds, and an activation
    flops_per_second = 3e10

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Floats],
        *,
        threads: int,
        processor: Processor | None = None,
        split_rule: SplitRule | None = None,
    ) -> None:
        processor = processor or Processor.host()
        self.spec = spec
        code = compiled(Schedule(processor))
        crew = Crew(threads)
        split = Split(split_rule or SplitRule(), crew, processor)
        layers = [
            Layer(cell_name(spec), _layer_weights(spec, weights, suffix), spec.weights_dtype, processor)
            for layer in range(spec.num_layers)
            for suffix in spec.suffixes(layer)
        ]
        head = None
        if spec.out_features is not None:
            head = Head(weights["head.weight"], weights["head.bias"], spec.weights_dtype, processor)
        # A bidirectional layer needs the whole sequence of the layer below, so each is a pass of its own.
        stacks = [Stack([layer]) for layer in layers] if spec.bidirectional else [Stack(layers, head)]
        self._flops = spec.flops_per_step
        flops = self._flops // len(stacks)
        self._passes = [Pass(stack, code, crew, flops, split) for stack in stacks]
        self._head_pass = Pass(Stack([], head), code, crew, flops) if head and spec.bidirectional else None
        self.full_rows = 2 * FEW_ROWS if max(stack.nbytes for stack in stacks) <= NEAR_BYTES else LANES
        self.turns_at_once = crew.size
        # Fixed memory for single steps that no call uses now; list.append and list.pop are atomic.
        self._idle_stages: list[Stage] = []
        self.nbytes = sum(stack.nbytes for stack in stacks)
        if self._head_pass:
            self.nbytes += self._head_pass.stack.nbytes

    def run(self, batches: Sequence[Rows]) -> None:
        """Run every row of every batch together; results are written into the batches' own arrays."""
        if self.spec.bidirectional:
            self._run_both_ways(batches)
            return
        rows = single_steps(batches)
        if rows and rows * self._flops < SHARED_FLOPS:
            self._run_steps(batches, rows)
        else:
            self._passes[0].run(row_table(batches, Way()))

    def run_beside(self, batches: Sequence[Rows]) -> None:
        """The same on the caller's thread alone."""
        if self.spec.bidirectional:
            self._run_both_ways(batches, alone=True)
        else:
            self._passes[0].run(row_table(batches, Way()), alone=True)

    def prepared(self, rows: Rows) -> PreparedRows | None:
        """A call that runs these rows, if a caller's thread alone is to run them."""
        if self.spec.bidirectional or rows.steps * self._flops >= SHARED_FLOPS:
            return None
        return PreparedRows(self._passes[0], rows)

    def one_step(self) -> OneStep | None:
        """New memory for single steps, if a caller's thread alone is to run them."""
        if self.spec.bidirectional or self._flops >= SHARED_FLOPS:
            return None
        return NativeStep(self._passes[0], self.spec)

    def _run_steps(self, batches: Sequence[Rows], rows: int) -> None:
        try:
            stage = self._idle_stages.pop()
        except IndexError:
            stage = Stage(self._passes[0].stack, self.spec)
        stage.load(batches)
        self._passes[0].run_steps(stage.table, stage.work, rows)
        stage.store(batches)
        self._idle_stages.append(stage)

    def _run_both_ways(self, batches: Sequence[Rows], *, alone: bool = False) -> None:
        width, last = self.spec.state_size, self.spec.num_layers - 1
        for layer in range(self.spec.num_layers):
            wanted = [_layer_outputs(batch, self.spec, is_last=layer == last) for batch in batches]
            for direction in range(2):
                number = 2 * layer + direction
                half = slice(direction * width, (direction + 1) * width)
                rows = [
                    replace(batch, outputs=None if out is None else out[:, half], predictions=None)
                    for batch, out in zip(batches, wanted, strict=True)
                ]
                self._passes[number].run(row_table(rows, Way(number, reverse=direction == 1)), alone=alone)
            batches = [
                batch if out is None else replace(batch, inputs=out) for batch, out in zip(batches, wanted, strict=True)
            ]
        if self._head_pass:
            asked = [replace(batch, outputs=None) for batch in batches if batch.predictions is not None]
            self._head_pass.run(row_table(asked, Way()), alone=alone)


def cell_name(spec: ModelSpec) -> str:
    """The name in `cells.CELLS` of a model's cell."""
    return f"rnn_{spec.nonlinearity}" if spec.kind == "rnn" else spec.kind


def _layer_weights(spec: ModelSpec, weights: Mapping[str, Floats], suffix: str) -> LayerWeights:
    zeros = np.zeros(len(weights[f"weight_hh_{suffix}"]), np.float32)
    return LayerWeights(
        ih=weights[f"weight_ih_{suffix}"],
        hh=weights[f"weight_hh_{suffix}"],
        bias_ih=weights[f"bias_ih_{suffix}"] if spec.bias else zeros,
        bias_hh=weights[f"bias_hh_{suffix}"] if spec.bias else zeros,
        hr=weights[f"weight_hr_{suffix}"] if spec.proj_size else None,
    )


def _layer_outputs(batch: Rows, spec: ModelSpec, *, is_last: bool) -> Floats | None:
    """Where a bidirectional layer writes, (N, 2·P): the batch's outputs for the last, if somebody reads them."""
    if is_last and batch.outputs is not None:
        return batch.outputs
    if is_last and batch.predictions is None:
        return None
    return np.empty((len(batch.inputs), spec.output_size), np.float32)
