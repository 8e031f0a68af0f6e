"""Moments in closed form: piecewise polynomials, sine and cosine, exponential, erf.

Each formula carries a bound on its rounding error. Where it cancels, far in a tail or at a variance
far from the scale of the function, the bound says so and quadrature is used instead.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from fanin.theory.forms import excess
from fanin.theory.grid import Estimate
from fanin.theory.quadrature import EPS

_ROUNDING = 8 * EPS

Coefficients = tuple[float, ...]


class Raw(NamedTuple):
    """E[f], E[f^2], Var[f], E[f'], E[f'^2], E[f f''] and V'(q) = E[f'^2] + E[f f'']."""

    mean: Estimate
    second_moment: Estimate
    variance: Estimate
    derivative_mean: Estimate
    derivative_second_moment: Estimate
    curvature: Estimate
    growth: Estimate

    @classmethod
    def summed(
        cls,
        mean: Estimate,
        second_moment: Estimate,
        variance: Estimate,
        derivative_mean: Estimate,
        derivative_second_moment: Estimate,
        curvature: Estimate,
    ) -> Raw:
        """With V'(q) as the sum of its two parts."""
        flow = derivative_second_moment
        growth = Estimate(flow + curvature, flow.error + curvature.error + EPS * abs(curvature))
        return cls(mean, second_moment, variance, derivative_mean, flow, curvature, growth)


class Pieces(NamedTuple):
    """A piecewise polynomial: breaks, and the coefficients between them, constant term first."""

    breaks: tuple[float, ...]
    polynomials: tuple[Coefficients, ...]


def _clipped(low: float, high: float) -> Pieces:
    return Pieces((low, high), ((low,), (0, 1), (high,)))


def _bent(slope: float) -> Pieces:
    return Pieces((0.0,), ((0, slope), (0, 1)))


PIECES: dict[str, Callable[..., Pieces]] = {
    "identity": lambda: Pieces((), ((0, 1),)),
    "relu": lambda: _bent(0.0),
    "leaky_relu": lambda negative_slope: _bent(negative_slope),
    "prelu": lambda weight: _bent(weight),
    "rrelu": lambda lower, upper: _bent((lower + upper) / 2),
    "abs": lambda: _bent(-1.0),
    "relu6": lambda: _clipped(0.0, 6.0),
    "hardtanh": lambda min_val, max_val: _clipped(min_val, max_val),
    "hardsigmoid": lambda: Pieces((-3.0, 3.0), ((0,), (0.5, 1 / 6), (1,))),
    "hardswish": lambda: Pieces((-3.0, 3.0), ((0,), (0, 0.5, 1 / 6), (0, 1))),
    "softshrink": lambda lambd: Pieces((-lambd, lambd), ((lambd, 1), (0,), (-lambd, 1))),
    "hardshrink": lambda lambd: Pieces((-lambd, lambd), ((0, 1), (0,), (0, 1))),
    "threshold": lambda threshold, value: Pieces((threshold,), ((value,), (0, 1))),
    "sign": lambda: Pieces((0.0,), ((-1,), (1,))),
    "step": lambda: Pieces((0.0,), ((0,), (1,))),
    "square": lambda: Pieces((), ((0, 0, 1),)),
    "x^3": lambda: Pieces((), ((0, 0, 0, 1),)),
    "relu^2": lambda: Pieces((0.0,), ((0,), (0, 0, 1))),
}


def moments(name: str, parameters: dict[str, float], mean: float, sigma: float) -> Raw | None:
    """The moments of a registered form, or None where no closed form is held."""
    if name in PIECES:
        return _of_pieces(PIECES[name](**parameters), mean, sigma)
    if name in ("sin", "cos"):
        return _of_wave(name, parameters["frequency"], mean, sigma)
    if name == "exp":
        return _of_exponential(mean, sigma)
    if name == "erf" and mean == 0:
        return _of_erf(sigma)
    return None


def pair_expectation(
    name: str, parameters: dict[str, float], c: float, mean: float, sigma: float
) -> Estimate | None:
    """E[f(u) f(v)] of a registered form, or None where no closed form is held."""
    q = sigma**2
    if name in PIECES and mean == 0:
        pieces = PIECES[name](**parameters)
        return _pair_of_rays(pieces, c, q) if pieces.breaks == (0.0,) else None
    if name in ("sin", "cos"):
        return _pair_of_waves(name, parameters["frequency"], c, mean, q)
    if name == "exp":
        exponent = 2 * mean + q * (1 + c)
        return _exponential(1.0, exponent)
    if name == "erf" and mean == 0:
        across = math.sqrt((1 + 2 * q * (1 - c)) * (1 + 2 * q * (1 + c)))
        return _rounded(2 / math.pi * math.atan2(2 * q * c, across))
    return None


def _rounded(value: float, scale: float = 0.0) -> Estimate:
    """A value whose parts are no larger than itself, or than a given scale."""
    return Estimate(value, _ROUNDING * max(abs(value), scale))


