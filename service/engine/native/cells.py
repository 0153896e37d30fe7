"""What a recurrent cell computes from its sums; docs/native-engine.md tells how to add one.

For each unit and gate the engine sums bias + W_ih·x ahead of time (the gate's x-part), and goes on from there over
W_hh·h, or, where the cell needs the two sums apart, sums bias_hh + W_hh·h on its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.engine.native.ir import Value, Vectors

# tanh(x) = x·P(x²)/Q(x²): numerator and denominator of degree 4, fitted on [-8, 8] by reweighted least squares for the
# smallest largest relative error. From 8.66 on the quotient is above 1, and 1 stands for it.
NUMERATOR = (1, 0.13444497, 0.0035715973, 2.1894651e-05, 1.5230403e-08)
DENOMINATOR = (1, 0.46777825, 0.02616444, 0.00034112909, 8.5224404e-07)
# exp(-x) = 2ⁿ·(E - r·O)/(E + r·O) with r = x + n·ln 2, |r| ≤ ln(2)/2; E and O are linear in r², fitted in the same way.
EVEN, ODD = (1, 0.09998005), (0.5, 0.008323389)
LN2 = (0.693359375, -2.1219444e-4)  # its first part times n is exact
SHIFT = 1.5 * 2**23 + 127  # added to a number, it rounds it to an integer n, ready for `Vectors.power_of_two`
MOST, LEAST = 88.0, -88.5  # of x: n is -127 and 128 there, and 2ⁿ 0 and infinity


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
    square = v.at_most(v.mul(x, x), v.constant(81.0))  # so that it does not overflow
    quotient = v.div(v.mul(x, polynomial(v, square, NUMERATOR)), polynomial(v, square, DENOMINATOR))
    return v.at_least(v.at_most(quotient, v.constant(1.0)), v.constant(-1.0))


def sigmoid(v: Vectors, x: Value) -> Value:
    """1 / (1 + exp(-x)), at most 2.5e-7 from the true value, relative to it; NaN stays NaN."""
    power, numerator, denominator = _exponential(v, x)
    return v.div(denominator, v.fma(power, numerator, denominator))


def precise_sigmoid(v: Vectors, x: Value) -> Value:
    """`sigmoid`, near 1 as good as the true value rounded: for the factor of a memory, whose errors add up."""
    power, numerator, denominator = _exponential(v, x)
    nearer = v.select(x, "olt", v.constant(0.0), denominator, v.mul(power, numerator))  # of 0, or of 1 - σ
    small = v.div(nearer, v.fma(power, numerator, denominator))
    return v.select(x, "olt", v.constant(0.0), small, v.sub(v.constant(1.0), small))


def _exponential(v: Vectors, x: Value) -> tuple[Value, Value, Value]:
    """Exp(-x) as a power of two, a numerator and a denominator."""
    x = v.at_least(v.at_most(x, v.constant(MOST)), v.constant(LEAST))
    shifted = v.fma(x, v.constant(-1.44269504), v.constant(SHIFT))  # -1 / ln 2
    n = v.sub(shifted, v.constant(SHIFT))
    r = v.fma(n, v.constant(LN2[1]), v.fma(n, v.constant(LN2[0]), x))
    square = v.mul(r, r)
    even, odd = polynomial(v, square, EVEN), polynomial(v, square, ODD)
    return v.power_of_two(shifted), v.fma(v.neg(r), odd, even), v.fma(r, odd, even)


def relu(v: Vectors, x: Value) -> Value:
    """max(x, 0); NaN stays NaN."""
    return v.at_least(x, v.constant(0.0))


def polynomial(v: Vectors, x: Value, coefficients: tuple[float, ...]) -> Value:  # by Horner's scheme; x⁰ comes first
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
    # As h + (1 - z)·(n - h): 1 - σ(x) = σ(-x) is precise also where z is all but 1, and h a memory.
    r, update = sigmoid(v, unit.sums[0]), sigmoid(v, v.neg(unit.sums[1]))
    n = tanh(v, v.fma(r, unit.sums[2], unit.x[2]))
    return v.fma(update, v.sub(n, unit.h), unit.h), None


def _lstm(v: Vectors, unit: Unit) -> tuple[Value, Value]:
    """Gates i, f, g, o: c' = f·c + i·g, h' = o·tanh(c'). Source: torch.nn.LSTM."""
    i, f, o = sigmoid(v, unit.sums[0]), precise_sigmoid(v, unit.sums[1]), sigmoid(v, unit.sums[3])
    g = tanh(v, unit.sums[2])
    c = v.fma(f, unit.c, v.mul(i, g))
    return v.mul(o, tanh(v, c)), c


CELLS: Mapping[str, Cell] = {
    "rnn_tanh": Cell(gates=1, update=_rnn_tanh),
    "rnn_relu": Cell(gates=1, update=_rnn_relu),
    "gru": Cell(gates=3, update=_gru, apart=frozenset({2})),
    "lstm": Cell(gates=4, update=_lstm, has_cell_state=True),
}
