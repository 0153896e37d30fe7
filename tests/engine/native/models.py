"""Random models with PyTorch's default initialisation, and torch in float64 as the reference for their values."""

from dataclasses import dataclass

import numpy as np
import torch

from service.engine.interface import Floats, Rows
from service.engine.native import NativeEngine
from service.spec import ModelSpec

Weights = dict[str, Floats]


@dataclass
class Results:
    """What a run of rows gives: outputs and predictions row by row, h (L·D, B, P) and c (L·D, B, H)."""

    outputs: list[Floats]
    h: Floats
    c: Floats | None
    predictions: list[Floats] | None


def initial_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Weights as torch.nn initialises them: uniform in ±1/√H; the head's in ±1/√(D·P)."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        bound = (spec.output_size if name.startswith("head") else spec.hidden_size) ** -0.5
        weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return weights


def reference(spec: ModelSpec, weights: Weights, x: list[Floats], h: Floats, c: Floats | None) -> Results:
    """torch.nn in float64, one row at a time."""
    options = {"num_layers": spec.num_layers, "bias": spec.bias, "bidirectional": spec.bidirectional}
    sizes = (spec.input_size, spec.hidden_size)
    module: torch.nn.RNNBase
    if spec.kind == "rnn":
        module = torch.nn.RNN(*sizes, nonlinearity=spec.nonlinearity, **options)
    elif spec.kind == "gru":
        module = torch.nn.GRU(*sizes, **options)
    else:
        module = torch.nn.LSTM(*sizes, proj_size=spec.proj_size, **options)
    module = module.double()
    own = {name: torch.from_numpy(w).double() for name, w in weights.items() if not name.startswith("head")}
    module.load_state_dict(own)
    results = Results([], np.empty_like(h, np.float64), None if c is None else np.empty_like(c, np.float64), None)
    with torch.inference_mode():
        for b, row in enumerate(x):
            state = torch.from_numpy(h[:, b]).double()
            given = state if c is None else (state, torch.from_numpy(c[:, b]).double())
            outputs, final = module(torch.from_numpy(row).double(), given)
            results.outputs.append(outputs.numpy())
            results.h[:, b] = final if c is None else final[0]
            if c is not None and results.c is not None:
                results.c[:, b] = final[1]
    if spec.out_features is not None:
        w, bias = weights["head.weight"].astype(np.float64), weights["head.bias"].astype(np.float64)
        results.predictions = [row @ w.T + bias for row in results.outputs]
    return results


def run_rows(engine: NativeEngine, x: list[Floats], h: Floats, c: Floats | None) -> Results:
    """All rows in one call; the states given are left as they are."""
    spec = engine.spec
    lengths = np.array([len(row) for row in x], np.int64)
    starts = np.cumsum(lengths) - lengths
    inputs = np.concatenate([*x, np.zeros((0, spec.input_size), np.float32)])
    rows = Rows(inputs, starts, lengths, h.copy(), None if c is None else c.copy())
    rows.outputs = np.full((len(inputs), spec.output_size), np.nan, np.float32)
    if spec.out_features is not None:
        rows.predictions = np.full((len(inputs), spec.out_features), np.nan, np.float32)
    engine.run([rows])

    def cut(array: Floats) -> list[Floats]:
        return [array[s : s + n] for s, n in zip(starts, lengths, strict=True)]

    return Results(cut(rows.outputs), rows.h, rows.c, None if rows.predictions is None else cut(rows.predictions))


def random_rows(spec: ModelSpec, lengths: list[int], seed: int = 0) -> tuple[list[Floats], Floats, Floats | None]:
    """Inputs and initial states of standard normal values."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    x = [normal(length, spec.input_size) for length in lengths]
    h = normal(spec.states, len(lengths), spec.state_size)
    return x, h, normal(spec.states, len(lengths), spec.hidden_size) if spec.has_cell_state else None


def assert_same_bits(a: Floats, b: Floats) -> None:
    """Equal shapes and equal bits, so that -0 is not 0 and a NaN is itself."""
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))
