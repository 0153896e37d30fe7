"""Model folders: what is sound serves, what is broken says why, and neither disturbs the other."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.errors import ModelFailed
from service.models import weights
from service.models.folder import read_folder, scan
from service.models.weights import read_weights
from service.spec import ModelSpec

CONFIG = {"kind": "rnn", "input_size": 4, "hidden_size": 3}
SPEC = ModelSpec("rnn", 4, 3)


def failure_of(root, name="m", version=None):
    folder = read_folder(root, name)
    if version is None:
        return folder.failure
    return next(entry.failure for entry in folder.versions if entry.version == version)


def test_versions_are_numbers_in_order(write_model, tmp_path):
    for version in ("10", "9", "2"):
        write_model("m", CONFIG, version)
    (tmp_path / "m" / "latest").mkdir()
    (tmp_path / "m" / "007").mkdir()
    assert [entry.version for entry in read_folder(tmp_path, "m").versions] == ["2", "9", "10"]


def test_broken_model_does_not_hide_others(write_model, tmp_path):
    write_model("good", CONFIG)
    (tmp_path / "bad").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    folders = scan(tmp_path)
    assert sorted(folders) == ["bad", "good"]
    assert folders["good"].failure is None
    assert folders["bad"].failure == "config.json is missing"


def test_absent_repository_is_an_error(tmp_path):
    with pytest.raises(ModelFailed, match="cannot be listed"):
        scan(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["-dash", "ünïcode", "a b", "x" * 65])
def test_names_that_no_request_could_say_fail(write_model, tmp_path, name):
    write_model(name, CONFIG)
    assert "the first a letter or digit" in failure_of(tmp_path, name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "EOF"),
        ("[]", "config.json"),
        ('{"kind": "rnn"}', "input_size"),
        ('{"kind": "rnn", "input_size": 4, "hidden_size": 3, "hiden": 1}', "hiden"),
        ('{"kind": "rnn", "input_size": 4, "hidden_size": 3, "proj_size": 2}', "lstm only"),
        ('{"kind": "rnn", "input_size": 4, "hidden_size": 3, "front": [{"type": "elu", "alpha": NaN}]}', "finite"),
        (" " * (2**20 + 1), "larger than"),
    ],
)
def test_broken_config_says_why(write_model, tmp_path, text, says):
    write_model("m", CONFIG)
    (tmp_path / "m" / "config.json").write_text(text)
    assert says in failure_of(tmp_path)


def test_no_version_says_what_is_expected(write_model, tmp_path):
    write_model("m", CONFIG)
    (tmp_path / "m" / "1").rename(tmp_path / "m" / "one")
    assert "expected a folder such as 1/" in failure_of(tmp_path)


def test_weights_beside_the_config_are_version_1(write_model, tmp_path):
    """Numbered folders go first, where there are some."""
    write_model("m", CONFIG, "3")
    (tmp_path / "m/3/model.safetensors").rename(tmp_path / "m/model.safetensors")
    assert failure_of(tmp_path, version="3") == "model.safetensors is missing"
    (tmp_path / "m/3").rmdir()
    assert [(entry.version, entry.failure) for entry in read_folder(tmp_path, "m").versions] == [("1", None)]


@pytest.mark.parametrize(("given", "name"), [(None, "m"), ("sales", "sales")])
def test_root_may_be_a_model(write_model, tmp_path, given, name):
    write_model("m", CONFIG)
    assert {one.name: one.failure for one in scan(tmp_path / "m", given).values()} == {name: None}
    (tmp_path / "m/config.json").unlink()
    (tmp_path / "m/1/model.safetensors").rename(tmp_path / "m/model.safetensors")
    assert {one.name: one.failure for one in scan(tmp_path / "m", given).values()} == {name: "config.json is missing"}


def altered(arrays, **changes):
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bias_hh_l0": None}, "lacks bias_hh_l0"),
        ({"weight_ih_l1": np.zeros((3, 3), np.float32)}, "has weight_ih_l1"),
        ({"weight_ih_l0": np.zeros((3, 5), np.float32)}, "shape (3, 5); config.json makes it (3, 4)"),
        ({"weight_ih_l0": np.zeros((3, 4), np.int8)}, "is I8; expected one of F32"),
    ],
)
def test_unfit_weights_fail_by_their_header(write_model, tmp_path, changes, says):
    arrays = write_model("m", CONFIG)
    write_model("m", CONFIG, arrays=altered(arrays, **changes))
    assert says in failure_of(tmp_path, version="1")


def test_weights_that_are_no_safetensors_fail(write_model, tmp_path):
    write_model("m", CONFIG)
    (tmp_path / "m/1/model.safetensors").write_bytes(b"\x80\x04pickle")
    assert "not a safetensors file" in failure_of(tmp_path, version="1")
    (tmp_path / "m/1/model.safetensors").unlink()
    assert failure_of(tmp_path, version="1") == "model.safetensors is missing"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_must_be_finite(write_model, tmp_path, value):
    arrays = write_model("m", CONFIG)
    arrays["weight_hh_l0"][1, 2] = value
    write_model("m", CONFIG, arrays=arrays)
    assert failure_of(tmp_path, version="1") is None  # the header alone cannot tell
    with pytest.raises(ModelFailed, match="weight_hh_l0 holds NaN or infinity"):
        read_weights(tmp_path / "m/1/model.safetensors", SPEC)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted(write_model, tmp_path, dtype):
    arrays = write_model("m", CONFIG)
    path = tmp_path / "m/1/model.safetensors"
    save_file({name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}, path)
    read = read_weights(path, SPEC)
    expected = torch.from_numpy(arrays["weight_ih_l0"]).to(dtype).float().numpy()
    np.testing.assert_array_equal(read.arrays["weight_ih_l0"], expected)
    assert len(read.notes) == 4
    assert "weight_ih_l0 was converted from" in read.notes[0]


def test_float64_beyond_float32_is_refused(write_model, tmp_path):
    arrays = write_model("m", CONFIG)
    path = tmp_path / "m/1/model.safetensors"
    tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    tensors["bias_ih_l0"][0] = 1e300
    save_file(tensors, path)
    with pytest.raises(ModelFailed, match="too large for a 32-bit float"):
        read_weights(path, SPEC)


@pytest.mark.parametrize("file", ["config.json", "1/model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(write_model, tmp_path, file, make):
    write_model("m", CONFIG)
    path = tmp_path / "m" / file
    path.unlink()
    make(path)
    failure = failure_of(tmp_path) or failure_of(tmp_path, version="1")
    assert failure.startswith((f"{path.name} is not a regular file", f"{path.name} cannot be read: Is a directory"))


@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, 300), lambda path: path.write_bytes(path.read_bytes())]
)
def test_file_that_is_written_to_while_it_is_read(write_model, tmp_path, monkeypatch, change):
    """Once the header has been read: a mapped file would end the process (SIGBUS)."""
    write_model("m", CONFIG)
    path, verify = tmp_path / "m/1/model.safetensors", weights._verify
    monkeypatch.setattr(weights, "_verify", lambda *of: (verify(*of), change(path)))
    with pytest.raises(ModelFailed, match="it was written to meanwhile"):
        read_weights(path, SPEC)


def test_loaded_weights_outlive_the_file(write_model, tmp_path):
    arrays = write_model("m", CONFIG)
    path = tmp_path / "m/1/model.safetensors"
    read = read_weights(path, SPEC)
    path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(read.arrays["weight_ih_l0"], arrays["weight_ih_l0"])
