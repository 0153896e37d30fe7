"""Layers made ready to run: kernels compiled, weights packed, and the tables of them that the stack kernel reads."""

from collections.abc import Mapping, Sequence

import numpy as np

from service.engine.interface import Floats
from service.engine.native.cells import CELLS
from service.engine.native.compiler import Processor, compiled
from service.engine.native.linear import Linear
from service.engine.native.recurrent import Recurrent
from service.engine.native.stack_kernel import LayerWord, StackWord
from service.spec import ModelSpec, WeightsDtype


class Layer:
    """One direction of one layer: its code, its packed weights and its `LayerWord` table.

    weights are the arrays of PyTorch's state_dict whose names end in `suffix`.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats], suffix: str, processor: Processor) -> None:
        name = f"rnn_{spec.nonlinearity}" if spec.kind == "rnn" else spec.kind
        cell, hidden, state = CELLS[name], spec.hidden_size, spec.state_size
        ih, hh = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
        zeros = np.zeros(len(hh), np.float32)
        bias_ih, bias_hh = (weights.get(f"bias_{part}_{suffix}", zeros) for part in ("ih", "hh"))
        self.recurrent = recurrent = Recurrent(name, hidden, state, spec.weights_dtype, processor)
        linear = recurrent.x_parts(ih.shape[1])
        order = recurrent.panels.cell_order(cell.gates, hidden)
        apart = np.repeat([gate in cell.apart for gate in range(cell.gates)], hidden)
        with_x = (bias_ih.astype(np.float64) + np.where(apart, 0, bias_hh)).astype(np.float32)
        self.code = [compiled(linear), compiled(recurrent)]
        self.weights = [linear.panels.pack(ih, with_x, order), recurrent.panels.pack(hh, bias_hh, order)]
        if recurrent.projection:
            no_bias = np.zeros(state, np.float32)
            self.weights.append(
                recurrent.projection.panels.pack(weights[f"weight_hr_{suffix}"], no_bias, np.arange(state))
            )
        words = {
            LayerWord.LINEAR: self.code[0].address,
            LayerWord.LINEAR_PANELS: self.weights[0].ctypes.data,
            LayerWord.RECURRENT: self.code[1].address,
            LayerWord.PANELS: self.weights[1].ctypes.data,
            LayerWord.PROJECTION: self.weights[2].ctypes.data if recurrent.projection else 0,
            LayerWord.H_STRIDE: 4 * recurrent.h_columns,
            LayerWord.H_BYTES: 4 * state,
            LayerWord.C_STRIDE: 4 * recurrent.c_columns,
            LayerWord.C_BYTES: 4 * hidden if cell.has_cell_state else 0,
        }
        self.words = [words[word] for word in LayerWord]


class Head:
    """The linear layer over the outputs: code and packed weights (O, D·P), (O)."""

    def __init__(self, weight: Floats, bias: Floats, dtype: WeightsDtype, processor: Processor) -> None:
        self.size, depth = weight.shape
        linear = Linear(depth, self.size, dtype, processor)
        self.columns = linear.panels.columns
        self.code = compiled(linear)
        self.weights = linear.panels.pack(weight, bias, np.arange(self.size))


class Stack:
    """Layers that rows go through in one call, each reading the one before; and the head, if it is part of the call."""

    def __init__(self, layers: Sequence[Layer], head: Head | None = None) -> None:
        self.layers, self.head = layers, head
        self._layer_words = np.array([layer.words for layer in layers], np.int64)
        words = np.zeros(len(StackWord), np.int64)
        words[StackWord.LAYERS] = len(layers)
        words[StackWord.LAYER_TABLE] = self._layer_words.ctypes.data
        words[StackWord.OUTPUT_BYTES] = 4 * layers[-1].recurrent.state if layers else 0
        if head:
            words[StackWord.HEAD] = head.code.address
            words[StackWord.HEAD_PANELS] = head.weights.ctypes.data
            words[StackWord.HEAD_STRIDE] = 4 * head.columns
            words[StackWord.HEAD_BYTES] = 4 * head.size
        self._words = words
        self.address = int(words.ctypes.data)
        self.x_columns = max([layer.recurrent.x_columns for layer in layers] + [head.columns if head else 0])
        self.h_columns = max((layer.recurrent.h_columns for layer in layers), default=0)
        self.c_columns = max((layer.recurrent.c_columns for layer in layers), default=0)
        self.nbytes = sum(array.nbytes for layer in layers for array in layer.weights)
        self.nbytes += head.weights.nbytes if head else 0
