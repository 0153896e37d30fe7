"""Which engine a model gets."""

import pytest
import torch

from service.engine.load import EngineFactory
from service.spec import ModelSpec
from tests.reference import weights_of

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


def test_the_native_engine_needs_the_cpu():
    assert EngineFactory.configure("auto", 0, "native").device.type == "cpu"
    with pytest.raises(ValueError, match=r"is not there|runs on the CPU"):
        EngineFactory.configure("cuda:0", 0, "native")
