"""Expectations of an activation under a normal distribution and under a correlated pair."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.errors import ArgumentError, DivergentError
from fanin.theory.activation import Activation, activation
from fanin.theory.grid import Estimate, Grid, fit
from fanin.theory.quadrature import EPS, WEIGHTS

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Function = str | Callable[..., Any] | Activation

__all__ = [
    "Estimate",
    "Moments",
    "expectation",
    "hermite_coefficients",
    "moments",
    "pair_expectation",
]


@dataclass(frozen=True)
class Moments:
    """Moments of f(x) for x ~ N(mean, variance)."""

    mean: Estimate
    second_moment: Estimate
    variance: Estimate
    derivative_mean: Estimate
    derivative_second_moment: Estimate
    curvature: Estimate
    slope: Estimate


def _normal(mean: float, variance: float) -> tuple[float, float]:
    """Mean and standard deviation, checked."""
    if not math.isfinite(mean):
        raise ArgumentError("mean", expected="a finite number", got=repr(mean))
    if not (math.isfinite(variance) and variance >= 0):
        raise ArgumentError("variance", expected="a finite number >= 0", got=repr(variance))
    return float(mean), math.sqrt(variance)


def expectation(f: Function, mean: float = 0.0, variance: float = 1.0) -> Estimate:
    """E[f(x)] for x ~ N(mean, variance)."""
    f = activation(f)
    mean, sigma = _normal(mean, variance)
    if sigma == 0:
        return Estimate(float(f(mean)))
    grid = fit(f, mean, sigma, derivative=False, square=False)
    return grid.inner(grid.f, np.ones_like(grid.f))


def moments(f: Function, mean: float = 0.0, variance: float = 1.0) -> Moments:
    """All moments that the rules need, at x ~ N(mean, variance)."""
    mean, sigma = _normal(mean, variance)
    return _moments(activation(f), mean, sigma)


@functools.lru_cache(maxsize=4096)
def _moments(f: Activation, mean: float, sigma: float) -> Moments:
    if sigma == 0:
        value, slope = float(f(mean)), float(f.derivative(mean))
        flat = [Estimate(v) for v in (value, value**2, 0.0, slope, slope**2, 0.0, 0.0)]
        return Moments(*flat)
    grid = _grid(f, mean, sigma)
    slope_values = grid.slope
    assert slope_values is not None
    one = np.ones_like(grid.f)
    first, second = grid.inner(grid.f, one), grid.inner(grid.f, grid.f)
    centred = grid.f - float(first)
    variance = grid.inner(centred, centred)
    slope_mean, slope_second = (
        grid.inner(slope_values, one),
        grid.inner(slope_values, slope_values),
    )
    # q V'(q) = E[f^2 (z^2 - 1)]/2 = sigma E[z f f'], the latter without jumps.
    growth = grid.inner(grid.f, grid.f * (grid.z**2 - 1) / 2)
    if not f.has_jumps:
        other = grid.inner(grid.f, sigma * grid.z * slope_values)
        growth = min(growth, other, key=lambda estimate: estimate.error)
    curvature = Estimate(
        growth / sigma**2 - slope_second,
        growth.error / sigma**2 + slope_second.error,
        growth.how,
    )
    if second == 0:
        raise DivergentError(f"E[f^2] of {f.name}", expected="a positive value", got="0")
    slope = Estimate(
        growth / second, (growth.error + abs(growth / second) * second.error) / second, growth.how
    )
    return Moments(first, second, variance, slope_mean, slope_second, curvature, slope)


@functools.lru_cache(maxsize=256)
def _grid(f: Activation, mean: float, sigma: float) -> Grid:
    return fit(f, mean, sigma, derivative=True, square=True)


def hermite_coefficients(
    f: Function, order: int, mean: float = 0.0, variance: float = 1.0
) -> Float[ndarray, "order+1"]:
    """a_k = E[f(mean + sigma z) h_k(z)] for k = 0..order, with orthonormal Hermite polynomials h_k."""
    mean, sigma = _normal(mean, variance)
    grid = _grid(activation(f), mean, sigma)
    weights = grid.panels.half[:, None] * WEIGHTS * grid.root
    weighted, z = (weights * grid.f).ravel(), grid.z.ravel()
    before, now = np.zeros_like(z), grid.root.ravel()
    result = np.empty(order + 1)
    for k in range(order + 1):
        result[k] = weighted @ now
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return result


def pair_expectation(
    f: Function, correlation: float, mean: float = 0.0, variance: float = 1.0
) -> Estimate:
    """E[f(u) f(v)] for u, v ~ N(mean, variance) with the given correlation."""
    if not -1 <= correlation <= 1:
        raise ArgumentError("correlation", expected="a number in [-1, 1]", got=repr(correlation))
    f = activation(f)
    mean, sigma = _normal(mean, variance)
    if sigma == 0:
        return Estimate(float(f(mean)) ** 2)
    grid = _grid(f, mean, sigma)
    if correlation == 1:
        return grid.inner(grid.f, grid.f)
    return _nested(f, correlation, mean, sigma, grid)


def _nested(f: Activation, c: float, mean: float, sigma: float, grid: Grid) -> Estimate:
    """The outer variable is what u and v share if c > 0, their difference otherwise."""
    z_edges = np.arange(-10.0, 10.5, 0.5)
    wide, narrow = sigma * math.sqrt((1 + abs(c)) / 2), sigma * math.sqrt((1 - abs(c)) / 2)
    from fanin.theory.quadrature import NODES

    ends = f.landscape.ends
    ends = ends[np.abs(ends - mean) < 20 * sigma]
    sign = 1.0 if c >= 0 else -1.0
    # u = mean + wide t + narrow w, v = mean + sign (wide t - narrow w)
    near = (
        np.unique(np.concatenate([z_edges, (ends[:, None] - ends).ravel() / (2 * narrow)]))
        if narrow
        else z_edges
    )
    outer = near[np.abs(near) <= 10]
    outer = outer[np.concatenate([[True], np.diff(outer) > 1e-3])]
    total = 0.0
    for left, right in zip(outer[:-1], outer[1:], strict=True):
        w = (left + right) / 2 + (right - left) / 2 * NODES
        for wk, weight in zip(w, WEIGHTS, strict=True):
            cuts = np.concatenate(
                [
                    z_edges,
                    (ends - mean - narrow * wk) / wide,
                    (sign * (ends - mean) + narrow * wk) / wide,
                ]
            )
            cuts = np.unique(cuts[np.abs(cuts) <= 10])
            t = (cuts[1:] + cuts[:-1])[:, None] / 2 + np.diff(cuts)[:, None] / 2 * NODES
            u = f(mean + wide * t + narrow * wk)
            v = f(mean + sign * (wide * t - narrow * wk))
            inner = float(np.diff(cuts) / 2 @ ((u * v * np.exp(-t * t / 2)) @ WEIGHTS)) / math.sqrt(
                2 * math.pi
            )
            total += (right - left) / 2 * weight * inner * math.exp(-wk * wk / 2)
    value = total / math.sqrt(2 * math.pi)
    return Estimate(value, 1e-11 * abs(value) + EPS, "quadrature")
