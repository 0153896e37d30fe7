"""`rnn-service import`, from a file to an engine that computes what the checkpoint did."""

import os
import re
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
from service.engine.native import cells
from service.engine.native.compiler import compiled
from service.models.folder import read_folder
from service.models.weights import read_weights
from service.spec import ModelSpec
from tests.models.onnx_files import save_stack
from tests.reference import run_reference, specs, weights_of

LSTM = ModelSpec("lstm", 3, 4).with_linear_head(2)


def run(*arguments):
    return CliRunner().invoke(build_app(), ["import", *map(str, arguments)])


def save(path, spec, weights, prefix="net."):
    if path.suffix == ".onnx":
        save_stack(path, spec, weights, head="Gemm" if spec.out_features else None)
        return
    named = {
        name.replace("head.", "fc.") if "head." in name else f"{prefix}{name}": torch.from_numpy(array)
        for name, array in weights.items()
    }
    (save_file if path.suffix == ".safetensors" else torch.save)(named, path)


def run_on(folder, spec, weights, *options, suffix=".pt", prefix="net."):
    """Save a checkpoint and import it as model m of `<folder>/models`, with the options that spec needs."""
    path = folder / f"model{suffix}"
    save(path, spec, weights, prefix)
    nonlinearity = ["--nonlinearity", spec.nonlinearity] if spec.kind == "rnn" and suffix != ".onnx" else []
    head = ["--head", "fc"] if spec.out_features else []
    return run(path, "--name", "m", "--models", folder / "models", *nonlinearity, *head, *options)


@settings(max_examples=50)
@given(spec=specs(layers=2, size=5), suffix=st.sampled_from((".pt", ".safetensors", ".onnx")), seed=st.integers(0, 9))
def test_every_model_comes_through(spec, suffix, seed):
    if suffix == ".onnx":
        stack = replace(spec, proj_size=0, head=())
        spec = stack.with_linear_head(spec.out_features) if spec.out_features else stack
    weights = weights_of(spec, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = run_on(folder, spec, weights, suffix=suffix)
        assert result.exit_code == 0, result.output
        assert "verified: largest difference" in result.stdout
        assert read_folder(folder / "models", "m").config.spec() == spec
        written = read_weights(folder / "models" / "m" / "1" / "model.safetensors", spec).arrays
    assert all(np.array_equal(written[name], weights[name]) for name in weights)


def test_output_of_an_import(tmp_path):
    result = run_on(tmp_path, LSTM, weights_of(LSTM), "--description", "a test", prefix="module.lstm.")
    assert result.exit_code == 0
    found = "found in model.pt: module.lstm, kind lstm, input_size 3, hidden_size 4, num_layers 1, head with 2 outputs"
    assert found in result.stdout
    assert "module.lstm.weight_hh_l0" in result.stdout
    assert "against torch.nn.LSTM in float64, over random and saturating sequences of up to 1000 steps" in result.stdout
    assert f"imported: {tmp_path}/models/m/1" in result.stdout
    assert read_folder(tmp_path / "models", "m").config.description == "a test"


def test_long_lists_are_cut(tmp_path):
    model = torch.nn.ModuleDict({f"fc{i}": torch.nn.Linear(4, 1) for i in range(30)} | {"gru": torch.nn.GRU(3, 4, 9)})
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "model.pt")
    result = run(tmp_path / "model.pt", "--name", "m", "--models", tmp_path / "models")
    assert result.exit_code == 0
    assert "ignored: state_dict.fc0.weight (1, 4); " in result.stdout
    assert 'by their widths more layers fit: --head "state_dict.fc0", ' in result.stdout
    assert "and 37 more" in result.stdout
    assert "and 12 more" in result.stdout


def test_terminal_codes_in_names_are_escaped(tmp_path):
    weights = weights_of(LSTM) | {"\x1b[2Jevil\n": np.zeros(1, np.float32)}
    result = run_on(tmp_path, LSTM, weights, prefix="\x1b[2J.")
    assert result.exit_code == 0
    assert result.stdout.count(r"\x1b[2J.weight_hh_l0") == 1
    assert "\x1b" not in result.stdout


def altered(path, spec):
    """What a mistake in the import would make of the weights."""
    weights = read_weights(path, spec)
    weights.arrays["weight_hh_l0"][:] += 0.01
    return weights


def test_failed_verification_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "read_weights", altered)
    result = run_on(tmp_path, LSTM, weights_of(LSTM))
    assert result.exit_code == 1
    assert "error: not imported: largest difference" in result.stderr
    assert not (tmp_path / "models").exists()


