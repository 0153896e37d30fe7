"""What a model is: the recurrent stack, the layers before and after it, their sizes and the arrays that these call for.

Letters used everywhere: B sequences in a batch, T time steps, I `in_features`, H `hidden_size`, P the width of a
hidden state, L `num_layers`, D directions, O `out_features` of the head.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, Self

Kind = Literal["rnn", "gru", "lstm"]
Nonlinearity = Literal["tanh", "relu"]
WeightsDtype = Literal["f32", "bf16"]
Pooling = Literal["none", "last", "final", "mean", "max"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus", "exp"]
RowFunction = Literal["layer_norm", "normalize", "softmax", "log_softmax"]
LayerType = Literal[Activation, RowFunction, "embedding", "linear", "batch_norm", "scale", "dropout"]

GATES: dict[Kind, int] = {"rnn": 1, "gru": 3, "lstm": 4}

# The arrays of a layer that has any, beside an embedding's and a linear one's: those that it must have, and which sets
# of others it may have.
_ARRAYS: dict[LayerType, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "layer_norm": ((), ((), ("weight",), ("weight", "bias"))),
    "batch_norm": (("running_mean", "running_var"), ((), ("weight", "bias"))),
    "scale": (("mean", "scale"), ((),)),
}


@dataclass(frozen=True)
class ChainLayer:
    """A layer of `front` or `head`, which takes the vector of each step by itself; all words are PyTorch's.

    - name: what its arrays' names begin with: `front.0`, `head.2`; `head` for one that the config gives in short
    - in_features: 1 for an embedding, which takes a token id
    - options: the constructor's other arguments that serving needs
    """

    type: LayerType
    name: str
    in_features: int
    out_features: int
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str) -> Any:
        return dict(self.options)[name]

    @cached_property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array that it must have."""
        if self.type == "embedding":
            return {f"{self.name}.weight": (self.option("num_embeddings"), self.out_features)}
        if self.type == "linear":
            shapes: dict[str, tuple[int, ...]] = {f"{self.name}.weight": (self.out_features, self.in_features)}
            return shapes | ({f"{self.name}.bias": (self.out_features,)} if self.option("bias") else {})
        required, _ = _ARRAYS.get(self.type, ((), ()))
        return {f"{self.name}.{array}": (self.out_features,) for array in required}

    @cached_property
    def optional_shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The sets of arrays that it may have beside these."""
        _, sets = _ARRAYS.get(self.type, ((), ((),)))
        return [{f"{self.name}.{array}": (self.out_features,) for array in arrays} for arrays in sets]


@dataclass(frozen=True)
class ModelSpec:
    """A recurrent stack by PyTorch's argument names, the layers that a step's input passes before it, and the head.

    pooling says what the head reads: each step's output, or one vector of each row. `models.config` checks the sizes.
    """

    kind: Kind
    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: Nonlinearity = "tanh"
    bias: bool = True
    bidirectional: bool = False
    proj_size: int = 0
    weights_dtype: WeightsDtype = "f32"
    front: tuple[ChainLayer, ...] = ()
    pooling: Pooling = "none"
    head: tuple[ChainLayer, ...] = ()

    @cached_property
    def in_features(self) -> int:
        """I: the width of a step's input; 1 where that is a token id."""
        return self.front[0].in_features if self.front else self.input_size

    @cached_property
    def num_embeddings(self) -> int | None:
        """How many token ids there are; None for a model that takes vectors."""
        takes_ids = self.front and self.front[0].type == "embedding"
        return self.front[0].option("num_embeddings") if takes_ids else None

    @cached_property
    def out_features(self) -> int | None:
        """O: the width of `predictions`; None without a head."""
        return self.head[-1].out_features if self.head else None

    @cached_property
    def step_predictions(self) -> int:
        """The width of the prediction that a single step gives; 0 without one: no head, or one over whole sequences."""
        return (self.out_features or 0) if self.pooling in ("none", "last", "final") else 0

    @cached_property
    def feeds_itself(self) -> bool:
        """Whether its prediction of a step can be its next input as it is."""
        takes = self.num_embeddings or self.in_features
        return not self.bidirectional and takes == self.step_predictions

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
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """The state of one sequence: h (L·D, P), and c (L·D, H) of an LSTM."""
        h, c = (self.states, self.state_size), (self.states, self.hidden_size)
        return {"h": h, "c": c} if self.has_cell_state else {"h": h}

    @cached_property
    def state_values(self) -> int:
        """Numbers in it."""
        return sum(map(prod, self.state_shapes.values()))

    @cached_property
    def flops_per_step(self) -> int:
        """Multiply-adds of one row's step through every layer, counted as two operations each."""
        stack = sum(shape[0] * shape[1] for shape in self.stack_shapes().values() if len(shape) == 2)
        return 2 * stack + flops(self.front) + flops(self.head)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array that the model must have: of the stack, then of front and head."""
        shapes = self.stack_shapes()
        for layer in (*self.front, *self.head):
            shapes |= layer.weight_shapes
        return shapes

    def stack_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array of the stack's state_dict, in PyTorch's order.

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
        return shapes

    def with_linear_head(self, out_features: int) -> Self:
        """The stack with one linear layer as head, whose arrays are `head.weight` and `head.bias`."""
        return replace(self, head=(ChainLayer("linear", "head", self.output_size, out_features, (("bias", True),)),))

    def suffixes(self, layer: int) -> list[str]:
        """The endings of PyTorch's names for one layer: `l0`, and `l0_reverse` when bidirectional."""
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]


def flops(layers: Iterable[ChainLayer]) -> int:
    """Operations of one step through layers: multiply-adds count as two, and an activation's as some tens."""
    return sum(
        2 * layer.in_features * layer.out_features if layer.type == "linear" else 32 * layer.out_features
        for layer in layers
    )
