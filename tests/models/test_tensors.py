"""Files that are checkpoints, and files that are not."""

import argparse
import datetime
import random
import zipfile
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.models.importing.refusal import CheckpointRefused
from service.models.importing.state_dict import model_from_tensors
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
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, weights, zipped, protocol):
    content = {"net": weights, "words": {"ü": 1}, "sets": {1, 2}, "epoch": 2**70}
    found = read_torch(tmp_path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert found.others == ["words", "sets", "epoch"]
    assert all(torch.equal(found.by_name[f"net.{name}"], weights[name]) for name in weights)


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype_and_stride(tmp_path, zipped):
    whole = torch.arange(24).reshape(4, 6)
    tensors = {f"{dtype}": whole.to(dtype)[1:, ::2].T for dtype in DTYPES} | {"bool": whole > 3, "none": torch.zeros(0)}
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
    found = read_torch(tmp_path, tensors, _use_new_zipfile_serialization=zipped)
    assert all(torch.equal(found.by_name[name.replace("torch.", "torch.")], tensors[name]) for name in tensors)


class Ours(dict):
    """As Lightning keeps hyper_parameters."""


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 3)
        self.rnn = torch.nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
        self.head = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LeakyReLU(0.3), torch.nn.Linear(5, 2))

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])


def other_objects():
    parameter = torch.nn.Parameter(torch.zeros(2))
    return {
        "args": argparse.Namespace(lr=1, path=PosixPath("a")),
        "best": np.float64(1),
        "history": np.zeros(3),
        "loss": torch.nn.MSELoss(),
        "hyper_parameters": Ours(width=3, device=torch.device("cpu"), dtype=torch.float32),
        "optimizer": torch.optim.Adam([parameter]),
        "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter]), 1).state_dict(),
        "when": datetime.datetime(2020, 1, 1),  # noqa: DTZ001
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_objects(tmp_path, weights, zipped):
    found = read_torch(tmp_path, other_objects() | {"net": weights}, _use_new_zipfile_serialization=zipped)
    assert all(torch.equal(found.by_name[f"net.{name}"], weights[name]) for name in weights)
    assert {"args", "best", "history", "hyper_parameters", "scheduler", "when"} <= set(found.others)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")  # the old format says that it cannot find sources
def test_whole_module_with_what_it_records(tmp_path, zipped):
    net = Net()
    found = read_torch(tmp_path, {"net": net, **other_objects()}, _use_new_zipfile_serialization=zipped)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    assert all(torch.equal(found.by_name[name], state[name]) for name in state)
    assert found.modules["net"].type == f"{Net.__module__}.Net"
    assert found.modules["net.rnn"].options["nonlinearity"] == "relu"
    assert found.modules["net.head.1"].options["negative_slope"] == 0.3
    assert [name for name in found.modules if "head." in name] == [f"net.head.{i}" for i in range(3)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archive(tmp_path):
    net = Net()
    torch.jit.save(torch.jit.script(net), tmp_path / "model.pt")
    found = read_tensors(tmp_path / "model.pt")
    assert {name: tensor.tolist() for name, tensor in found.by_name.items()} == {
        name: tensor.tolist() for name, tensor in net.state_dict().items()
    }
    assert found.others == []
    assert found.modules["rnn"].options["nonlinearity"] == "relu"


def test_policy_of_stable_baselines(tmp_path, weights):
    torch.save(weights, tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.write(tmp_path / "policy.pth", "policy.pth")
        archive.write(tmp_path / "policy.pth", "policy.optimizer.pth")
    found = read_tensors(tmp_path / "agent.zip")
    assert all(torch.equal(found.by_name[name], weights[name]) for name in weights)


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


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_quantized_layer_is_refused_by_name(tmp_path):
    stack = torch.nn.Sequential(torch.nn.LSTM(4, 5))
    quantized = torch.ao.quantization.quantize_dynamic(stack, {torch.nn.LSTM}, dtype=torch.qint8)
    found = read_torch(tmp_path, quantized.state_dict())
    with pytest.raises(CheckpointRefused, match="layer 0 is quantized; import the model as it was before"):
        model_from_tensors(found, layer=None, nonlinearity=None, head=None, file_bytes=1)
