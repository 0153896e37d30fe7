"""The activations against float64, over the whole range of float32 and on every processor that the host can be."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # as PyTorch's documentation has it

from service.engine.interface import Floats
from service.engine.native import functions
from service.engine.native.cells import precise_sigmoid, relu, sigmoid, tanh
from service.engine.native.compiler import Processor, compiled
from service.engine.native.ir import Module, Value, Vectors
from tests.engine.native.processors import runnable

SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e30, -1e30, np.inf, -np.inf], np.float32)
SMALLEST = 2.0**-126  # below stand numbers of fewer bits, of which a result may be 0


@dataclass(frozen=True)
class Elementwise:
    """One activation applied to an array in place."""

    operation: Callable[[Vectors, Value], Value]
    processor: Processor
    name = "elementwise"

    def text(self) -> str:
        module = Module()
        f = module.function("elementwise", {"data": "ptr", "vectors": "i64"})
        v = Vectors(f, self.processor.width, self.processor.has_fma)
        with f.loop("%vectors") as i:
            place = f.at("%data", f.mul(i, v.bytes))
            v.store(self.operation(v, v.load(place)), place)
        return module.text()


def apply(operation: Callable[[Vectors, Value], Value], values: Floats, processor: Processor) -> Floats:
    data = np.concatenate([values, np.zeros(-len(values) % processor.width, np.float32)])
    code = compiled(Elementwise(operation, processor))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address)(
        data.ctypes.data, len(data) // processor.width
    )
    return data[: len(values)]


def whole_range() -> Floats:
    """About four million values, spread evenly over the bit patterns of float32, and those where something happens."""
    values = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    return np.concatenate([values[np.isfinite(values)], np.linspace(-110, 110, 2_200_001, dtype=np.float32), SPECIAL])


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
def test_tanh(processor: Processor) -> None:
    x = whole_range()
    y = apply(tanh, x, processor)
    exact = np.tanh(x.astype(np.float64))
    assert np.abs(y - exact).max() <= 4e-7
    assert np.abs(y).max() <= 1
    assert_same_where_saturated(y, exact)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    small = (np.abs(x) > 1e-37) & (np.abs(x) < 1e-3)
    assert (np.abs(y - exact)[small] <= 4e-7 * np.abs(exact[small])).all()


@pytest.mark.parametrize("operation", [sigmoid, precise_sigmoid])
@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
def test_sigmoid(processor: Processor, operation: Callable[[Vectors, Value], Value]) -> None:
    x = whole_range()
    with np.errstate(over="ignore", under="ignore"):
        exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    y = apply(operation, x, processor)
    assert (np.abs(y - exact) <= np.maximum(2.5e-7 * exact, SMALLEST)).all()
    assert_same_where_saturated(y, exact)
    if operation is precise_sigmoid:
        assert np.abs(y - exact)[x > 4].max() <= 0.55 * 2**-24  # 0.5 is what rounding alone costs


def assert_same_where_saturated(y: Floats, exact: np.ndarray) -> None:
    """Exactly 0, 1 or -1 where the true value rounds to it."""
    rounded = exact.astype(np.float32)
    saturated = np.isin(rounded, [0, 1, -1])
    np.testing.assert_array_equal(y[saturated], rounded[saturated])


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
def test_relu(processor: Processor) -> None:
    x = whole_range()
    np.testing.assert_array_equal(apply(relu, x, processor), np.maximum(x, 0))


@pytest.mark.parametrize("operation", [tanh, sigmoid, precise_sigmoid, relu])
def test_nan_stays_nan(operation: Callable[[Vectors, Value], Value]) -> None:
    for processor in runnable():
        assert np.isnan(apply(operation, np.full(3, np.nan, np.float32), processor)).all()


OF_LAYERS = {
    "exp": (functions.exp, torch.exp),
    "silu": (functions.silu, F.silu),
    "leaky_relu": (partial(functions.leaky_relu, negative_slope=0.3), partial(F.leaky_relu, negative_slope=0.3)),
    "elu": (partial(functions.elu, alpha=0.7), partial(F.elu, alpha=0.7)),
    "gelu": (partial(functions.gelu, approximate="none"), F.gelu),
    "gelu_tanh": (partial(functions.gelu, approximate="tanh"), partial(F.gelu, approximate="tanh")),
    "softplus": (partial(functions.softplus, beta=2.0, threshold=20.0), partial(F.softplus, beta=2.0)),
}


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
@pytest.mark.parametrize("name", OF_LAYERS)
def test_functions_of_layers(name: str, processor: Processor) -> None:
    operation, reference = OF_LAYERS[name]
    x = np.concatenate([np.linspace(-110, 110, 400_001, dtype=np.float32), np.float32([0, -0.0, 1e-30, -1e-30])])
    y = apply(operation, x, processor)
    with np.errstate(over="ignore"):
        exact = reference(torch.from_numpy(x).double()).numpy().astype(np.float32)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(y[~finite], exact[~finite])
    np.testing.assert_allclose(y[finite], exact[finite], rtol=1e-6, atol=5e-7)
    assert np.isnan(apply(operation, np.full(3, np.nan, np.float32), processor)).all()
