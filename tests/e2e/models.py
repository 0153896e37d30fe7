"""A model repository with every kind, and the results of PyTorch in float64."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from service.models.layer_config import described
from service.spec import ModelSpec
from tests.reference import TOLERANCE, Result, run_reference, weights_of

SPECS = {
    "tanh": ModelSpec("rnn", 4, 6),
    "relu": ModelSpec("rnn", 3, 5, nonlinearity="relu", bias=False),
    "gru": ModelSpec("gru", 4, 7, num_layers=2).with_linear_head(2),
    "lstm": ModelSpec("lstm", 5, 6, num_layers=2),
    "lstm-proj": ModelSpec("lstm", 4, 8, proj_size=3).with_linear_head(1),
    "both-ways": ModelSpec("gru", 3, 4, num_layers=2, bidirectional=True),
    "lstm-both-ways": ModelSpec("lstm", 3, 5, bidirectional=True, proj_size=2).with_linear_head(3),
    "wide": ModelSpec("lstm", 64, 256, num_layers=2),
    "explodes": ModelSpec("rnn", 1, 2, nonlinearity="relu"),
    "tutorial-rnn": ModelSpec("rnn", 4, 3),
    "tutorial-cell": ModelSpec("rnn", 4, 2),
}
STEPPABLE = [name for name, spec in SPECS.items() if not spec.bidirectional and name not in ("explodes", "wide")]
SMALL = [name for name in SPECS if name not in ("explodes", "wide")]

BROKEN = "broken"


def weights(name: str, version: int = 1) -> dict[str, np.ndarray]:
    """The weights of a model's version; `explodes` multiplies its state by 1e30 a step."""
    arrays = weights_of(SPECS[name], seed=version)
    if name == "explodes":
        arrays["weight_hh_l0"] = np.eye(2, dtype=np.float32) * np.float32(1e30)
        arrays["weight_ih_l0"] = np.ones((2, 1), np.float32)
    return arrays


def write_model(root: Path, name: str, version: int = 1, spec: ModelSpec | None = None) -> None:
    """One version of a model, as an operator would lay it down."""
    arrays = weights_of(spec, seed=version) if spec else weights(name, version)
    spec = spec or SPECS[name]
    fields = {field: value for field, value in asdict(spec).items() if field not in ("front", "head")}
    fields["front"] = [described(layer) for layer in spec.front]
    fields["head"] = [described(layer) for layer in spec.head]
    if spec.head and spec.head[0].name == "head":
        fields["head"] = {"out_features": spec.out_features}
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (root / name / "config.json").write_text(json.dumps(fields))
    save_file(arrays, folder / "model.safetensors")


def write_repository(root: Path) -> Path:
    """Every model above, two versions of one, and one whose weights are another model's."""
    for name in SPECS:
        write_model(root, name)
    write_model(root, "gru-two-versions", 1, SPECS["gru"])
    write_model(root, "gru-two-versions", 2, SPECS["gru"])
    folder = root / BROKEN / "1"
    folder.mkdir(parents=True)
    (root / BROKEN / "config.json").write_text('{"kind": "gru", "input_size": 4, "hidden_size": 7}')
    save_file(weights("tanh"), folder / "model.safetensors")
    return root


def expected(name: str, row: np.ndarray, h0: np.ndarray | None = None, c0: np.ndarray | None = None) -> Result:
    """One row (T, I) through a model in float64, from h0 (L·D, P) and c0 (L·D, H)."""
    return run_reference(SPECS[name], weights(name), row, h0, c0)


def assert_close(actual: object, wanted: np.ndarray) -> None:
    """Law 1: within the tolerance of PyTorch's float64."""
    np.testing.assert_allclose(np.array(actual), wanted, atol=TOLERANCE, rtol=0)
