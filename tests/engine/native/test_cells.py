"""Cells that no model's config names, by way of the engine's parts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.interface import Floats, Rows
from service.engine.native.compiler import compiled
from service.engine.native.layers import Layer, LayerWeights, Stack
from service.engine.native.passes import Pass
from service.engine.native.processor import Processor
from service.engine.native.rows import Way, row_table
from service.engine.native.schedule import Schedule
from service.engine.native.threads import Crew


def minimal_gated_unit(weights: LayerWeights, x: Floats, h: Floats) -> Floats:
    """Outputs (T, H) in float64: f = σ(…), n = tanh(W_n x + b_n + f·(U_n h + b'_n)), h' = (1 - f)·n + f·h."""
    state, outputs = h.astype(np.float64), []
    for step in x.astype(np.float64):
        over_x = np.split(weights.ih.astype(np.float64) @ step + weights.bias_ih, 2)
        over_h = np.split(weights.hh.astype(np.float64) @ state + weights.bias_hh, 2)
        f = 1 / (1 + np.exp(-(over_x[0] + over_h[0])))
        n = np.tanh(over_x[1] + f * over_h[1])
        state = (1 - f) * n + f * state
        outputs.append(state)
    return np.array(outputs)


@settings(max_examples=20, deadline=None)
@given(hidden=st.sampled_from([1, 16, 37]), steps=st.integers(1, 40), rows=st.integers(1, 9))
def test_minimal_gated_unit(hidden: int, steps: int, rows: int) -> None:
    rng = np.random.default_rng(hidden)

    def uniform(*shape: int) -> Floats:
        return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(hidden**0.5)

    sizes = (2 * hidden, 5), (2 * hidden, hidden), (2 * hidden,), (2 * hidden,)
    weights = LayerWeights(*(uniform(*size) for size in sizes))
    stack = Stack([Layer("mgu", weights, "f32", Processor.host())])
    x, h = uniform(rows * steps, 5), uniform(1, rows, hidden)
    outputs = np.empty((rows * steps, hidden), np.float32)
    batch = Rows(x, np.arange(rows) * steps, np.full(rows, steps), h.copy(), outputs=outputs)
    Pass(stack, compiled(Schedule(Processor.host())), Crew(1), 1).run(row_table([batch], Way()))
    for b in range(rows):
        own = slice(b * steps, (b + 1) * steps)
        np.testing.assert_allclose(outputs[own], minimal_gated_unit(weights, x[own], h[0, b]), rtol=0, atol=1e-5)
