"""Whether a model folder computes what its checkpoint did: the served path beside the checkpoint's own layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.engine.interface import Engine, Rows
from service.engine.load import EngineFactory
from service.errors import ModelFailed
from service.models.folder import read_folder
from service.models.importing.found import Found, Numbers, Probe, Results
from service.models.weights import read_weights
from service.spec import ModelSpec

LENGTHS = (17, 1, 6)
TOLERANCE = 1e-5


# A network can magnify rounding until two orders of summation part; how far they do is chance, so the bound is wide.
# The sequence of one step has no time to magnify anything and stays strict.
MAGNIFIED = 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """The largest absolute error of any output, state or prediction of one sequence, and what was allowed.

    allowed is 1e-5, times the largest value where that is over 1; or, for a network that magnifies rounding, 30 times
    what the reference itself loses by computing in 32 bits.
    """

    steps: int
    error: float
    allowed: float
    largest: float

    @property
    def passed(self) -> bool:
        """False for NaN, too."""
        return self.error <= self.allowed


def verify(root: Path, name: str, version: str, found: Found) -> Verdict:
    """Load a version as the service does and run random sequences of unequal length beside the checkpoint's layer.

    Gives the verdict on the sequence that failed or, where none did, on the one with the largest error. Raises
    ModelFailed where the folder cannot be served, CheckpointRefused where the checkpoint's layer cannot run.
    """
    engine = _served(root, name, version, found.spec)
    probes = _probes(found.spec)
    exact, rounded = found.reference(probes, np.float64), found.reference(probes, np.float32)
    verdicts = [
        _judged(len(probe.x), served, true, near)
        for probe, served, true, near in zip(probes, _run(engine, probes), exact, rounded, strict=True)
    ]
    return max(verdicts, key=lambda verdict: (not verdict.passed, verdict.error))


def _judged(steps: int, served: Results, exact: Results, rounded: Results) -> Verdict:
    largest = max(float(np.abs(values).max()) for values in _values(exact))
    allowed = max(TOLERANCE * max(1.0, largest), MAGNIFIED * _distance(rounded, exact))
    return Verdict(steps, _distance(served, exact), allowed, largest)


def _served(root: Path, name: str, version: str, spec: ModelSpec) -> Engine:
    folder = read_folder(root, name)
    entry = next((entry for entry in folder.versions if entry.version == version), None)
    failure = folder.failure or (entry.failure if entry else f"version {version} is not there")
    if failure or folder.config is None or entry is None:
        raise ModelFailed(failure or "there is no config")
    if folder.config.spec() != spec:
        raise ModelFailed(f"config.json reads as {folder.config.spec()}; expected {spec}")
    # On the CPU, so that an import needs no GPU and disturbs none.
    return EngineFactory.configure("cpu", threads=1).load(spec, read_weights(entry.weights, spec).arrays)


def _probes(spec: ModelSpec) -> list[Probe]:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> Numbers:
        # Numbers that a 32-bit float holds, so that both sides read the same.
        return random.standard_normal(shape).astype(np.float32).astype(np.float64)

    return [
        Probe(
            draw(length, spec.input_size),
            draw(spec.states, spec.state_size),
            draw(spec.states, spec.hidden_size) if spec.has_cell_state else None,
        )
        for length in LENGTHS
    ]


def _run(engine: Engine, probes: Sequence[Probe]) -> list[Results]:
    spec = engine.spec
    lengths = np.array([len(probe.x) for probe in probes], np.int64)
    rows = Rows(
        inputs=np.concatenate([probe.x for probe in probes]).astype(np.float32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        h=np.stack([probe.h for probe in probes], axis=1).astype(np.float32),
        outputs=np.zeros((lengths.sum(), spec.output_size), np.float32),
        predictions=None if spec.out_features is None else np.zeros((lengths.sum(), spec.out_features), np.float32),
    )
    cells = [probe.c for probe in probes if probe.c is not None]
    if cells:
        rows.c = np.stack(cells, axis=1).astype(np.float32)
    engine.run([rows])
    results = []
    for row, (start, length) in enumerate(zip(rows.starts, lengths, strict=True)):
        place = slice(start, start + length)
        results.append(
            Results(
                outputs=rows.outputs[place] if rows.outputs is not None else np.empty(0),
                h=rows.h[:, row],
                c=None if rows.c is None else rows.c[:, row],
                predictions=None if rows.predictions is None else rows.predictions[place],
            )
        )
    return results


def _values(result: Results) -> list[Numbers]:
    return [values for values in (result.outputs, result.h, result.c, result.predictions) if values is not None]


def _distance(some: Results, others: Results) -> float:
    pairs = zip(_values(some), _values(others), strict=True)
    return max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in pairs)