# --- piecewise polynomials ------------------------------------------------------------------------


def _truncated(low: float, high: float, order: int) -> tuple[list[float], list[float]]:
    """Integrals of z^k phi(z) from low to high, and the size of what they are made of.

    T_0 = Phi(high) - Phi(low), T_1 = phi(low) - phi(high),
    T_k = (k - 1) T_(k-2) - [z^(k-1) phi(z)].
    """

    def edge(z: float, k: int) -> float:
        return z**k * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) if math.isfinite(z) else 0.0

    upper = special.ndtr(-low) - special.ndtr(-high)
    first = float(upper if low > 0 else special.ndtr(high) - special.ndtr(low))
    value = [first, edge(low, 0) - edge(high, 0)]
    largest = special.ndtr(-low) if low > 0 else special.ndtr(high)
    size = [
        float(largest) + abs(edge(low, 1)) + abs(edge(high, 1)),
        edge(low, 0) * (1 + min(low * low, 1e4)) + edge(high, 0) * (1 + min(high * high, 1e4)),
    ]
    for k in range(2, order + 1):
        left, right = edge(low, k - 1), edge(high, k - 1)
        value.append((k - 1) * value[k - 2] + left - right)
        size.append((k - 1) * size[k - 2] + abs(left) + abs(right))
    return value, size


def _of_pieces(pieces: Pieces, mean: float, sigma: float) -> Raw:
    ends = [-math.inf, *((b - mean) / sigma for b in pieces.breaks), math.inf]
    in_z = [_composed(p, mean, sigma) for p in pieces.polynomials]
    slopes = [_over(_slope(p), sigma) for p in in_z]
    order = 2 * max(map(len, in_z))
    integrals = [_truncated(*pair, order) for pair in itertools.pairwise(ends)]
    # The ends in z are rounded, to which a jump responds.
    shift = abs(mean) / sigma

    def expect(integrands: list[Coefficients]) -> Estimate:
        value = error = 0.0
        for integrand, (exact, size) in zip(integrands, integrals, strict=True):
            value += sum(map(operator.mul, integrand, exact))
            error += sum(map(operator.mul, map(abs, integrand), size))
        for left, right, z in zip(integrands[:-1], integrands[1:], ends[1:-1], strict=True):
            error += abs(_at(right, z) - _at(left, z)) * shift * math.exp(-z * z / 2)
        return Estimate(value, _ROUNDING * error)

    average = expect(in_z)
    centred = [(p[0] - float(average), *p[1:]) for p in in_z]
    bends = [_over(_product(p, _slope(_slope(p))), sigma**2) for p in in_z]
    return Raw.summed(
        average,
        expect([_product(p, p) for p in in_z]),
        expect([_product(p, p) for p in centred]),
        expect(slopes),
        expect([_product(p, p) for p in slopes]),
        _with_breaks(expect(bends), pieces, mean, sigma),
    )


def _with_breaks(inside: Estimate, pieces: Pieces, mean: float, sigma: float) -> Estimate:
    """E[f f''] with the breaks, from V'(q) = E[(f^2)'']/2: a kink of f^2 counts as a delta function
    and a jump as its derivative."""
    value, error = float(inside), inside.error
    f = pieces.polynomials
    for left, right, x in zip(f[:-1], f[1:], pieces.breaks, strict=True):
        z = (x - mean) / sigma
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / sigma
        before, after = _at(left, x), _at(right, x)
        kinks = after * _at(_slope(right), x), before * _at(_slope(left), x)
        jump = (after**2 - before**2) / 2 * z / sigma
        value += (kinks[0] - kinks[1] + jump) * density
        rounding = 1 + abs(z) * (abs(z) + abs(mean) / sigma)
        error += _ROUNDING * rounding * density * (sum(map(abs, kinks)) + abs(jump))
    return Estimate(value, error)


# Polynomials of a few terms, constant term first: plain tuples, ten times as fast as a class.


def _at(p: Coefficients, x: float) -> float:
    """p(x)."""
    value = 0.0
    for coefficient in reversed(p):
        value = value * x + coefficient
    return value


def _slope(p: Coefficients) -> Coefficients:
    """p'."""
    return tuple(k * coefficient for k, coefficient in enumerate(p))[1:] or (0.0,)


def _over(p: Coefficients, divisor: float) -> Coefficients:
    """p / divisor."""
    return tuple(coefficient / divisor for coefficient in p)


def _product(p: Coefficients, r: Coefficients) -> Coefficients:
    """p r."""
    result = [0.0] * (len(p) + len(r) - 1)
    for i, left in enumerate(p):
        for j, right in enumerate(r, i):
            result[j] += left * right
    return tuple(result)


def _composed(p: Coefficients, mean: float, sigma: float) -> Coefficients:
    """p(mean + sigma z) as a polynomial in z."""
    result: Coefficients = (p[-1],)
    for coefficient in reversed(p[:-1]):
        result = _product(result, (mean, sigma))
        result = (result[0] + coefficient, *result[1:])
    return result


