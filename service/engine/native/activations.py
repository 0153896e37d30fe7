"""tanh, sigmoid and relu on vectors, the same operations whatever the width, so the same bits for the same input."""

from service.engine.native.ir import Value
from service.engine.native.vectors import Vectors

# tanh(x) = x·P(x²)/Q(x²) on [-8, 8]: numerator and denominator of degree 4, fitted by reweighted least squares for the
# smallest largest relative error. Beyond 8 the value at 8 stands for 1: it differs by less than 3e-7, and
# no result is above 1 in magnitude.
LIMIT = 8.0
NUMERATOR = (1, 0.13444497, 0.0035715973, 2.1894651e-05, 1.5230403e-08)
DENOMINATOR = (1, 0.46777825, 0.02616444, 0.00034112909, 8.5224404e-07)


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


def _polynomial(v: Vectors, x: Value, coefficients: tuple[float, ...]) -> Value:
    """Horner's scheme over the coefficients of x⁰, x¹ and so on."""
    result = v.constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = v.fma(result, x, v.constant(coefficient))
    return result
