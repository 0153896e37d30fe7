"""What a recurrent model is: its kind and its sizes, and the arrays that these call for.

Letters used everywhere: B sequences in a batch, T time steps, I `input_size`, H `hidden_size`, P the width of a
hidden state, L `num_layers`, D directions, O `out_features` of the head.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["rnn", "gru", "lstm"]
Nonlinearity = Literal["tanh", "relu"]
WeightsDtype = Literal["f32", "bf16"]

GATES: dict[Kind, int] = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class ModelSpec:
    """A recurrent stack and an optional linear head, by PyTorch's argument names; `models.config` checks the sizes."""

    kind: Kind
    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: Nonlinearity = "tanh"
    bias: bool = True
    bidirectional: bool = False
    proj_size: int = 0
    out_features: int | None = None
    weights_dtype: WeightsDtype = "f32"

    @cached_property
    def directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @cached_property
    def state_size(self) -> int:
        """P: the width of a hidden state, `proj_size` if set, else H."""
        return self.proj_size or self.hidden_size

    @cached_property
    def output_size(self) -> int:
        """D·P: the width of `outputs`."""
        return self.directions * self.state_size

    @cached_property
    def states(self) -> int:
        """L·D."""
        return self.num_layers * self.directions

    @cached_property
    def has_cell_state(self) -> bool:
        return self.kind == "lstm"

    @cached_property
    def state_values(self) -> int:
        """Numbers in the state of one sequence: L·D·P, and L·D·H more for an LSTM."""
        return self.states * (self.state_size + self.has_cell_state * self.hidden_size)

    @cached_property
    def flops_per_step(self) -> int:
        """Multiply-adds of one row's step through every layer and the head, counted as two operations each."""
        return 2 * sum(shape[0] * shape[1] for shape in self.weight_shapes().values() if len(shape) == 2)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array of the model's state_dict, in PyTorch's order; the head comes last.

        Source: the `Variables` section of torch.nn.RNN, GRU and LSTM.
        """
        rows = GATES[self.kind] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else self.output_size
            for suffix in self.suffixes(layer):
                shapes[f"weight_ih_{suffix}"] = (rows, width)
                shapes[f"weight_hh_{suffix}"] = (rows, self.state_size)
                if self.bias:
                    shapes[f"bias_ih_{suffix}"] = (rows,)
                    shapes[f"bias_hh_{suffix}"] = (rows,)
                if self.proj_size:
                    shapes[f"weight_hr_{suffix}"] = (self.proj_size, self.hidden_size)
        if self.out_features is not None:
            shapes["head.weight"] = (self.out_features, self.output_size)
            shapes["head.bias"] = (self.out_features,)
        return shapes

    def suffixes(self, layer: int) -> list[str]:
        """The endings of PyTorch's names for one layer: `l0`, and `l0_reverse` when bidirectional."""
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]
