"""Where a layer settles: every fixed point of the variance, and c* of the correlation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError
from fanin.theory.activation import Activation, activation
from fanin.theory.maps import (
    NEUTRAL,
    check_positive,
    chi,
    correlation_map,
    value_at_zero,
    variance_map,
    variance_map_slope,
)
from fanin.theory.roots import Root, log_roots

Stability = Literal["stable", "unstable", "neutral", "half-stable"]


@dataclass(frozen=True)
class FixedPoint:
    """A variance that a layer gives back unchanged.

    Attributes:
        variance: q*, the fixed point itself.
        slope: derivative of the variance map there.
        stability: `stable` attracts, `unstable` repels, `half-stable` attracts from one side only,
            `neutral` is one of a continuum.
    """

    variance: float
    slope: float
    stability: Stability


@dataclass(frozen=True)
class FixedPoints:
    """Every fixed point of a variance map in a range, and what happens beyond them.

    Attributes:
        points: the isolated fixed points, in increasing order.
        intervals: stretches (low, high) in which every variance is a fixed point, as for ReLU.
        searched: the range of variances that was searched.
        growth_at_high: q'/q at the upper end; above 1 the variance leaves the range.
        growth_at_low: q'/q at the lower end.
    """

    points: tuple[FixedPoint, ...]
    intervals: tuple[tuple[float, float], ...]
    searched: tuple[float, float]
    growth_at_high: float
    growth_at_low: float

    def __iter__(self) -> Iterator[FixedPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> FixedPoint:
        return self.points[index]

    @property
    def diverges(self) -> bool:
        """Whether a large variance grows out of the range that was searched."""
        return self.growth_at_high > 1 + NEUTRAL

    def __str__(self) -> str:
        low, high = self.searched
        lines = [f"q* = {p.variance:.9g}, slope {p.slope:.6g}, {p.stability}" for p in self.points]
        lines += [f"every q in [{a:.3g}, {b:.3g}] is a fixed point" for a, b in self.intervals]
        lines = lines or [f"no fixed point in [{low:.3g}, {high:.3g}]"]
        if self.diverges:
            lines.append(
                f"diverges: at q = {high:.3g} a layer multiplies q by {self.growth_at_high:.4g}"
            )
        return "\n".join(lines)


def fixed_points(
    f: Any,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    low: float = 1e-6,
    high: float = 1e6,
) -> FixedPoints:
    """Find every fixed point of the variance map in a range, with its stability.

    *Definition*: `q* = sigma_w2 * E[f(sqrt(q*) Z)^2] + sigma_b2`. Zero is listed too where it is
    one.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.
        low: smallest positive variance to search from.
        high: largest variance to search to.

    Returns:
        The fixed points; intervals of them (ReLU: the whole line) are reported as intervals. Two
        points within a factor 1.3 of each other can be missed, or 1.08 where the map is flat.

    *Accuracy*: 1e-10 relative for simple roots, 1e-5 for double ones.

    Example:
        >>> print(fixed_points("relu", 2.0))
        every q in [1e-06, 1e+06] is a fixed point
        >>> [round(p.variance, 6) for p in fixed_points("tanh", 2.0, 0.05)]
        [0.721762]
    """
    check_positive(sigma_w2=sigma_w2, sigma_b2=sigma_b2, low=low, high=high)
    act = activation(f)

    def log_growth(q: float) -> float:
        return _log_growth(act, q, sigma_w2, sigma_b2)

    roots = log_roots(log_growth, low, high)
    points = [_fixed_point(act, root, sigma_w2) for root in roots.points]
    zero = _zero(act, sigma_w2, sigma_b2, roots.at_low)
    if zero is not None and not any(a <= low * 1.01 for a, _ in roots.intervals):
        points.insert(0, zero)
    return FixedPoints(
        tuple(points), roots.intervals, (low, high), math.exp(roots.at_high), math.exp(roots.at_low)
    )


def settling_variance(
    f: Any, sigma_w2: float, sigma_b2: float = 0.0, *, start: float = 1.0, high: float = 1e6
) -> float | None:
    """The fixed point that the variance moves to from `start`, or None where there is none.

    *Definition*: the first root of `q' = q` in the direction in which the map moves `start`. It
    is the limit where the map increases; where it does not (sin), the variance may cycle around
    it.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.
        start: variance of the first pre-activation.
        high: a variance beyond `high`, or below `1/high`, counts as leaving.

    Returns:
        The fixed point, or None if the variance leaves [1/high, high].

    Example:
        >>> settling_variance("relu", 2.0)
        1.0
        >>> settling_variance("gelu", 4.0) is None
        True
    """
    check_positive(sigma_w2=sigma_w2, sigma_b2=sigma_b2, start=start, high=high)
    act = activation(f)

    def at(t: float) -> float:
        return max(-50.0, min(50.0, _log_growth(act, math.exp(t), sigma_w2, sigma_b2)))

    t = math.log(start)
    value = at(t)
    if abs(value) < 1e-12:
        return start
    sign = 1 if value > 0 else -1
    step = math.log(2.0)
    while abs(t) <= math.log(high):
        if sign * at(t + sign * step) <= 0:
            return math.exp(brentq(at, t, t + sign * step, xtol=1e-14, rtol=1e-14))
        t, step = t + sign * step, 1.5 * step
    return None


def fixed_correlation(f: Any, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """The correlation c* that all pairs of different inputs approach.

    *Definition*: `c* = C(c*)`. C is a power series in c with coefficients >= 0, hence convex on
    [0, 1]: c* = 1 if chi <= 1, else the one root in [0, 1).

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        q: a fixed point of the variance map.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.

    Returns:
        c*, between 0 and 1.

    *Accuracy*: 1e-8.

    Raises:
        ArgumentError: q is not a fixed point, so no correlation settles at it.

    Example:
        >>> round(fixed_correlation("tanh", 0.72176187, 2.0, 0.05), 6)
        0.744082
    """
    require_fixed(f, q, sigma_w2, sigma_b2)
    if chi(f, q, sigma_w2) <= 1 + NEUTRAL:
        return 1.0

    def excess(c: float) -> float:
        return correlation_map(f, c, q, sigma_w2, sigma_b2) - c

    if excess(0.0) <= 1e-13:
        return 0.0
    below = 0.5
    while excess(below) > 0:
        below = (1 + below) / 2
        if 1 - below < 1e-9:
            return 1.0
    return float(brentq(excess, 0.0, below, xtol=1e-13))


def stability_of(slope: float, below: int, above: int) -> Stability:
    """How a fixed point acts: by the slope, and at slope 1 by the signs of growth around it."""
    if abs(abs(slope) - 1) > NEUTRAL:
        return "stable" if abs(slope) < 1 else "unstable"
    if below > 0 > above:
        return "stable"
    return "unstable" if below < 0 < above else "half-stable"


def _log_growth(act: Activation, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """log(q'/q); infinite where the expectation is."""
    try:
        new = variance_map(act, q, sigma_w2, sigma_b2)
    except (DivergentError, ArgumentError):  # f overflows within a few standard deviations
        return math.inf
    return math.log(new / q) if new > 0 else -math.inf


def _fixed_point(act: Activation, root: Root, sigma_w2: float) -> FixedPoint:
    """A root of the growth with its slope and what it does to neighbours."""
    slope = variance_map_slope(act, root.x, sigma_w2)
    return FixedPoint(root.x, slope, stability_of(slope, root.below, root.above))


def _zero(
    act: Activation, sigma_w2: float, sigma_b2: float, growth_at_low: float
) -> FixedPoint | None:
    """The fixed point q = 0, which exists if neither the bias nor f(0) moves it."""
    if sigma_b2 > 0 or value_at_zero(act) != 0:
        return None
    slope = sigma_w2 * (act.slope_left**2 + act.slope_right**2) / 2
    if not math.isfinite(slope):
        return None
    sign = 1 if growth_at_low > 0 else -1
    return FixedPoint(0.0, slope, stability_of(slope, -sign, sign))


def require_fixed(f: Any, q: float, sigma_w2: float, sigma_b2: float) -> None:
    """Refuse a q that the variance map moves."""
    new = variance_map(f, q, sigma_w2, sigma_b2)
    if abs(new / q - 1) > 1e-4:
        raise ArgumentError(
            "q",
            expected="a fixed point of the variance map",
            got=f"{q:.6g}, which becomes {new:.6g}",
            fix="take q from fixed_points(f, sigma_w2, sigma_b2)",
        )
