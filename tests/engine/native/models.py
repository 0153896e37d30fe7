"""Rows of random values, their results on an engine, and the reference for those."""

from dataclasses import dataclass

import numpy as np

from service.engine.interface import Floats, Rows
from service.engine.native.engine import NativeEngine
from service.spec import ModelSpec

Weights = dict[str, Floats]


@dataclass
class Results:
    """What a run of rows gives: outputs and predictions row by row, h (L·D, B, P) and c (L·D, B, H)."""

    outputs: list[Floats]
    h: Floats
    c: Floats | None
    predictions: list[Floats] | None


def reference(spec: ModelSpec, weights: Weights, x: list[Floats], h: Floats, c: Floats | None) -> Results:
    """torch.nn in float64, one row at a time."""
    from tests.reference import run_reference  # noqa: PLC0415  # an emulated processor has no torch

    rows = [run_reference(spec, weights, row, h[:, b], None if c is None else c[:, b]) for b, row in enumerate(x)]
    return Results(
        [row.outputs for row in rows],
        np.stack([row.h for row in rows], axis=1),
        None if c is None else np.stack([row.c for row in rows], axis=1),
        None if spec.out_features is None else [row.predictions for row in rows],
    )


def run_rows(engine: NativeEngine, x: list[Floats], h: Floats, c: Floats | None) -> Results:
    """All rows in one call; the states given are left as they are."""
    spec = engine.spec
    lengths = np.array([len(row) for row in x], np.int64)
    starts = np.cumsum(lengths) - lengths
    inputs = np.concatenate([*x, np.zeros((0, spec.in_features), np.float32)])
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

    def inputs(length: int) -> Floats:
        if spec.num_embeddings:
            return rng.integers(0, spec.num_embeddings, (length, 1)).astype(np.float32)
        return normal(length, spec.in_features)

    x = [inputs(length) for length in lengths]
    h = normal(spec.states, len(lengths), spec.state_size)
    return x, h, normal(spec.states, len(lengths), spec.hidden_size) if spec.has_cell_state else None


def assert_same_bits(a: Floats, b: Floats) -> None:
    """Equal shapes and equal bits, so that -0 is not 0 and a NaN is itself."""
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))
