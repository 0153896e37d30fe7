"""Checkpoint files that are, and files that are not."""

import argparse
import os
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from service.models.importing.checkpoint import TORCH_SUFFIXES, read_tensors
from service.models.importing.found import CheckpointRefused


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return torch.nn.LSTM(3, 4).state_dict()


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_in_either_format_of_torch(tmp_path, weights, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    found = read_tensors(path)
    assert found.others == []
    assert all(torch.equal(found.by_name[name], weights[name]) for name in weights)


def test_safetensors(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(found.by_name[name], weights[name]) for name in weights)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "weights"])
def test_a_state_dict_inside_a_training_checkpoint(tmp_path, weights, key):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    torch.save({"epoch": 3, key: weights, "optimizer": optimizer.state_dict()}, tmp_path / "model.pt")
    found = read_tensors(tmp_path / "model.pt")
    assert set(found.by_name) == {f"{key}.{name}" for name in weights}
    assert "epoch" in found.others


def test_a_dict_that_holds_itself_ends(tmp_path, weights):
    loop = {"state_dict": weights}
    loop["loop"] = loop
    torch.save(loop, tmp_path / "model.pt")
    assert "state_dict.weight_ih_l0" in read_tensors(tmp_path / "model.pt").by_name


class Touch:
    """A pickle that would make a file if it were loaded without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path):
    torch.save({"weight_ih_l0": Touch(tmp_path / "executed")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointRefused, match=r"torch.save\(model.state_dict\(\)"):
        read_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.nn.LSTM(3, 4), r"the Python object torch.nn.modules.rnn.LSTM, .* torch.save\(model.state_dict\(\)"),
        ({"args": argparse.Namespace(lr=1), "model": {}}, "the Python object argparse.Namespace"),
        (torch.zeros(2), "holds a Tensor, not a state_dict"),
        ([torch.zeros(2)], "holds a list, not a state_dict"),
    ],
)
def test_more_than_weights_is_refused_with_how_to_export(tmp_path, content, reason):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointRefused, match=reason):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointRefused, match="TorchScript archive"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_truncation_is_one_sentence(tmp_path, weights, suffix):
    whole = tmp_path / f"whole{suffix}"
    (torch.save if suffix == ".pt" else save_file)(weights, whole)
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for size in range(0, len(content), max(1, len(content) // 60)):
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointRefused) as refusal:
            read_tensors(cut)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damage_is_refused_or_read(tmp_path, weights, suffix):
    """Bytes changed at random: some land in the numbers, and no other error than a refusal comes of the rest."""
    whole = tmp_path / f"whole{suffix}"
    (torch.save if suffix == ".pt" else save_file)(weights, whole)
    content, rng = whole.read_bytes(), random.Random(0)
    damaged = tmp_path / f"damaged{suffix}"
    refusals = []
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(3):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        damaged.write_bytes(changed)
        try:
            read_tensors(damaged)
        except CheckpointRefused as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all(refusal.isprintable() for refusal in refusals)


def test_a_compressed_archive_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**24))
    with pytest.raises(CheckpointRefused, match="compressed zip archive"):
        read_tensors(tmp_path / "bomb.pt")


def test_a_lying_safetensors_header(tmp_path):
    (tmp_path / "liar.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointRefused, match="not a safetensors file"):
        read_tensors(tmp_path / "liar.safetensors")
