"""Compares what a model folder computes, run as the service runs it, with the checkpoint's own layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.engine.load import EngineFactory
from service.errors import ModelFailed
from service.models.folder import read_folder
from service.models.importing.model import Arrays, CheckpointModel
from service.models.weights import read_weights
from service.spec import ModelSpec

LENGTHS = (17, 1, 6)
TOLERANCE = 1e-5
# A network can magnify rounding until two orders of summation differ. By how much is chance, so the bound is wide. The
# sequence of one step has no time to magnify anything and stays strict.
MAGNIFIED = 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """The largest absolute error of any output, state or prediction of one sequence, and the error allowed.

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
        measured = f"{self.error:.1e} (allowed {self.allowed:.1e}, largest value {self.largest:.3g})"
        steps = f"{', '.join(map(str, LENGTHS[:-1]))} and {LENGTHS[-1]} steps"
        return f"max abs error {measured} against {self.reference} in float64, over random sequences of {steps}"


def verify(root: Path, name: str, model: CheckpointModel) -> Verdict:
    """Run random sequences of unequal length through a folder as it is served, and through the checkpoint's layer.

    Returns the verdict on the sequence that failed or, if none did, on the one with the largest error. Raises
    ModelFailed if the folder cannot be served, CheckpointRefused if the checkpoint's layer cannot run.
    """
    spec, folder = model.spec, read_folder(root, name)
    failure = folder.failure or folder.versions[0].failure
    if failure or folder.config is None or folder.config.spec() != spec:
        raise ModelFailed(failure or f"config.json does not read as {spec}")
    # On the CPU, so that an import needs no GPU and disturbs none.
    factory = EngineFactory.configure("cpu", threads=1)
    engine = factory.load(spec, read_weights(folder.versions[0].weights, spec).arrays)
    sequences = _random_sequences(spec)
    exact, rounded = (model.reference(sequences, precision) for precision in (np.float64, np.float32))
    verdicts = []
    for served, true, near in zip(_run(engine, sequences), exact, rounded, strict=True):
        largest = _largest(true)
        allowed = max(TOLERANCE * max(1.0, largest), MAGNIFIED * _distance(near, true))
        verdicts.append(Verdict(_distance(served, true), allowed, largest, model.reference_name))
    return max(verdicts, key=lambda verdict: (not verdict.passed, verdict.error))


def _random_sequences(spec: ModelSpec) -> list[dict[str, Floats]]:
    """Sequences x (T, I), h (L·D, P), c (L·D, H) of numbers that a 32-bit float holds: both sides read the same."""
    random = np.random.default_rng(0)
    state_shapes = {"h": (spec.states, spec.state_size), "c": (spec.states, spec.hidden_size)}
    if not spec.has_cell_state:
        del state_shapes["c"]
    return [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for shapes in ({"x": (length, spec.input_size), **state_shapes} for length in LENGTHS)
    ]


def _run(engine: Engine, sequences: Sequence[Mapping[str, Floats]]) -> list[dict[str, Floats]]:
    spec = engine.spec
    batches: list[Rows] = []
    results: list[dict[str, Floats]] = []
    for sequence in sequences:
        steps = len(sequence["x"])
        result = {name: array.copy() for name, array in sequence.items() if name != "x"}
        states = {name: array[:, None] for name, array in result.items()}
        result["outputs"] = np.zeros((steps, spec.output_size), np.float32)
        if spec.out_features:
            result["predictions"] = np.zeros((steps, spec.out_features), np.float32)
        rows = Rows(sequence["x"], np.zeros(1, np.int64), np.array([steps]), **states)
        rows.outputs, rows.predictions = result["outputs"], result.get("predictions")
        batches.append(rows)
        results.append(result)
    engine.run(batches)  # writes states, outputs and predictions in place
    return results


def _largest(arrays: Arrays) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(np.max([np.abs(array).max() for array in arrays.values()]))


def _distance(some: Arrays, others: Arrays) -> float:
    # Predictions of a file may be those of the last step alone.
    return _largest({name: some[name][-len(other) :].astype(np.float64) - other for name, other in others.items()})
