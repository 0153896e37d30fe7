"""What a recurrent cell computes from its sums; docs/native-engine.md tells how to add one.

For each unit and gate the engine sums bias + W_ih·x ahead of time (the gate's x-part), and goes on from there over
W_hh·h, or, where the cell needs the two sums apart, sums bias_hh + W_hh·h on its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.engine.native.ir import Value, Vectors

# tanh(x) = x·P(x²)/Q(x²) on [-8, 8]: numerator and denominator of degree 4, fitted by reweighted least squares for the
# smallest largest relative error. Beyond 8 the value at 8 stands for 1: it differs by less than 3e-7, and
# no result is above 1 in magnitude.
LIMIT = 8.0
NUMERATOR = (1, 0.13444497, 0.0035715973, 2.1894651e-05, 1.5230403e-08)
DENOMINATOR = (1, 0.46777825, 0.02616444, 0.00034112909, 8.5224404e-07)


@dataclass(frozen=True)
class Unit:
    """One vector of units of one row before the step; what an update does not read costs nothing."""

    sums: list[Value]  # of each gate over h: on top of the x-part, or alone if the gate is one of `Cell.apart`
    x: list[Value]  # the x-part of each gate
    h: Value
    c: Value


@dataclass(frozen=True)
class Cell:
    """`update` emits the new hidden state of a vector of units, and the new cell state if there is one."""

    gates: int  # G; weights are (G·H, ·) with the gates one after the other, as PyTorch has them
    update: Callable[[Vectors, Unit], tuple[Value, Value | None]]
    apart: frozenset[int] = frozenset()  # gates whose sum over h starts from bias_hh rather than from the x-part
    has_cell_state: bool = False


def tanh(v: Vectors, x: Value) -> Value:
    """Hyperbolic tangent, at most 4e-7 from the true value; ±0 stays ±0 and NaN stays NaN."""
    x = v.at_least(v.at_most(x, v.constant(LIMIT)), v.constant(-LIMIT))
    square = v.mul(x, x)
    return v.div(v.mul(x, _polynomial(v, square, NUMERATOR)), _polynomial(v, square, DENOMINATOR))


def sigmoid(v: Vectors, x: Value) -> Value:
    """1 / (1 + exp(-x)) = (1 + tanh(x/2)) / 2, at most 2e-7 from the true value; NaN stays NaN."""
    half = v.constant(0.5)
    return v.fma(tanh(v, v.mul(x, half)), half, half)


def relu(v: Vectors, x: Value) -> Value:
    """max(x, 0); NaN stays NaN."""
    return v.at_least(x, v.constant(0.0))


def _polynomial(v: Vectors, x: Value, coefficients: tuple[float, ...]) -> Value:  # by Horner's scheme; x⁰ comes first
    result = v.constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = v.fma(result, x, v.constant(coefficient))
    return result


def _rnn_tanh(v: Vectors, unit: Unit) -> tuple[Value, None]:
    """Elman's cell: h' = tanh(W_ih x + b_ih + W_hh h + b_hh). Source: torch.nn.RNN."""
    return tanh(v, unit.sums[0]), None


def _rnn_relu(v: Vectors, unit: Unit) -> tuple[Value, None]:
    """Elman's cell with relu: h' = max(0, W_ih x + b_ih + W_hh h + b_hh). Source: torch.nn.RNN."""
    return relu(v, unit.sums[0]), None


def _gru(v: Vectors, unit: Unit) -> tuple[Value, None]:
    """Gates r, z, n: n = tanh(x_n + r·h_n), h' = (1 - z)·n + z·h. Source: torch.nn.GRU."""
    r, z = sigmoid(v, unit.sums[0]), sigmoid(v, unit.sums[1])
    n = tanh(v, v.fma(r, unit.sums[2], unit.x[2]))
    return v.fma(z, v.sub(unit.h, n), n), None


def _lstm(v: Vectors, unit: Unit) -> tuple[Value, Value]:
    """Gates i, f, g, o: c' = f·c + i·g, h' = o·tanh(c'). Source: torch.nn.LSTM."""
    i, f, o = (sigmoid(v, unit.sums[gate]) for gate in (0, 1, 3))
    g = tanh(v, unit.sums[2])
    c = v.fma(f, unit.c, v.mul(i, g))
    return v.mul(o, tanh(v, c)), c


CELLS: Mapping[str, Cell] = {
    "rnn_tanh": Cell(gates=1, update=_rnn_tanh),
    "rnn_relu": Cell(gates=1, update=_rnn_relu),
    "gru": Cell(gates=3, update=_gru, apart=frozenset({2})),
    "lstm": Cell(gates=4, update=_lstm, has_cell_state=True),
}
