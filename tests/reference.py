"""The independent reference: torch.nn in float64, one row at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from service.engine.torch_engine import build_module
from service.spec import ModelSpec

TOLERANCE = 1e-5


@dataclass
class Result:
    outputs: np.ndarray  # (T, D·P)
    h: np.ndarray  # (L·D, P)
    c: np.ndarray | None  # (L·D, H)
    predictions: np.ndarray | None  # (T, O)


def specs(*, kinds=("rnn", "gru", "lstm"), directions=(False, True), layers=3, size=9) -> st.SearchStrategy[ModelSpec]:
    """Models of every kind and argument, small."""

    @st.composite
    def draw(draw_one):
        kind = draw_one(st.sampled_from(kinds))
        hidden = draw_one(st.integers(1, size))
        projects = kind == "lstm" and hidden > 1 and draw_one(st.booleans())
        return ModelSpec(
            kind=kind,
            input_size=draw_one(st.integers(1, size)),
            hidden_size=hidden,
            num_layers=draw_one(st.integers(1, layers)),
            nonlinearity=draw_one(st.sampled_from(("tanh", "relu"))) if kind == "rnn" else "tanh",
            bias=draw_one(st.booleans()),
            bidirectional=draw_one(st.sampled_from(directions)),
            proj_size=draw_one(st.integers(1, hidden - 1)) if projects else 0,
            out_features=draw_one(st.none() | st.integers(1, 4)),
        )

    return draw()


def weights_of(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """PyTorch's default initialisation, float32, by state_dict name."""
    torch.manual_seed(seed)
    arrays = {name: tensor.numpy() for name, tensor in build_module(spec).state_dict().items()}
    if spec.out_features:
        head = torch.nn.Linear(spec.output_size, spec.out_features)
        arrays |= {"head.weight": head.weight.detach().numpy(), "head.bias": head.bias.detach().numpy()}
    return arrays


def run_reference(spec: ModelSpec, weights, inputs, h0=None, c0=None) -> Result:
    """One row: inputs (T, I), h0 (L·D, P), c0 (L·D, H)."""
    tensors = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    head = tensors.pop("head.weight", None), tensors.pop("head.bias", None)
    module = build_module(spec).double()
    module.load_state_dict(tensors)
    h = torch.zeros(spec.states, spec.state_size) if h0 is None else torch.from_numpy(np.array(h0))
    state = h.double()
    if spec.has_cell_state:
        c = torch.zeros(spec.states, spec.hidden_size) if c0 is None else torch.from_numpy(np.array(c0))
        state = (state, c.double())
    with torch.no_grad():
        outputs, final = module(torch.from_numpy(np.array(inputs)).double(), state)
        predictions = torch.nn.functional.linear(outputs, *head).numpy() if head[0] is not None else None
    h_n, c_n = (final[0].numpy(), final[1].numpy()) if spec.has_cell_state else (final.numpy(), None)
    return Result(outputs.numpy(), h_n, c_n, predictions)


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)
