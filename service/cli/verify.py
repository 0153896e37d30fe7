"""Compares what a model folder computes, run as the service runs it, with the checkpoint's own layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.engine.load import EngineFactory
from service.engine.pooling import pooled
from service.errors import ModelFailed
from service.models.folder import read_folder
from service.models.importing.model import CheckpointModel, Numbers
from service.models.weights import read_weights

LENGTHS = (17, 1, 6)
LONG, LONG_FLOPS = 1000, 1_000_000_000  # steps of a long sequence; a large model does as many as the operations allow
TOLERANCE = 1e-5
# A network can magnify rounding until two orders of summation differ. By how much is chance, so the bound is wide. The
# sequence of one step has no time to magnify anything and stays strict.
MAGNIFIED = 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """The largest absolute error of the outputs, a state or the predictions of one sequence, and the error allowed.

    allowed is 1e-5, times the largest value where that is over 1; or, for a network that magnifies rounding, 30 times
    what the reference itself loses by computing in 32 bits.
    """

    error: float
    allowed: float
    largest: float
    reference: str

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # not for NaN

    def __str__(self) -> str:
        scale = max(1.0, self.largest)
        text = f"max error {self.error / scale:.1e} (allowed {self.allowed / scale:.1e}) relative to {scale:.3g}"
        return f"{text} against {self.reference} in float64, over random and saturating sequences of up to {LONG} steps"


def verify(root: Path, name: str, model: CheckpointModel) -> Verdict:
    """Run random sequences of unequal length through a folder as it is served, and through the checkpoint's layer.

    Returns the verdict nearest to what is allowed, or beyond it. Raises ModelFailed if the folder cannot be served,
    CheckpointRefused if the checkpoint's layer cannot run.
    """
    spec, folder = model.spec, read_folder(root, name)
    failure = folder.failure or folder.versions[0].failure
    if failure or folder.config is None or folder.config.spec() != spec:
        raise ModelFailed(failure or f"config.json does not read as {spec}")
    # On the CPU, so that an import needs no GPU and disturbs none.
    factory = EngineFactory.configure("cpu", threads=0)
    engine = factory.load(spec, read_weights(folder.versions[0].weights, spec).arrays)
    sequences = _random_sequences(model)
    with np.errstate(over="ignore", invalid="ignore"):
        exact, rounded = (model.reference(sequences, precision) for precision in (np.float64, np.float32))
    verdicts: list[Verdict] = []
    for served, true, near in zip(_run(engine, sequences), exact, rounded, strict=True):
        if verdicts and not all(np.isfinite(array).all() for array in near.values()):
            continue  # A relu network may grow beyond float32 in a long sequence, which then tells nothing.
        for part, values in true.items():
            largest = float(np.abs(values).max())
            allowed = max(TOLERANCE * max(1.0, largest), MAGNIFIED * _distance(near[part], values))
            verdicts.append(Verdict(_distance(served[part], values), allowed, largest, model.reference_name))
    return max(verdicts, key=lambda verdict: (not verdict.passed, verdict.error / verdict.allowed))


def _distance(some: Numbers, others: Numbers) -> float:
    """The largest absolute difference; NaN if there is one."""
    # Predictions of a file may be those of the last step alone.
    return float(np.abs(some[-len(others) :].astype(np.float64) - others).max())


def _random_sequences(model: CheckpointModel) -> list[dict[str, Floats]]:
    """Sequences x (T, I), h (L·D, P), c (L·D, H) of numbers that a 32-bit float holds: both sides read the same."""
    random, spec = np.random.default_rng(0), model.spec
    state_shapes = {"h": (spec.states, spec.state_size)}
    if spec.has_cell_state:
        state_shapes["c"] = (spec.states, spec.hidden_size)
    long = min(LONG, max(LENGTHS[0], LONG_FLOPS // spec.flops_per_step))
    sequences = [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for shapes in ({"x": (length, spec.in_features), **state_shapes} for length in (*LENGTHS, long, long))
    ]
    # Large and always the same: gates stay open or shut, and what a memory loses at each step adds up.
    sequences[-1]["x"][:] = 100 * sequences[-1]["x"][0]
    for sequence in sequences:
        x = sequence["x"]
        if spec.num_embeddings:
            ids = random.integers(spec.num_embeddings, size=x.shape)
            x[:] = ids if sequence is not sequences[-1] else ids[0]
        elif spec.front and spec.front[0].type == "scale" and not spec.front[0].option("inverse"):
            mean, scale = (model.arrays[f"{spec.front[0].name}.{array}"].float().numpy() for array in ("mean", "scale"))
            x[:] = x * scale + mean  # as large as what the model was made for
    return sequences


def _run(engine: Engine, sequences: Sequence[Mapping[str, Floats]]) -> list[dict[str, Floats]]:
    spec = engine.spec
    batches: list[Rows] = []
    results: list[dict[str, Floats]] = []
    for sequence in sequences:
        steps = len(sequence["x"])
        result = {name: array.copy() for name, array in sequence.items() if name != "x"}
        states = {name: array[:, None] for name, array in result.items()}
        result["outputs"] = np.zeros((steps, spec.output_size), np.float32)
        if spec.out_features and spec.pooling == "none":
            result["predictions"] = np.zeros((steps, spec.out_features), np.float32)
        rows = Rows(sequence["x"], np.zeros(1, np.int64), np.array([steps]), **states)
        rows.outputs, rows.predictions = result["outputs"], result.get("predictions")
        batches.append(rows)
        results.append(result)
    engine.run(batches)  # writes states, outputs and predictions in place
    if spec.pooling != "none":
        for rows, result in zip(batches, results, strict=True):
            result["predictions"] = engine.predict(pooled(spec, rows))
    return results
