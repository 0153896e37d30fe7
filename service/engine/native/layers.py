"""Layers made ready to run: kernels compiled, weights packed, and the tables of them that the scheduler reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.interface import Floats
from service.engine.native.cells import CELLS
from service.engine.native.compiler import compiled
from service.engine.native.kernels import Recurrent
from service.engine.native.linear import Linear
from service.engine.native.packing import cell_order, packed
from service.engine.native.processor import Processor
from service.engine.native.schedule import LayerWord, StackWord
from service.spec import WeightsDtype


@dataclass(frozen=True)
class LayerWeights:
    """One direction of one layer, as in PyTorch's state_dict.

    ih (G·H, ·), hh (G·H, P), bias_ih and bias_hh (G·H), hr (P, H) if the state is projected.
    """

    ih: Floats
    hh: Floats
    bias_ih: Floats
    bias_hh: Floats
    hr: Floats | None = None


class Layer:
    """One direction of one layer: its code, its packed weights and its `LayerWord` table."""

    def __init__(self, cell: str, weights: LayerWeights, dtype: WeightsDtype, processor: Processor) -> None:
        gates = CELLS[cell].gates
        hidden, state = len(weights.hh) // gates, weights.hh.shape[1]
        self.recurrent = recurrent = Recurrent(cell, hidden, state, dtype, processor)
        linear = recurrent.x_parts(weights.ih.shape[1])
        order = cell_order(recurrent.panels, gates, hidden)
        apart = np.repeat([gate in CELLS[cell].apart for gate in range(gates)], hidden)
        with_x = (weights.bias_ih.astype(np.float64) + np.where(apart, 0, weights.bias_hh)).astype(np.float32)
        self.code = [compiled(linear), compiled(recurrent)]
        self.weights = [
            packed(linear.panels, weights.ih, with_x, order),
            packed(recurrent.panels, weights.hh, weights.bias_hh, order),
        ]
        if recurrent.projection and weights.hr is not None:
            no_bias = np.zeros(state, np.float32)
            self.weights.append(packed(recurrent.projection, weights.hr, no_bias, np.arange(state)))
        has_c = CELLS[cell].has_cell_state
        self.words = [0] * len(LayerWord)
        self.words[LayerWord.LINEAR] = self.code[0].address
        self.words[LayerWord.RECURRENT] = self.code[1].address
        for word, array in zip(
            (LayerWord.LINEAR_PANELS, LayerWord.PANELS, LayerWord.PROJECTION), self.weights, strict=False
        ):
            self.words[word] = array.ctypes.data
        self.words[LayerWord.H_STRIDE] = 4 * recurrent.h_columns
        self.words[LayerWord.H_BYTES] = 4 * state
        self.words[LayerWord.C_STRIDE] = 4 * recurrent.c_columns
        self.words[LayerWord.C_BYTES] = 4 * hidden if has_c else 0


class Head:
    """The linear layer over the outputs: code and packed weights (O, D·P), (O)."""

    def __init__(self, weight: Floats, bias: Floats, dtype: WeightsDtype, processor: Processor) -> None:
        self.size, depth = weight.shape
        linear = Linear(depth, self.size, dtype, processor)
        self.columns = linear.panels.columns
        self.code = compiled(linear)
        self.weights = packed(linear.panels, weight, bias, np.arange(self.size))


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
        # Of the smallest W_hh.
        self.step_bytes = min((layer.weights[1].nbytes for layer in layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        heads = [self.head.weights.nbytes] if self.head else []
        return sum([array.nbytes for layer in self.layers for array in layer.weights] + heads)
