"""Activations and Gaussian expectations in mpmath, written from their definitions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpmath import mp, mpf

mp.dps = 25

Real = Callable[[mpf], mpf]


class Reference(NamedTuple):
    """A function, its derivative, and the points where either breaks."""

    value: Real
    derivative: Real
    breaks: tuple[float, ...] = ()


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


def softplus(x: mpf) -> mpf:
    return x + mp.log1p(mp.exp(-x)) if x > 0 else mp.log1p(mp.exp(x))


def _mish_derivative(x: mpf) -> mpf:
    t = mp.tanh(softplus(x))
    return t + x * sigmoid(x) * (1 - t * t)


def _selu() -> Reference:
    alpha = -mp.sqrt(2 / mp.pi) / (mp.exp(mpf(1) / 2) * mp.erfc(1 / mp.sqrt(2)) - 1)
    # lambda from the unit second moment: E[x^2; x > 0] = 1/2
    left = mp.exp(2) * mp.ncdf(-2) - 2 * mp.exp(mpf(1) / 2) * mp.ncdf(-1) + mpf(1) / 2
    scale = 1 / mp.sqrt(mpf(1) / 2 + alpha**2 * left)
    return Reference(
        lambda x: scale * (x if x > 0 else alpha * mp.expm1(x)),
        lambda x: scale * (mpf(1) if x > 0 else alpha * mp.exp(x)),
        (0.0,),
    )


ACTIVATIONS: dict[str, Reference] = {
    "relu": Reference(lambda x: max(x, mpf(0)), lambda x: mpf(x > 0), (0.0,)),
    "leaky_relu(0.01)": Reference(
        lambda x: x if x > 0 else x / 100, lambda x: mpf(1) if x > 0 else mpf(1) / 100, (0.0,)
    ),
    "relu6": Reference(lambda x: min(max(x, mpf(0)), mpf(6)), lambda x: mpf(0 < x < 6), (0.0, 6.0)),
    "hardtanh": Reference(
        lambda x: min(max(x, mpf(-1)), mpf(1)), lambda x: mpf(-1 < x < 1), (-1.0, 1.0)
    ),
    "hardswish": Reference(
        lambda x: x * min(max(x + 3, mpf(0)), mpf(6)) / 6,
        lambda x: mpf(x >= 3) + mpf(-3 < x < 3) * (2 * x + 3) / 6,
        (-3.0, 3.0),
    ),
    "abs": Reference(abs, lambda x: mpf(1) if x > 0 else mpf(-1), (0.0,)),
    "tanh": Reference(mp.tanh, lambda x: mp.sech(x) ** 2),
    "sigmoid": Reference(sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "softplus": Reference(softplus, sigmoid),
    "elu": Reference(
        lambda x: x if x > 0 else mp.expm1(x), lambda x: mpf(1) if x > 0 else mp.exp(x), (0.0,)
    ),
    "selu": _selu(),
    "gelu": Reference(lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x)),
    "silu": Reference(lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
    "mish": Reference(lambda x: x * mp.tanh(softplus(x)), _mish_derivative),
    "erf": Reference(mp.erf, lambda x: 2 * mp.exp(-x * x) / mp.sqrt(mp.pi)),
    "sin": Reference(mp.sin, mp.cos),
    "softsign": Reference(lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, (0.0,)),
    "arctan": Reference(mp.atan, lambda x: 1 / (1 + x * x)),
    "square": Reference(lambda x: x * x, lambda x: 2 * x),
    "relu^2": Reference(lambda x: max(x, mpf(0)) ** 2, lambda x: 2 * max(x, mpf(0)), (0.0,)),
    "x^3": Reference(lambda x: x**3, lambda x: 3 * x * x),
    "exp": Reference(mp.exp, mp.exp),
    "tanhshrink": Reference(lambda x: x - mp.tanh(x), lambda x: mp.tanh(x) ** 2),
}


def expect(g: Real, mean: float = 0, variance: float = 1, breaks: tuple[float, ...] = ()) -> mpf:
    """E[g(x)] for x ~ N(mean, variance), panels split at the breaks."""
    mean, s = mpf(mean), mp.sqrt(variance)
    ends = {mpf(k) for k in range(-14, 15, 2)} | {(mpf(b) - mean) / s for b in breaks}
    ends = sorted(end for end in ends if abs(end) <= 14)
    return mp.quad(lambda z: g(mean + s * z) * mp.npdf(z), ends)


class Slopes(NamedTuple):
    """Mean, variance, C'(1) and Q' of a shaped layer."""

    mean: mpf
    variance: mpf
    chi: mpf
    slope: mpf


def shaped_slopes(name: str, beta: float, variance: float) -> Slopes:
    """What the definition of shaping says at an operating point."""
    f, df, breaks = ACTIVATIONS[name]
    m = expect(f, beta, variance, breaks)
    v = expect(lambda x: (f(x) - m) ** 2, beta, variance, breaks)
    chi = variance * expect(lambda x: df(x) ** 2, beta, variance, breaks) / v
    slope = expect(lambda x: (f(x) - m) * (x - mpf(beta)) * df(x), beta, variance, breaks) / v
    return Slopes(m, v, chi, slope)
