"""Compares what a model folder computes, run as the service runs it, with the checkpoint's own layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from service.engine.interface import Engine, Floats, Rows
from service.engine.load import EngineFactory
from service.engine.pooling import pooled
from service.errors import ModelFailed
from service.models.folder import read_folder
from service.models.importing.model import CheckpointModel, Numbers
from service.models.importing.refusal import CheckpointRefused, refusing
from service.models.weights import InitialStates, read_weights
from service.spec import ModelSpec

LENGTHS = (17, 1, 6)
LONG, LONG_FLOPS = 1000, 1_000_000_000  # steps of a long sequence; a large model does as many as the operations allow
TOLERANCE = 1e-5
EXPECTED = 1e-4  # of a sample's largest value: it may be made in float32 on a GPU
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
        found = f"largest difference {self.error:.1e} of the allowed {self.allowed:.1e}"
        against = f"in values up to {self.largest:.3g}, against {self.reference} in float64"
        return f"{found}, {against}, over random and saturating sequences of up to {LONG} steps"


def verify(root: Path, name: str, model: CheckpointModel) -> Verdict:
    """Run random sequences of unequal length through a folder as it is served, and through the checkpoint's layer.

    Returns the verdict nearest to what is allowed, or beyond it. Raises ModelFailed if the folder cannot be served,
    CheckpointRefused if the checkpoint's layer cannot run.
    """
    engine, _ = _served(root, name)
    if engine.spec != model.spec:
        raise ModelFailed(f"config.json does not read as {model.spec}")
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


def expect_sample(root: Path, name: str, path: Path) -> str:
    """Run a sample through a folder as it is served; says how near the results are. Raises CheckpointRefused if not.

    path is a safetensors file: inputs (B, T, I) or token ids (B, T), lengths (B) if rows are padded, and predictions or
    outputs, or both, as /rnn/forward gives them; all without B for one sequence.
    """
    engine, initial = _served(root, name)
    spec = engine.spec
    sample = _read_sample(path, spec)
    inputs, lengths = sample["inputs"], sample["lengths"].tolist()
    states = {
        name: np.zeros(shape, np.float32) if stored is None else stored
        for (name, shape), stored in zip(spec.state_shapes.items(), initial, strict=False)
    }
    vectors = inputs.reshape(*inputs.shape[:2], -1).astype(np.float32)
    results = _run(engine, [{"x": row[:length], **states} for row, length in zip(vectors, lengths, strict=True)])
    worst = 0.0
    for key in sorted(sample.keys() & {"predictions", "outputs"}):
        for row, (wanted, length, result) in enumerate(zip(sample[key], lengths, results, strict=True)):
            true = wanted if wanted.ndim == 1 else wanted[:length]
            error = _distance(result[key], true) / max(1.0, float(np.abs(true).max()))
            if not error <= EXPECTED:
                raise CheckpointRefused(
                    f"not imported: {key}[{row}] of {path.name} differs from what is served by {error:.1e} "
                    f"(allowed {EXPECTED:.0e}), relative to its largest value if that is over 1"
                )
            worst = max(worst, error)
    return f"largest difference {worst:.1e} of the allowed {EXPECTED:.0e}, over {len(results)} sequences"


def _read_sample(path: Path, spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """The arrays of a sample with B and lengths. Raises CheckpointRefused where they do not fit the model."""
    step = () if spec.num_embeddings else (spec.in_features,)
    with refusing(f"{path.name} cannot be read as safetensors"):
        sample: dict[str, NDArray[Any]] = load_file(path)
    if "inputs" not in sample or not sample.keys() & {"predictions", "outputs"}:
        there = ", ".join(sorted(sample)) or "nothing"
        raise CheckpointRefused(f"{path.name} has {there}; expected inputs and predictions")
    if sample["inputs"].ndim == 1 + len(step):
        sample = {key: array[None] for key, array in sample.items()}
    inputs = sample["inputs"]
    if inputs.ndim < 2 or inputs.shape[2:] != step or not inputs.size:
        raise CheckpointRefused(f"{path.name}: inputs have shape {inputs.shape}; expected {('B', 'T', *step)}")
    if spec.num_embeddings and not (inputs.dtype.kind in "iu" and np.isin(inputs, range(spec.num_embeddings)).all()):
        raise CheckpointRefused(f"{path.name}: inputs must be whole numbers from 0 to {spec.num_embeddings - 1}")
    lengths = np.ravel(sample.get("lengths", np.full(len(inputs), inputs.shape[1])))
    if len(lengths) != len(inputs) or not np.isin(lengths, range(1, inputs.shape[1] + 1)).all():
        raise CheckpointRefused(f"{path.name}: lengths are not {len(inputs)} numbers from 1 to {inputs.shape[1]}")
    if "predictions" in sample and not spec.head:
        raise CheckpointRefused(f"{path.name} has predictions, and the model has no head that makes them")
    rows = {"outputs": inputs.shape[:2], "predictions": inputs.shape[: 2 if spec.pooling == "none" else 1]}
    for key, width in (("outputs", spec.output_size), ("predictions", spec.out_features)):
        if key in sample and sample[key].shape != (*rows[key], width):
            raise CheckpointRefused(
                f"{path.name}: {key} have shape {sample[key].shape}; expected {(*rows[key], width)}"
            )
    return sample | {"lengths": lengths.astype(np.int64)}


def _served(root: Path, name: str) -> tuple[Engine, InitialStates]:
    """The engine of a folder's first version as for serving, and where its states begin. Raises ModelFailed."""
    folder = read_folder(root, name)
    failure = folder.failure or folder.versions[0].failure
    if failure:
        raise ModelFailed(failure)
    version = folder.versions[0]
    # On the CPU, so that an import needs no GPU and disturbs none.
    factory = EngineFactory.configure("cpu", threads=0)
    return factory.load(version.spec, read_weights(version.weights, version.spec).arrays), version.states


def _distance(some: Numbers, others: Numbers) -> float:
    """The largest absolute difference; NaN if there is one."""
    # Predictions of a file may be those of the last step alone.
    return float(np.abs(some[-len(others) :].astype(np.float64) - others).max())


def _random_sequences(model: CheckpointModel) -> list[dict[str, Floats]]:
    """Sequences x (T, I), h (L·D, P), c (L·D, H) of numbers that a 32-bit float holds: both sides read the same."""
    random, spec = np.random.default_rng(0), model.spec
    long = min(LONG, max(LENGTHS[0], LONG_FLOPS // spec.flops_per_step))
    sequences = [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for shapes in ({"x": (length, spec.in_features), **spec.state_shapes} for length in (*LENGTHS, long, long))
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