def _pair_of_rays(pieces: Pieces, c: float, q: float) -> Estimate | None:
    """Two rays from the origin (the arc cosine law), or two constants (the arc sine law)."""
    below, above = (
        2 * math.asin(math.sqrt((1 + c) / 2)),
        2 * math.asin(math.sqrt((1 - c) / 2)),
    )
    (p0, *p_rest), (r0, *r_rest) = pieces.polynomials
    if not p_rest and not r_rest:
        same, opposite = below / (2 * math.pi), above / (2 * math.pi)
        return _rounded(
            (p0 * p0 + r0 * r0) * same + 2 * p0 * r0 * opposite,
            (p0 * p0 + r0 * r0) * same,
        )
    if p0 == r0 == 0 and len(p_rest) == len(r_rest) == 1:
        left, right = p_rest[0], r_rest[0]
        same, opposite = (_sine_excess(x) / (2 * math.pi) for x in (below, above))
        parts = q * (left**2 + right**2) * same, -2 * q * left * right * opposite
        return _rounded(sum(parts), max(map(abs, parts)))
    return None


def _sine_excess(x: float) -> float:
    """sin x - x cos x for 0 <= x <= pi, by its series where it cancels."""
    return math.sin(x) - x * math.cos(x) if x > 1 else -x * float(excess(np.array(-x * x)))


# --- sine and cosine, exponential, erf ------------------------------------------------------------


def _of_wave(name: str, w: float, mean: float, sigma: float) -> Raw:
    """With u = w^2 q: E[sin] = exp(-u/2) sin(w mean), E[sin^2] = (1 - exp(-2u) cos(2 w mean))/2."""
    u, angle = (w * sigma) ** 2, w * mean
    sine, cosine = math.sin(angle), math.cos(angle)
    if name == "cos":
        sine, cosine, w = cosine, sine, -w
    a, decayed = math.exp(-u), math.exp(-2 * u)
    gone, gone_twice = -math.expm1(-u), -math.expm1(-2 * u) / 2
    # The angle is rounded; so is the exponent.
    doubt = 1 + abs(angle) + u

    def wave(value: float, size: float) -> Estimate:
        return Estimate(value, _ROUNDING * (abs(value) + doubt * size))

    root = math.exp(-u / 2)
    return Raw(
        wave(root * sine, root),
        wave(gone_twice + decayed * sine**2, decayed * abs(sine)),
        wave(gone * (gone / 2 + a * cosine**2), gone * a * abs(cosine)),
        wave(w * root * cosine, abs(w) * root),
        wave(w * w * (gone_twice + decayed * cosine**2), w * w * decayed * abs(cosine)),
        wave(-w * w * (gone_twice + decayed * sine**2), w * w * decayed * abs(sine)),
        wave(w * w * decayed * (cosine - sine) * (cosine + sine), w * w * decayed),
    )


def _pair_of_waves(name: str, w: float, c: float, mean: float, q: float) -> Estimate:
    """E[sin u sin v] = (exp(-u (1 - c)) - cos(2 w mean) exp(-u (1 + c)))/2 with u = w^2 q."""
    u, angle = w * w * q, w * mean
    near, far = math.exp(-u * (1 - c)), math.exp(-u * (1 + c))
    part = math.sin(angle) ** 2 if name == "sin" else math.cos(angle) ** 2
    difference = -near * math.expm1(-2 * u * c) / 2 if c >= 0 else far * math.expm1(2 * u * c) / 2
    value = difference + part * far
    size = abs(difference) + far * math.sqrt(part) * (1 + abs(angle))
    return Estimate(value, _ROUNDING * (abs(value) + (1 + u) * size))


def _exponential(factor: float, exponent: float) -> Estimate:
    value = factor * math.exp(exponent) if exponent < 709 else math.inf
    return Estimate(value, _ROUNDING * (1 + abs(exponent)) * value)


def _of_exponential(mean: float, sigma: float) -> Raw | None:
    q = sigma**2
    if 2 * (mean + q) > 700:
        return None
    first, second = _exponential(1.0, mean + q / 2), _exponential(1.0, 2 * mean + 2 * q)
    variance = _exponential(-math.expm1(-q), 2 * mean + 2 * q)
    return Raw.summed(first, second, variance, first, second, second)


def _of_erf(sigma: float) -> Raw:
    """E[erf^2] = (2/pi) asin(2q/(1 + 2q)) at mean 0, with the arc sine as an arc tangent."""
    q = sigma**2
    second = _rounded(2 / math.pi * math.atan2(2 * q, math.sqrt(1 + 4 * q)))
    slope_second = 4 / (math.pi * math.sqrt(1 + 4 * q))
    return Raw.summed(
        Estimate(0.0),
        second,
        second,
        _rounded(2 / math.sqrt(math.pi * (1 + 2 * q))),
        _rounded(slope_second),
        _rounded(-2 * q / (1 + 2 * q) * slope_second),
    )
