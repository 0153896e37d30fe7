"""A model folder appears whole or not at all."""

import json
import shutil
import stat
from dataclasses import replace

import pytest
import torch

from service.models.folder import read_folder, scan
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.models.importing.staging import staged
from service.models.layer_config import LayerConfig, chain_layers
from service.models.weights import read_weights
from service.spec import ModelSpec
from tests.reference import weights_of

SPEC = ModelSpec("lstm", 3, 4, bidirectional=True).with_linear_head(2)


def stage(root, *, spec=SPEC, arrays=None, seed=0, **options):
    arrays = arrays or {name: torch.from_numpy(array) for name, array in weights_of(spec, seed).items()}
    return staged(root, "m", spec, arrays, **{"version": None, "description": None} | options)


def write(root, **options):
    with stage(root, **options) as model:
        return model.publish()


def test_new_model_and_its_next_versions(tmp_path):
    root = tmp_path / "models"
    assert write(root, description="first") == root / "m" / "1"
    assert write(root, seed=1) == root / "m" / "2"
    assert write(root, version="7") == root / "m" / "7"
    assert write(root) == root / "m" / "8"
    folder = read_folder(root, "m")
    assert folder.config.spec() == SPEC
    assert folder.config.description == "first"
    assert [(version.version, version.failure) for version in folder.versions] == [(n, None) for n in "1278"]
    read = read_weights(root / "m" / "2" / "model.safetensors", SPEC)
    assert {name: array.tolist() for name, array in read.arrays.items()} == {
        name: array.tolist() for name, array in weights_of(SPEC, 1).items()
    }
    assert sorted(path.name for path in root.iterdir()) == ["m"]
    assert json.loads((root / "m" / "config.json").read_text()) == {
        "kind": "lstm",
        "input_size": 3,
        "hidden_size": 4,
        "bidirectional": True,
        "head": {"out_features": 2},
        "description": "first",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_written_as_float32(tmp_path, dtype):
    arrays = {name: torch.from_numpy(array).to(dtype) for name, array in weights_of(SPEC).items()}
    read = read_weights(write(tmp_path, arrays=arrays) / "model.safetensors", SPEC)
    assert read.notes == []
    assert all(torch.equal(torch.from_numpy(read.arrays[name]), arrays[name].float()) for name in arrays)


def test_other_users_can_read_the_files(tmp_path):
    folder = write(tmp_path)
    for path in (folder / "model.safetensors", tmp_path / "m" / "config.json"):
        assert path.stat().st_mode & stat.S_IROTH
    for path in (folder, tmp_path / "m"):
        assert path.stat().st_mode & stat.S_IXOTH


def test_staged_model_is_not_listed(tmp_path):
    with stage(tmp_path) as model:
        assert scan(tmp_path) == {}
        assert not read_folder(model.root, "m").versions[0].failure


@pytest.mark.parametrize("there", [True, False])
def test_unpublished_model_leaves_nothing(tmp_path, there):
    root = tmp_path / "models"
    if there:
        root.mkdir()
    with pytest.raises(ZeroDivisionError), stage(root):
        raise ZeroDivisionError
    assert root.exists() == there
    assert not there or not list(root.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"spec": ModelSpec("gru", 3, 4)}, "exists with kind 'lstm', and this one has 'gru'"),
        ({"spec": ModelSpec("lstm", 3, 5, bidirectional=True)}, "exists with hidden_size 4, and this one has 5"),
        ({"description": "other"}, "exists with description 'first', and this one has 'other'"),
        ({"version": "1"}, "has a version 1 already"),
    ],
)
def test_versions_of_a_model_share_one_config(tmp_path, options, reason):
    write(tmp_path, description="first")
    with pytest.raises(ChoiceNeeded, match=reason):
        write(tmp_path, **options)
    assert [path.name for path in (tmp_path / "m").iterdir() if path.is_dir()] == ["1"]


def test_broken_model_is_not_added_to(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ChoiceNeeded, match="exists and is broken"):
        write(tmp_path)


def test_model_that_appeared_meanwhile_is_kept(tmp_path):
    with stage(tmp_path) as model:
        weights = write(tmp_path, seed=1) / "model.safetensors"
        before = weights.read_bytes()
        with pytest.raises(CheckpointRefused, match="cannot be written"):
            model.publish()
    assert weights.read_bytes() == before


def test_repository_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointRefused, match="is not a folder"):
        write(tmp_path / "file")
    with pytest.raises(CheckpointRefused, match="cannot be written: No such file"):
        write(tmp_path / "no" / "where")


def test_too_large_a_size_is_refused(tmp_path):
    spec = ModelSpec("rnn", 3, 70_000)
    with pytest.raises(CheckpointRefused, match="hidden_size: Input should be less than or equal to 65536"):
        write(tmp_path, spec=spec, arrays={"weight_ih_l0": torch.zeros(1)})


def test_replaced_version(tmp_path):
    write(tmp_path, description="first")
    write(tmp_path, seed=1)
    assert write(tmp_path, seed=2, replace=True) == tmp_path / "m" / "2"
    assert write(tmp_path, seed=3, replace=True, version="1") == tmp_path / "m" / "1"
    assert write(tmp_path, seed=4, replace=True, version="9") == tmp_path / "m" / "9"
    for version, seed in (("2", 2), ("1", 3), ("9", 4)):
        read = read_weights(tmp_path / "m" / version / "model.safetensors", SPEC)
        assert read.arrays["head.bias"].tolist() == weights_of(SPEC, seed)["head.bias"].tolist()
    with pytest.raises(ChoiceNeeded, match=r"exists with kind 'lstm', and this one has 'gru'; .* config\.json: choose"):
        write(tmp_path, spec=ModelSpec("gru", 3, 4), replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_only_version_is_replaced_with_its_config(tmp_path):
    write(tmp_path, description="first")
    other = ModelSpec("gru", 3, 4)
    with pytest.raises(ChoiceNeeded, match=r"versions of a model share one config\.json: --replace it, "):
        write(tmp_path, spec=other)
    assert write(tmp_path, spec=other, replace=True) == tmp_path / "m" / "1"
    folder = read_folder(tmp_path, "m")
    assert (folder.config.spec(), folder.config.description, folder.failure) == (other, "first", None)
    (tmp_path / "m" / "config.json").write_text("{")
    assert write(tmp_path, replace=True) == tmp_path / "m" / "1"
    assert read_folder(tmp_path, "m").config.spec() == SPEC


@pytest.mark.parametrize("versions", [1, 2])
def test_replaced_model_stays_when_the_new_one_cannot_be_moved(tmp_path, versions, monkeypatch):
    for _ in range(versions):
        write(tmp_path)
    with stage(tmp_path, seed=1, replace=True) as model:
        shutil.rmtree(model.root / "m")
        with pytest.raises(CheckpointRefused, match="cannot be written"):
            model.publish()
    folder = read_folder(tmp_path, "m")
    assert [(version.version, version.failure) for version in folder.versions] == [("1", None), ("2", None)][:versions]


def test_layer_that_differs_is_named(tmp_path):
    head = chain_layers("head", [LayerConfig(type="linear", out_features=2), LayerConfig(type="leaky_relu")], 8)
    other = chain_layers(
        "head", [LayerConfig(type="linear", out_features=2), LayerConfig(type="leaky_relu", negative_slope=0.5)], 8
    )
    write(tmp_path, spec=replace(SPEC, head=head))
    with pytest.raises(ChoiceNeeded, match=r"exists with head .*'negative_slope': 0.01.* has .*'negative_slope': 0.5"):
        write(tmp_path, spec=replace(SPEC, head=other))
