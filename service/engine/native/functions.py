"""Elementary functions of vectors, beside tanh and sigmoid (`cells`); errors are of some units in the last place."""

from service.engine.native.cells import polynomial, sigmoid
from service.engine.native.ir import Value, Vectors

_LN_2 = 0.6931471805599453
_LN_2_HIGH = 0.693359375  # nine bits: its product with an exponent is exact
_MAGIC = 1.5 * 2**23  # added and taken away again, it rounds to a whole number

# exp(r) = 1 + r + r²·P(r) for |r| ≤ ln(2)/2: the Taylor series, 1/2! to 1/8!, is good to 1e-9 there.
_EXP = (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320)

# ln(1 + u) = 2s·(1 + s²/3 + s⁴/5 + …) with s = u/(2 + u), and s ≤ 1/3 for u ≤ 1.
_ARTANH = tuple(1 / n for n in range(1, 17, 2))

# erf(x) = 1 - t·(a₁ + a₂t + …)·exp(-x²) with t = 1/(1 + px), good to 1.5e-7.
# Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_ERF_P = 0.3275911
_ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def exp(v: Vectors, x: Value) -> Value:
    """E to the power of x."""
    less_one, scale = _exp_parts(v, x)
    return v.mul(v.mul(v.add(less_one, v.constant(1)), scale[0]), scale[1])


def expm1(v: Vectors, x: Value) -> Value:
    """exp(x) - 1, exact for small x, too; for x ≤ 0."""
    less_one, (first, second) = _exp_parts(v, x)
    scale = v.mul(first, second)
    return v.fma(less_one, scale, v.sub(scale, v.constant(1)))


def log1p(v: Vectors, u: Value) -> Value:
    """ln(1 + u) for 0 ≤ u ≤ 1."""
    s = v.div(u, v.add(u, v.constant(2)))
    return v.mul(v.add(s, s), polynomial(v, v.mul(s, s), _ARTANH))


def log(v: Vectors, x: Value) -> Value:
    """ln(x) for finite x ≥ 1; NaN stays NaN."""
    bits = v.bits(x)
    exponent = v.integers("sub", v.integers("lshr", bits, 23), 127)
    mantissa = v.floats(v.integers("or", v.integers("and", bits, 0x7FFFFF), 127 << 23))  # 1 ≤ m < 2
    f = v.function
    power = f.value(f"sitofp <{v.width} x i32> {exponent} to {v.type}")
    found = v.fma(power, v.constant(_LN_2), log1p(v, v.sub(mantissa, v.constant(1))))
    return v.select(x, "uno", x, x, found)


def erf(v: Vectors, x: Value) -> Value:
    """The error function."""
    size = v.floats(v.integers("and", v.bits(x), 0x7FFFFFFF))
    t = v.div(v.constant(1), v.fma(size, v.constant(_ERF_P), v.constant(1)))
    tail = v.mul(v.mul(t, polynomial(v, t, _ERF_A)), exp(v, v.sub(v.constant(0), v.mul(x, x))))
    found = v.sub(v.constant(1), tail)
    return v.select(x, "olt", v.constant(0), v.sub(v.constant(0), found), found)


def _exp_parts(v: Vectors, x: Value) -> tuple[Value, tuple[Value, Value]]:
    """exp(x) = (1 + m)·a·b: m, and powers of two a and b, of which each is a normal number."""
    # Beyond these limits all is 0 or infinity.
    x = v.at_least(v.at_most(x, v.constant(89)), v.constant(-104))
    n = v.sub(v.fma(x, v.constant(1 / _LN_2), v.constant(_MAGIC)), v.constant(_MAGIC))
    r = v.fma(n, v.constant(-_LN_2_HIGH), x)
    r = v.fma(n, v.constant(_LN_2_HIGH - _LN_2), r)
    less_one = v.fma(v.mul(r, r), polynomial(v, r, _EXP), r)
    f, w = v.function, v.width
    whole = f.value(f"fptosi {v.type} {n} to <{w} x i32>")
    half = v.integers("ashr", whole, 1)
    rest = f.value(f"sub <{w} x i32> {whole}, {half}")
    powers = [v.floats(v.integers("shl", v.integers("add", part, 127), 23)) for part in (half, rest)]
    return less_one, (powers[0], powers[1])


def leaky_relu(v: Vectors, x: Value, negative_slope: float) -> Value:
    return v.select(x, "olt", v.constant(0), v.mul(x, v.constant(negative_slope)), x)


def elu(v: Vectors, x: Value, alpha: float) -> Value:
    """X for x > 0, else alpha·(exp(x) - 1). Source: torch.nn.ELU."""
    negative = v.mul(expm1(v, v.at_most(x, v.constant(0))), v.constant(alpha))
    return v.select(x, "ogt", v.constant(0), x, negative)


def gelu(v: Vectors, x: Value, approximate: str) -> Value:
    """x·Φ(x), Φ by erf or by tanh. Source: torch.nn.GELU."""
    if approximate == "tanh":
        inner = v.mul(v.fma(v.mul(v.mul(x, x), x), v.constant(0.044715), x), v.constant(0.7978845608028654))
        return v.mul(x, sigmoid(v, v.add(inner, inner)))  # (1 + tanh(a))/2 = σ(2a)
    half = v.mul(x, v.constant(0.5))
    return v.fma(half, erf(v, v.mul(x, v.constant(0.7071067811865476))), half)


def silu(v: Vectors, x: Value) -> Value:
    """x·σ(x). Source: torch.nn.SiLU."""
    return v.mul(x, sigmoid(v, x))


def softplus(v: Vectors, x: Value, beta: float, threshold: float) -> Value:
    """ln(1 + exp(beta·x))/beta; x itself where beta·x is above the threshold. Source: torch.nn.Softplus."""
    scaled = v.mul(x, v.constant(beta))
    size = v.floats(v.integers("or", v.bits(scaled), -0x80000000))  # -|beta·x|
    smooth = v.add(v.at_least(scaled, v.constant(0)), log1p(v, exp(v, size)))
    return v.select(scaled, "ogt", v.constant(threshold), x, v.mul(smooth, v.constant(1 / beta)))