def test_memory_that_leaks_is_noticed(tmp_path, monkeypatch):
    """An engine that loses 1e-7 of a memory at each step passes in short sequences."""
    spec, precise = ModelSpec("lstm", 6, 4), cells.precise_sigmoid
    monkeypatch.setattr(cells, "precise_sigmoid", lambda v, x: v.mul(precise(v, x), v.constant(1 - 1e-7)))
    compiled.cache_clear()
    try:
        assert run_on(tmp_path, spec, weights_of(spec, seed=2)).exit_code == 1
        monkeypatch.setattr(verify, "LONG", 10)
        assert run_on(tmp_path, spec, weights_of(spec, seed=2)).exit_code == 0
    finally:
        compiled.cache_clear()


def test_relu_beyond_float32_in_long_sequences(tmp_path):
    spec = ModelSpec("rnn", 3, 4, nonlinearity="relu")
    assert run_on(tmp_path, spec, {name: np.abs(4 * array) for name, array in weights_of(spec).items()}).exit_code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_beyond_float32_are_refused(tmp_path, value):
    weights = {name: array.astype(np.float64) for name, array in weights_of(LSTM).items()}
    weights["weight_hh_l0"][0, 0] = value
    result = run_on(tmp_path, LSTM, weights)
    assert result.exit_code == 1
    assert "model.pt: weight_hh_l0 holds NaN or infinity, or is too large for a 32-bit float" in result.stderr
    assert not (tmp_path / "models").exists()


def test_chaotic_network_may_err_as_torch_does(tmp_path, monkeypatch):
    spec = ModelSpec("rnn", 8, 64)
    rng = np.random.default_rng(0)
    weights = {name: 8 * rng.standard_normal(shape).astype(np.float32) for name, shape in spec.weight_shapes().items()}
    result = run_on(tmp_path, spec, weights)
    assert result.exit_code == 0, result.output
    # And yet weights that are slightly off are noticed: one step magnifies nothing.
    monkeypatch.setattr(verify, "read_weights", altered)
    assert run_on(tmp_path, spec, weights).exit_code == 1
    assert [path.name for path in (tmp_path / "models" / "m").iterdir() if path.is_dir()] == ["1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--name", "../up"],
            "--name: expected 1 to 64 letters, digits, .* the first a letter or digit, .* and got '../up'",
        ),
        (["--name", "m", "--version", "01"], "--version: expected a whole number"),
        (["--name", "m", "--layer", "gru"], "--layer gru is not in the file; it has net"),
        (["--name", "m", "--nonlinearity", "relu", "--head", "decoder"], "--head decoder is not in the file; it has"),
        (["--name", "m", "--nonlinearity", "sigmoid"], "nonlinearity"),
        (["--name", "m"], r"say --nonlinearity tanh \(PyTorch's default\) or --nonlinearity relu"),
        ([], "name"),
    ],
)
def test_unfit_options_are_usage_errors(tmp_path, options, message):
    spec = ModelSpec("rnn", 3, 4)
    save(tmp_path / "model.pt", spec, weights_of(spec))
    result = run(tmp_path / "model.pt", "--models", tmp_path / "models", *options)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "models").exists()


def test_name_that_is_taken_says_what_to_do(tmp_path):
    plain = replace(LSTM, head=())
    assert run_on(tmp_path, plain, weights_of(plain)).exit_code == 0
    result = run_on(tmp_path, LSTM, weights_of(LSTM))
    assert result.exit_code == 2
    assert "--replace it, choose another --name, or remove it first: rnn-service remove m" in result.stderr


def test_onnx_is_told_by_its_name_in_any_case(tmp_path):
    assert run_on(tmp_path, LSTM, weights_of(LSTM), suffix=".onnx").exit_code == 0
    (tmp_path / "model.onnx").rename(tmp_path / "MODEL.ONNX")
    assert run(tmp_path / "MODEL.ONNX", "--name", "n", "--models", tmp_path / "models").exit_code == 0


def test_onnx_says_itself_what_its_layers_are(tmp_path):
    result = run_on(tmp_path, LSTM, weights_of(LSTM), "--pooling", "last", suffix=".onnx")
    assert result.exit_code == 2
    assert "an ONNX file says what its layers are: leave out --pooling" in result.stderr


def test_missing_onnx_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "model.onnx").write_bytes(b"")
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
        ("model.txt", b"hello", 1),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    result = run(tmp_path / name, "--name", "m", "--models", tmp_path / "models")
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists()


def sample_of(path, **arrays):
    save_file({name: torch.as_tensor(array) for name, array in arrays.items()}, path)


