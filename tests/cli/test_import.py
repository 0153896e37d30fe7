"""`rnn-service import`, from a file to an engine that computes what the checkpoint did."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from service.cli import build_app, verify
from service.engine.interface import Rows
from service.engine.load import EngineFactory
from service.models.folder import read_folder
from service.models.weights import read_weights
from service.spec import ModelSpec
from tests.reference import TOLERANCE, numbers, run_reference, specs, weights_of
from tests.models.onnx_graphs import save_stack

LSTM = ModelSpec("lstm", 3, 4, out_features=2)


def run(*arguments):
    return CliRunner().invoke(build_app(), ["import", *map(str, arguments)])


def save(path, spec, weights, prefix="net."):
    named = {
        name.replace("head.", "fc.") if "head." in name else f"{prefix}{name}": torch.from_numpy(array)
        for name, array in weights.items()
    }
    (save_file if path.suffix == ".safetensors" else torch.save)(named, path)


def arguments_for(spec, path, root):
    nonlinearity = ["--nonlinearity", spec.nonlinearity] if spec.kind == "rnn" and path.suffix != ".onnx" else []
    head = ["--head", "fc"] if spec.out_features else []
    return [path, "--name", "m", "--models", root, *nonlinearity, *head]


def served(root, spec, x):
    """Outputs and predictions of one sequence, as the service computes them."""
    folder = read_folder(root, "m")
    assert folder.failure is None
    weights = read_weights(folder.versions[-1].weights, folder.config.spec())
    engine = EngineFactory.configure("cpu", 1).load(folder.config.spec(), weights.arrays)
    rows = Rows(
        inputs=x,
        starts=np.zeros(1, np.int64),
        lengths=np.array([len(x)]),
        h=np.zeros((spec.states, 1, spec.state_size), np.float32),
        c=np.zeros((spec.states, 1, spec.hidden_size), np.float32) if spec.has_cell_state else None,
        outputs=np.zeros((len(x), spec.output_size), np.float32),
        predictions=np.zeros((len(x), spec.out_features), np.float32) if spec.out_features else None,
    )
    engine.run([rows])
    return rows.outputs, rows.predictions


@settings(max_examples=60, deadline=None)
@given(spec=specs(), suffix=st.sampled_from((".pt", ".safetensors", ".onnx")), seed=st.integers(0, 9))
def test_every_model_comes_through(spec, suffix, seed):
    if suffix == ".onnx":
        spec = replace(spec, proj_size=0)
    weights = weights_of(spec, seed)
    with tempfile.TemporaryDirectory() as folder:
        path, root = Path(folder) / f"model{suffix}", Path(folder) / "models"
        if suffix == ".onnx":
            save_stack(path, spec, weights, head="Gemm" if spec.out_features else None)
        else:
            save(path, spec, weights)
        result = run(*arguments_for(spec, path, root))
        assert result.exit_code == 0, result.output
        assert "verified: max abs error" in result.stdout
        x = numbers(np.random.default_rng(seed), 9, spec.input_size)
        outputs, predictions = served(root, spec, x)
    expected = run_reference(spec, weights, x)
    scale = max(1.0, float(np.abs(expected.outputs).max()))
    assert np.abs(outputs - expected.outputs).max() <= TOLERANCE * scale
    if spec.out_features:
        assert np.abs(predictions - expected.predictions).max() <= TOLERANCE * scale


def test_what_a_user_reads(tmp_path):
    save(tmp_path / "model.pt", LSTM, weights_of(LSTM), prefix="module.lstm.")
    result = run(*arguments_for(LSTM, tmp_path / "model.pt", tmp_path / "models"), "--description", "a test")
    assert result.exit_code == 0
    assert (
        "found in model.pt: module.lstm, kind lstm, input_size 3, hidden_size 4, num_layers 1, head of 2"
        in result.stdout
    )
    assert "module.lstm.weight_hh_l0" in result.stdout
    assert "against torch.nn.LSTM in float64, over random sequences of 17, 1 and 6 steps" in result.stdout
    assert f"imported: {tmp_path}/models/m/1" in result.stdout
    assert read_folder(tmp_path / "models", "m").config.description == "a test"


def test_a_checkpoint_with_too_much_in_it_says_what_was_ignored(tmp_path):
    model = torch.nn.ModuleDict({f"fc{i}": torch.nn.Linear(4, 1) for i in range(30)} | {"gru": torch.nn.GRU(3, 4, 9)})
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "model.pt")
    result = run(tmp_path / "model.pt", "--name", "m", "--models", tmp_path / "models")
    assert result.exit_code == 0
    assert "ignored: state_dict.fc0.weight (1, 4), could be --head state_dict.fc0; " in result.stdout
    assert "and 37 more" in result.stdout
    assert "and 12 more" in result.stdout


def altered(path, spec):
    """What a mistake in the import would make of the weights."""
    weights = read_weights(path, spec)
    weights.arrays["weight_hh_l0"][:] += 0.01
    return weights


def test_a_failed_verification_leaves_no_folder_behind(tmp_path, monkeypatch):
    save(tmp_path / "model.pt", LSTM, weights_of(LSTM))
    monkeypatch.setattr(verify, "read_weights", altered)
    result = run(*arguments_for(LSTM, tmp_path / "model.pt", tmp_path / "models"))
    assert result.exit_code == 1
    assert "error: not imported: max abs error" in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_no_32_bit_float_holds_are_refused(tmp_path, value):
    weights = {name: array.astype(np.float64) for name, array in weights_of(LSTM).items()}
    weights["weight_hh_l0"][0, 0] = value
    save(tmp_path / "model.pt", LSTM, weights)
    result = run(*arguments_for(LSTM, tmp_path / "model.pt", tmp_path / "models"))
    assert result.exit_code == 1
    assert "model.pt: weight_hh_l0 holds NaN or infinity, or is too large for a 32-bit float" in result.stderr
    assert not (tmp_path / "models").exists()


def test_a_chaotic_network_is_allowed_what_torch_itself_loses(tmp_path, monkeypatch):
    spec = ModelSpec("rnn", 8, 64)
    rng = np.random.default_rng(0)
    weights = {name: 8 * rng.standard_normal(shape).astype(np.float32) for name, shape in spec.weight_shapes().items()}
    save(tmp_path / "model.pt", spec, weights)
    result = run(*arguments_for(spec, tmp_path / "model.pt", tmp_path / "models"))
    assert result.exit_code == 0, result.output
    # And yet weights that are a hair off are noticed: one step magnifies nothing.
    monkeypatch.setattr(verify, "read_weights", altered)
    result = run(*arguments_for(spec, tmp_path / "model.pt", tmp_path / "models"))
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "models" / "m").iterdir() if path.is_dir()] == ["1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "../up"], r"--name: expected \[A-Za-z0-9\]"),
        (["--name", "m", "--version", "01"], "--version: expected a whole number"),
        (["--name", "m", "--layer", "gru"], "--layer gru is not in the file; it has net"),
        (["--name", "m", "--head", "decoder"], "--head decoder is not in the file; it has"),
        (["--name", "m", "--nonlinearity", "sigmoid"], "nonlinearity"),
        ([], "name"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(tmp_path, options, message):
    save(tmp_path / "model.pt", LSTM, weights_of(LSTM))
    result = run(tmp_path / "model.pt", "--models", tmp_path / "models", *options)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "models").exists()


def test_an_rnn_needs_its_nonlinearity(tmp_path):
    spec = ModelSpec("rnn", 3, 4)
    save(tmp_path / "model.pt", spec, weights_of(spec))
    result = run(tmp_path / "model.pt", "--name", "m", "--models", tmp_path / "models")
    assert result.exit_code == 2
    assert "say --nonlinearity tanh (PyTorch's default) or --nonlinearity relu" in result.stderr


def test_without_the_onnx_package_a_user_is_told_how_to_get_it(tmp_path, monkeypatch):
    save_stack(tmp_path / "model.onnx", LSTM, weights_of(LSTM), head="Gemm")
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run(tmp_path / "model.onnx", "--name", "m", "--models", tmp_path / "models")
    assert result.exit_code == 1
    assert result.stderr == "error: model.onnx: reading .onnx files needs the onnx package: pip install onnx\n"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("junk.pt", os.urandom(999), 1),
        ("empty.pth", b"", 1),
        ("zip.pt", b"PK\x03\x04" + bytes(200), 1),
        ("junk.safetensors", os.urandom(999), 1),
        ("empty.onnx", b"", 1),
        ("junk.onnx", os.urandom(999), 1),
        ("model.txt", b"hello", 2),
    ],
)
def test_files_that_are_no_checkpoints_from_outside(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-m", "service", "import", name, "--name", "m", "--models", "models"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists()
