"""Which engine a model gets, and cores as containers pay for them."""

import os

import pytest
import torch

from service.engine.load import EngineFactory, available_cores
from service.spec import ModelSpec
from tests.reference import weights_of

ALL = len(os.sched_getaffinity(0))
SPEC = ModelSpec("rnn", 2, 3)


@pytest.mark.parametrize(("choice", "name"), [("auto", "native"), ("native", "native"), ("torch", "torch")])
def test_on_a_cpu(choice, name):
    factory = EngineFactory(torch.device("cpu"), 1, choice)
    assert factory.load(SPEC, weights_of(SPEC)).name == name


def test_torch_serves_where_llvm_cannot(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no such target")

    monkeypatch.setattr("service.engine.load.NativeEngine", refuse)
    assert EngineFactory(torch.device("cpu"), 1, "auto").load(SPEC, weights_of(SPEC)).name == "torch"
    with pytest.raises(RuntimeError, match="no such target"):
        EngineFactory(torch.device("cpu"), 1, "native").load(SPEC, weights_of(SPEC))


def test_torch_serves_other_array_layouts(monkeypatch):
    monkeypatch.setattr("service.engine.native.rows.RowTable.fill", lambda *_: 0)
    assert EngineFactory(torch.device("cpu"), 1, "auto").load(SPEC, weights_of(SPEC)).name == "torch"


def test_native_engine_needs_the_cpu():
    assert EngineFactory.configure("auto", 0, "native").device.type == "cpu"
    with pytest.raises(ValueError, match=r"is not there|runs on the CPU"):
        EngineFactory.configure("cuda:0", 0, "native")


def test_cudnn_computes_in_float32():
    EngineFactory.configure("cpu", 0)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("150000 100000", min(ALL, 2)), ("max 100000", ALL)]
)
def test_cgroup_v2_quota(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("-1", ALL)])
def test_cgroup_v1_quota(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == expected


def test_no_cgroup_is_no_limit(tmp_path):
    assert available_cores(tmp_path) == ALL
