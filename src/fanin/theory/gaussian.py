"""Expectations of an activation under a normal distribution and under a correlated pair.

This is the only place that integrates. Every number is an `Estimate`: a float with a bound on its
error and with the way it was obtained.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.errors import ArgumentError, ArgumentTypeError, DivergentError
from fanin.theory import closed, pair
from fanin.theory.activation import Activation, activation
from fanin.theory.closed import Raw
from fanin.theory.grid import Estimate, Grid, fit
from fanin.theory.quadrature import EPS

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Coefficients = Float[ndarray, "coefficients"]
    Function = str | Callable[..., Any] | Activation

__all__ = [
    "Estimate",
    "Moments",
    "expectation",
    "hermite_coefficients",
    "moments",
    "pair_expectation",
]

_SHARP = 2e-13  # relative error up to which a closed form or a series is taken as it is
_SHARP_ZERO = 1e-14  # the same for a value near zero, relative to the size of the function
_HIGHEST_ORDER = 10_000


@dataclass(frozen=True)
class Moments:
    """Moments of f(x) for x ~ N(m, q).

    *Definition*
        V(q) = E[f(x)^2] as a function of q at fixed m;
        V'(q) = E[f^2 (z^2 - 1)]/(2q) with x = m + sqrt(q) z, so kinks and jumps of f count.

    Args:
        input_mean: m.
        input_variance: q >= 0.
        mean: E[f].
        second_moment: V(q) = E[f^2].
        variance: Var[f] = E[(f - E f)^2].
        derivative_mean: E[f'], with f' almost everywhere: jumps do not count.
        derivative_second_moment: E[f'^2], with f' almost everywhere.
        growth: V'(q), or None at q = 0 where it does not exist.
        bend: E[f f''], or None where V'(q) does not exist.
    """

    input_mean: float
    input_variance: float
    mean: Estimate
    second_moment: Estimate
    variance: Estimate
    derivative_mean: Estimate
    derivative_second_moment: Estimate
    bend: Estimate | None
    growth: Estimate | None

    @property
    def curvature(self) -> Estimate:
        """E[f f''] = V'(q) - E[f'^2], with f'' as a distribution: kinks and jumps count.

        Raises:
            DivergentError: q = 0 at a kink or jump where f is not zero.
        """
        return self._existing(self.bend)

    @property
    def slope(self) -> Estimate:
        """d log V / d log q = q V'(q) / V(q), the slope of the variance map at a fixed point.

        Raises:
            DivergentError: E[f^2] = 0.
        """
        growth, second = self._existing(self.growth), self.second_moment
        if float(second) == 0:
            if self.input_variance == 0 and growth > 0:
                return Estimate(1.0)
            raise DivergentError(
                f"slope at mean {self.input_mean:g}, variance {self.input_variance:g}",
                expected="E[f^2] > 0",
                got="0",
                fix="its logarithm has no slope; move the operating point",
            )
        value = self.input_variance * growth / second
        error = self.input_variance * growth.error / second + abs(value) * second.error / second
        return Estimate(value, error + 4 * EPS * abs(value), growth.how)

    def _existing(self, value: Estimate | None) -> Estimate:
        if value is None:
            raise DivergentError(
                f"d E[f^2] / d variance at mean {self.input_mean:g}, variance 0",
                expected="a smooth point of f, or a kink with f = 0",
                got="a kink or jump",
                fix="use a positive variance",
            )
        return value


def expectation(f: Function, mean: float = 0.0, variance: float = 1.0) -> Estimate:
    """E[f(x)] for x ~ N(mean, variance).

    *Definition*
        E[f(x)] = integral of f(mean + sqrt(variance) z) phi(z) dz, phi the standard normal density.

    Args:
        f: an activation, or anything that `activation` takes.
        mean: any finite number.
        variance: any finite number >= 0; at 0 the result is f(mean).

    Returns:
        The value with a bound on its error.

    *Accuracy*
        For variances from 1e-6 to 1e6 and smooth or piecewise smooth f the error is at most 1e-12
        E|f|; the bound in the result is larger where f oscillates faster than its values in float64
        can tell, or loses digits of its own.

    Raises:
        DivergentError: the expectation does not exist, or needs values beyond float64.
        ArgumentError: f is not a number somewhere in the range of integration.

    Example:
        >>> round(expectation("exp", variance=2.0) / math.exp(1), 14)
        1.0
        >>> expectation(lambda z: np.exp(0.2 * z * z)) - 0.6 ** -0.5 < 1e-14
        True
        >>> expectation(lambda z: np.exp(z * z))
        Traceback (most recent call last):
        fanin.errors.DivergentError: ...
    """
    f = activation(f)
    m, sigma = _normal(mean, variance)
    if sigma == 0:
        return _exact(float(f(m)))
    raw = _closed(f, m, sigma)
    if raw is not None:
        return raw.mean
    grid = fit(f, m, sigma, square=False, derivative=False)
    return grid.inner(grid.f)


def moments(f: Function, mean: float = 0.0, variance: float = 1.0) -> Moments:
    """The moments of f(x) and f'(x) for x ~ N(mean, variance).

    Args:
        f: an activation, or anything that `activation` takes.
        mean: any finite number.
        variance: any finite number >= 0; at 0 the moments are their limits.

    *Accuracy*
        As for `expectation`. `curvature` is a difference, and its bound is absolute: about 1e-15
        E[f'^2]. Where f' is numerical (see `Activation.derivative_accuracy`) the bounds say so.

    Raises:
        DivergentError: E[f^2] or E[f'^2] does not exist, or needs values beyond float64.
        ArgumentError: f is not a number somewhere in the range of integration.

    Example:
        >>> m = moments("gelu")
        >>> round(m.second_moment ** -0.5, 8), round(m.slope, 4)
        (1.53353044, 1.1441)
        >>> moments("relu").second_moment.how
        'closed form'
    """
    m, sigma = _normal(mean, variance)
    return _moments(activation(f), m, sigma)


def hermite_coefficients(
    f: Function, order: int, mean: float = 0.0, variance: float = 1.0
) -> Coefficients:
    """The Hermite coefficients of f(mean + sqrt(variance) z).

    *Definition*
        a_k = E[f(mean + sqrt(variance) z) h_k(z)], h_k = He_k / sqrt(k!), so that
        E[f(u) f(v)] = sum a_k^2 c^k for a pair with correlation c.

    Args:
        f: an activation, or anything that `activation` takes.
        order: the largest k, from 0 to 10000.

    Returns:
        a_0 .. a_order, float64.

    *Accuracy*
        Absolute error at most 1e-13 sqrt(E[f^2]).

    Example:
        >>> hermite_coefficients("square", 3).round(12) + 0.0
        array([1.        , 0.        , 1.41421356, 0.        ])
    """
    m, sigma = _normal(mean, variance)
    try:
        order = operator.index(order)
    except TypeError:
        raise ArgumentTypeError("order", expected="an integer", got=repr(order)) from None
    if not 0 <= order <= _HIGHEST_ORDER:
        raise ArgumentError("order", expected=f"0 to {_HIGHEST_ORDER}", got=repr(order))
    f = activation(f)
    if sigma == 0:
        return np.append(float(f(m)), np.zeros(order))
    return pair.coefficients(f, order, m, sigma)


def pair_expectation(
    f: Function, correlation: float, mean: float = 0.0, variance: float = 1.0
) -> Estimate:
    """E[f(u) f(v)] for u, v ~ N(mean, variance) with a correlation.

    Args:
        f: an activation, or anything that `activation` takes.
        correlation: c in [-1, 1].
        mean, variance: of both u and v.

    *Accuracy*
        For variances from 1e-6 to 1e6 the error is at most 1e-12 of the value, or of 1e-3 E[f^2] if
        that is larger; the bound in the result is usually far smaller.

    Raises:
        ArgumentError: a correlation outside [-1, 1].
        DivergentError: E[f^2] does not exist, or needs values beyond float64.

    Example:
        >>> round(pair_expectation("relu", 0.5), 12)
        0.304498890522

    Reference: Cho & Saul 2009, equation (6), for ReLU; Mehler's formula for the series.
    """
    f = activation(f)
    m, sigma = _normal(mean, variance)
    c = _number("correlation", correlation) + 0.0  # -0.0 is 0.0
    if not -1 <= c <= 1:
        raise ArgumentError("correlation", expected="a number in [-1, 1]", got=repr(correlation))
    if sigma == 0:
        return _exact(float(f(m)) ** 2)
    second = _moments(f, m, sigma).second_moment
    if c == 1:
        return second
    exact = closed.pair_expectation(f.form, f.parameters, c, m, sigma) if f.form else None
    if exact is not None and exact.error <= _SHARP * abs(exact):
        return exact
    for order in pair.SERIES_ORDERS:
        series = pair.by_series(f, c, m, sigma, order, second)
        if series.error <= 5 * _SHARP * abs(series):
            return series
    panels = pair.by_panels(f, c, _grid(f, m, sigma))
    return min(series, panels, key=lambda estimate: estimate.error)


def _number(name: str, value: float) -> float:
    """A finite float, checked."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(name, expected="a number", got=repr(value)) from None
    if not math.isfinite(number):
        raise ArgumentError(name, expected="a finite number", got=repr(value))
    return number


def _normal(mean: float, variance: float) -> tuple[float, float]:
    """Mean and standard deviation, checked."""
    q = _number("variance", variance)
    if q < 0:
        raise ArgumentError("variance", expected="a number >= 0", got=repr(variance))
    return _number("mean", mean), math.sqrt(q)


def _exact(value: float) -> Estimate:
    return Estimate(value, 8 * EPS * abs(value))


@functools.lru_cache(maxsize=4096)
def _moments(f: Activation, mean: float, sigma: float) -> Moments:
    if sigma == 0:
        return _at_a_point(f, mean)
    return Moments(mean, sigma**2, *(_closed(f, mean, sigma) or _by_quadrature(f, mean, sigma)))


def _closed(f: Activation, mean: float, sigma: float) -> Raw | None:
    """The closed forms, if all of them are sharp here."""
    raw = closed.moments(f.form, f.parameters, mean, sigma) if f.form else None
    if raw is None:
        return None
    size, flow = (math.sqrt(abs(x)) for x in (raw.second_moment, raw.derivative_second_moment))
    scales = (size, 0.0, 0.0, flow, 0.0, flow**2, (size / sigma) ** 2)
    for value, scale in zip(raw, scales, strict=True):
        if not value.error <= max(_SHARP * abs(value), _SHARP_ZERO * scale):
            return None
    return raw


@functools.lru_cache(maxsize=256)
def _grid(f: Activation, mean: float, sigma: float) -> Grid:
    return fit(f, mean, sigma, square=True, derivative=True)


def _by_quadrature(f: Activation, mean: float, sigma: float) -> Raw:
    grid = _grid(f, mean, sigma)
    average = grid.inner(grid.f)
    centred = grid.f - float(average)
    # The centred values carry the rounding of the values themselves.
    lost = 2 * np.abs(centred) * (8 * EPS * np.abs(grid.f))
    doubt = grid.slope_error
    growth = grid.inner(grid.f, grid.f, weight=(grid.z**2 - 1) / 2)
    if not f.has_jumps:  # by parts, q V'(q) = sigma E[z f f']
        by_parts = grid.inner(grid.f, grid.slope, weight=sigma * grid.z, doubt=doubt * grid.f)
        growth = min(growth, by_parts, key=lambda estimate: estimate.error)
    q = sigma**2
    growth = Estimate(growth / q, growth.error / q, growth.how)
    flow = grid.inner(grid.slope, grid.slope, doubt=2 * grid.slope * doubt)
    return Raw(
        average,
        grid.inner(grid.f, grid.f),
        grid.inner(centred, centred, doubt=lost),
        grid.inner(grid.slope, doubt=doubt),
        flow,
        Estimate(growth - flow, growth.error + flow.error, growth.how),
        growth,
    )


def _at_a_point(f: Activation, m: float) -> Moments:
    """The limits at variance zero; at a kink the slopes of both sides count half each."""
    value, tiny = float(f(m)), 1e-12 * max(1.0, abs(m))
    slopes = f.derivative(np.array([m - tiny, m + tiny]))
    broken = any(abs(point.location - m) <= tiny for point in f.breakpoints)
    if not broken:
        slopes = np.full(2, float(f.derivative(m)))
    flow = float(np.mean(slopes**2))
    growth: Estimate | None = _exact(flow)
    bend: Estimate | None = Estimate(0.0)
    if broken and value != 0:
        growth = bend = None
    elif not broken:
        h = 1e-3
        steps = f.derivative(m + h * np.array([-2.0, -1.0, 1.0, 2.0]))
        second = float(steps @ [1.0, -8.0, 8.0, -1.0]) / (12 * h)
        bend = Estimate(value * second, abs(value) * 1e-8 * (1 + abs(second)), "differences")
        growth = Estimate(flow + bend, bend.error + 8 * EPS * flow, bend.how)
    return Moments(
        m,
        0.0,
        _exact(value),
        _exact(value**2),
        Estimate(0.0),
        _exact(float(np.mean(slopes))),
        _exact(flow),
        bend,
        growth,
    )
