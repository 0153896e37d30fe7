"""What the head of a model that pools reads: one vector of each row, of all its steps."""

import numpy as np

from service.engine.interface import Floats, Rows
from service.spec import ModelSpec


def reads_outputs(spec: ModelSpec) -> bool:
    """Whether pooling needs the outputs of all steps; else the final states will do."""
    return spec.pooling in ("mean", "max") or (spec.pooling == "last" and spec.bidirectional)


def pooled(spec: ModelSpec, rows: Rows) -> Floats:
    """The vector (B, D·P) that the head reads of each row; rows have run to their end.

    - last: the output at the row's own last step
    - final: the last layer's final hidden states, directions side by side
    - mean, max: over the row's own steps; sums are of float64, and max passes NaN on
    """
    outputs = rows.outputs
    if outputs is None or not reads_outputs(spec):
        return np.ascontiguousarray(rows.h[-spec.directions :].swapaxes(0, 1)).reshape(rows.h.shape[1], -1)
    if spec.pooling == "last":
        last: Floats = outputs[rows.starts + rows.lengths - 1]
        return last
    places = zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)
    own = (outputs[start : start + length] for start, length in places)
    if spec.pooling == "max":
        return np.stack([steps.max(axis=0) for steps in own])
    return np.stack([steps.mean(axis=0, dtype=np.float64).astype(np.float32) for steps in own])