def padded_sample(spec, weights):
    """Inputs of three rows with lengths, and the outputs and predictions of each."""
    rows = [np.random.default_rng(length).standard_normal((length, 3)).astype(np.float32) for length in (4, 1, 3)]
    results = [run_reference(spec, weights, row) for row in rows]

    def pad(arrays):
        return np.stack([np.pad(array, ((0, 4 - len(array)), (0, 0))) for array in arrays])

    return {
        "inputs": pad(rows),
        "lengths": np.array([4, 1, 3]),
        "outputs": pad([result.outputs for result in results]),
        "predictions": pad([result.predictions for result in results]),
    }


def test_sample_that_fits(tmp_path):
    weights = weights_of(LSTM)
    sample = padded_sample(LSTM, weights)
    sample_of(tmp_path / "s.safetensors", **sample)
    result = run_on(tmp_path, LSTM, weights, "--expect", tmp_path / "s.safetensors")
    assert result.exit_code == 0, result.output
    assert re.search(r"expected: largest difference \S+ of the allowed 1e-04, over 3 sequences", result.stdout)
    first = {name: array[0] for name, array in sample.items() if name != "lengths"}
    sample_of(tmp_path / "s.safetensors", **first)
    assert run_on(tmp_path, LSTM, weights, "--expect", tmp_path / "s.safetensors").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"predictions": lambda a: a + 1e-3},
            r"predictions\[0\] of s.safetensors differs .* by 1.0e-03",
        ),
        ({"outputs": lambda a: a * float("nan")}, r"outputs\[0\] of s.safetensors differs from what is served by nan"),
        ({"predictions": lambda a: a[:, -1]}, r"predictions have shape \(3, 2\); expected \(3, 4, 2\)"),
        ({"predictions": lambda a: a[..., :1]}, r"predictions have shape \(3, 4, 1\); expected \(3, 4, 2\)"),
        ({"inputs": lambda a: a[..., :2]}, r"inputs have shape \(3, 4, 2\); expected \('B', 'T', 3\)"),
        ({"inputs": lambda a: a[0, 0]}, r"inputs have shape \(3,\); expected \('B', 'T', 3\)"),
        ({"lengths": lambda a: a[:2]}, "s.safetensors: .*lengths"),
        ({"lengths": lambda a: a * 100}, "s.safetensors: .*lengths"),
        ({"lengths": lambda a: a * 0}, "s.safetensors: .*lengths"),
        ({"predictions": None, "outputs": None}, "s.safetensors has inputs, lengths; expected inputs and predictions"),
    ],
)
def test_sample_that_does_not_fit(tmp_path, changes, message):
    weights = weights_of(LSTM)
    sample = padded_sample(LSTM, weights)
    changed = {name: changes.get(name, lambda a: a) for name in sample}
    sample = {name: np.ascontiguousarray(change(sample[name])) for name, change in changed.items() if change}
    sample_of(tmp_path / "s.safetensors", **sample)
    result = run_on(tmp_path, LSTM, weights, "--expect", tmp_path / "s.safetensors")
    assert result.exit_code == 1, result.output
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("ids", [[0, 9], [-1], [0.0, 1.0]])
def test_sample_of_ids_that_are_none(tmp_path, ids):
    state = {"emb.weight": torch.zeros(9, 3)} | {f"net.{k}": v for k, v in torch.nn.GRU(3, 4).state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    sample_of(tmp_path / "s.safetensors", inputs=ids, outputs=np.zeros((len(ids), 4), np.float32))
    options = ["--front", "emb", "--expect", tmp_path / "s.safetensors", "--models", tmp_path / "models"]
    result = run(tmp_path / "model.pt", "--name", "m", *options)
    assert result.exit_code == 1
    assert "s.safetensors: inputs must be whole numbers from 0 to 8" in result.stderr


def test_remove(tmp_path):
    def remove(*arguments):
        return CliRunner().invoke(build_app(), ["remove", *arguments, "--models", str(tmp_path / "models")])

    for _ in range(3):
        run_on(tmp_path, LSTM, weights_of(LSTM))
    assert remove("m", "--version", "2").stdout == f"removed: {tmp_path}/models/m/2\n"
    assert remove("m", "--version", "2").exit_code == 2
    assert [version.version for version in read_folder(tmp_path / "models", "m").versions] == ["1", "3"]
    assert remove("m", "--version", "1").exit_code == 0
    assert remove("m", "--version", "3").stdout == f"removed: {tmp_path}/models/m\n"
    assert list((tmp_path / "models").iterdir()) == []
    assert remove("m").stderr == f"error: there is no model 'm' in {tmp_path}/models\n"
    assert remove("../models").exit_code == 2
    run_on(tmp_path, LSTM, weights_of(LSTM))
    run_on(tmp_path, LSTM, weights_of(LSTM))
    assert remove("m").exit_code == 0
    assert list((tmp_path / "models").iterdir()) == []
