"""Files that are checkpoints, and files that are not."""

import argparse
import os
import random
import zipfile
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.models.importing.refusal import CheckpointRefused
from service.models.importing.tensors import read_tensors

SUFFIXES = (".pt", ".safetensors")


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return torch.nn.LSTM(3, 4).state_dict()


@pytest.fixture(params=SUFFIXES)
def content(request, tmp_path, weights):
    """The suffix and the bytes of a sound file."""
    path = tmp_path / f"whole{request.param}"
    (torch.save if request.param == ".pt" else save_file)(weights, path)
    return request.param, path.read_bytes()


def read_torch(tmp_path, content, suffix=".pt", **options):
    torch.save(content, tmp_path / f"model{suffix}", **options)
    return read_tensors(tmp_path / f"model{suffix}")


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".tar", ".PTH", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_in_both_torch_formats(tmp_path, weights, suffix, zipped):
    found = read_torch(tmp_path, weights, suffix, _use_new_zipfile_serialization=zipped)
    assert found.others == []
    assert all(torch.equal(found.by_name[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "MODEL"])
def test_safetensors_under_any_name(tmp_path, weights, name):
    save_file(weights, tmp_path / name)
    found = read_tensors(tmp_path / name)
    assert all(torch.equal(found.by_name[name], weights[name]) for name in weights)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dict_in_a_training_checkpoint(tmp_path, weights, key):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    found = read_torch(tmp_path, {"epoch": 3, key: weights, "optimizer": optimizer.state_dict()})
    assert set(found.by_name) == {f"{key}.{name}" for name in weights}
    assert "epoch" in found.others


def test_dict_that_holds_itself(tmp_path, weights):
    loop = {"state_dict": weights}
    loop |= {f"loop{number}": loop for number in range(9)}
    assert set(read_torch(tmp_path, loop).by_name) >= {f"state_dict.{name}" for name in weights}


def test_state_dict_in_dicts_and_lists(tmp_path, weights):
    found = read_torch(tmp_path, {"a": {"b": {"c": {"d": {"nets": [{"e": weights}]}}}}})
    assert set(found.by_name) == {f"a.b.c.d.nets.0.e.{name}" for name in weights}


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_protocol_is_named(tmp_path, weights, zipped):
    with pytest.raises(CheckpointRefused, match=r"has pickle protocol 4, .* torch.save\(model.state_dict\(\)"):
        read_torch(tmp_path, weights, pickle_protocol=4, _use_new_zipfile_serialization=zipped)


@pytest.mark.filterwarnings("ignore")  # says that it is deprecated
def test_quantized_weights_are_named(tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(torch.nn.ModuleList([torch.nn.LSTM(3, 4)]), {torch.nn.LSTM})
    with pytest.raises(CheckpointRefused, match="weights are quantized, and are needed as they were before"):
        read_torch(tmp_path, quantized.state_dict())


class MakeFolder:
    """A pickle that makes a folder if it is loaded without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path):
    with pytest.raises(CheckpointRefused, match=r"torch.save\(model.state_dict\(\)"):
        read_torch(tmp_path, {"weight_ih_l0": MakeFolder(tmp_path / "executed")})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.nn.LSTM(3, 4), r"the Python object torch.nn.modules.rnn.LSTM, .* torch.save\(model.state_dict\(\)"),
        ({"args": argparse.Namespace(lr=1), "model": {}}, "the Python object argparse.Namespace, and only tensors"),
        ({"path": PosixPath("a"), "model": {}}, "the Python object pathlib.PosixPath, and only tensors"),
        ({"loss": np.float64(1), "model": {}}, "the Python object numpy.*scalar, and only tensors"),
        (torch.zeros(2), "holds a Tensor, not a state_dict"),
        ([torch.zeros(2)], "holds a list, not a state_dict"),
    ],
)
def test_refusal_says_how_to_export(tmp_path, content, reason):
    with pytest.raises(CheckpointRefused, match=reason):
        read_torch(tmp_path, content)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointRefused, match="TorchScript archive"):
        read_tensors(tmp_path / "model.pt")


def test_every_truncation_is_one_sentence(tmp_path, content):
    suffix, whole = content
    cut = tmp_path / f"cut{suffix}"
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointRefused) as refusal:
            read_tensors(cut)
        assert str(refusal.value).isprintable()


def test_damage_is_refused_or_read(tmp_path, content):
    """Bytes changed at random: some land in the numbers, and the rest raise nothing but refusals."""
    suffix, whole = content
    rng, damaged = random.Random(0), tmp_path / f"damaged{suffix}"
    refusals = []
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(3):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        damaged.write_bytes(changed)
        try:
            read_tensors(damaged)
        except CheckpointRefused as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all(refusal.isprintable() for refusal in refusals)


def test_compressed_archive_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**24))
    with pytest.raises(CheckpointRefused, match="compressed zip archive"):
        read_tensors(tmp_path / "bomb.pt")


def test_safetensors_header_that_lies(tmp_path):
    (tmp_path / "liar.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointRefused, match="not a safetensors file"):
        read_tensors(tmp_path / "liar.safetensors")
