"""The maps of one layer: what variance and what correlation leave it, and where both settle.

A layer is `y = W x + b` with `x = f(y of the layer before)`, weight variance `sigma_w2 / fan_in`
and bias variance `sigma_b2`. At infinite width the second moment `q = E[y^2]` and the correlation
`c` of two inputs each follow a map of one real variable (Poole et al. 2016, arXiv:1606.05340).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError, NotCoveredError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments, pair_expectation
from fanin.theory.roots import Root, log_roots

Stability = Literal["stable", "unstable", "neutral", "half-stable"]

NEUTRAL = 1e-6  # a slope this close to 1 neither attracts nor repels to first order
FLAT = 1e-12  # a slope below this is 0


def variance_map(f: Any, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """The second moment of the next pre-activation.

    *Definition*: `q' = sigma_w2 * E[f(sqrt(q) Z)^2] + sigma_b2`, Z ~ N(0, 1).

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        q: second moment of this pre-activation, q > 0.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.

    Returns:
        `q'`, in the unit of q.

    *Accuracy*: that of `theory.gaussian`, 1e-12 relative for the activations of the registry.

    Raises:
        ArgumentError: a variance is negative or not finite.
        DivergentError: the expectation does not exist.

    Example:
        >>> round(variance_map("relu", 3.0, 2.0), 12)
        3.0

    Reference: Poole et al. 2016, eq. (3).
    """
    check_positive(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return float(sigma_w2 * moments(f, 0.0, q).second_moment + sigma_b2)


def variance_map_slope(f: Any, q: float, sigma_w2: float) -> float:
    """The derivative of the variance map; below 1 at a fixed point, the fixed point attracts.

    *Definition*: `dq'/dq = sigma_w2 * E[f(sqrt(q) Z)^2 (Z^2 - 1)] / (2 q)
    = sigma_w2 * E[f'^2 + f f'']`, the last form for smooth f.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        q: second moment of the pre-activation, q > 0.
        sigma_w2: fan_in times the weight variance, > 0.

    Returns:
        The slope, without unit.

    Example:
        >>> round(variance_map_slope("gelu", 1.0, 2.351715614), 3)
        1.144

    Reference: Schoenholz et al. 2017 (arXiv:1611.01232), section 3.
    """
    check_positive(q=q, sigma_w2=sigma_w2)
    growth = moments(f, 0.0, q).growth
    assert growth is not None  # it exists for every q > 0
    return float(sigma_w2 * growth)


def correlation_map(f: Any, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """The correlation of two pre-activations after one layer.

    *Definition*: `c' = (sigma_w2 * E[f(u) f(v)] + sigma_b2) / q'`, (u, v) normal with mean 0,
    variance q and correlation c, and q' from `variance_map`.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        c: correlation of the two pre-activations, -1 <= c <= 1.
        q: their common second moment, q > 0.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.

    Returns:
        `c'`, between -1 and 1; increasing in c >= 0, and 1 at c = 1.

    Example:
        >>> round(correlation_map("relu", 0.0, 1.0, 2.0), 6)  # 1 / pi
        0.31831

    Reference: Poole et al. 2016, eq. (5).
    """
    check_positive(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    _check_correlation(c)
    shared = sigma_w2 * pair_expectation(f, c, 0.0, q) + sigma_b2
    return float(shared / variance_map(f, q, sigma_w2, sigma_b2))


def correlation_map_slope(
    f: Any, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0
) -> float:
    """The derivative of the correlation map.

    *Definition*: `dc'/dc = sigma_w2 * E[f'(u) f'(v)] * q / q'`.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        c: correlation of the two pre-activations, -1 <= c <= 1.
        q: their common second moment, q > 0.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.

    Returns:
        The slope, without unit.

    Example:
        >>> round(correlation_map_slope("relu", 0.0, 1.0, 2.0), 6)
        0.5

    Reference: Schoenholz et al. 2017, eq. (5).
    """
    check_positive(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    _check_correlation(c)
    shared = sigma_w2 * slope_correlation(activation(f), c, q)
    return float(shared * q / variance_map(f, q, sigma_w2, sigma_b2))


def chi(f: Any, q: float, sigma_w2: float) -> float:
    """The factor by which squared gradients grow per layer going backwards.

    *Definition*: `chi = sigma_w2 * E[f'(sqrt(q) Z)^2]`; at a fixed point of the variance map it
    is the slope of the correlation map at 1. Below 1 inputs merge and gradients vanish, above 1
    both explode.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        q: second moment of the pre-activation, q > 0.
        sigma_w2: fan_in times the weight variance, > 0.

    Returns:
        chi, without unit; infinite if f jumps.

    Example:
        >>> chi("relu", 1.0, 2.0)
        1.0

    Reference: Schoenholz et al. 2017, eq. (5).
    """
    check_positive(q=q, sigma_w2=sigma_w2)
    if activation(f).has_jumps:
        return math.inf
    return float(sigma_w2 * moments(f, 0.0, q).derivative_second_moment)


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


def slope_correlation(act: Activation, c: float, q: float) -> float:
    """E[f'(u) f'(v)] for normal u, v of mean 0, variance q and correlation c."""
    if act.has_jumps:
        raise NotCoveredError(
            f"correlation_map_slope({act.name})",
            expected="an activation without jumps",
            got="a jump, where f' is not a function",
            fix="take differences of correlation_map",
        )
    if c == 1.0:
        return float(moments(act, 0.0, q).derivative_second_moment)
    return float(pair_expectation(act.derivative, c, 0.0, q))


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


def value_at_zero(act: Activation) -> float:
    """f(0) as a float."""
    return float(np.asarray(act(np.zeros(1))).ravel()[0])


def check_positive(**values: float) -> None:
    """All arguments are finite; biases may be 0, everything else is positive."""
    for name, value in values.items():
        zero_allowed = name == "sigma_b2"
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
            expected = "a finite number >= 0" if zero_allowed else "a finite number > 0"
            raise ArgumentError(name, expected=expected, got=repr(value))


def _check_correlation(c: float) -> None:
    """A correlation lies between -1 and 1."""
    if not -1 <= c <= 1:
        raise ArgumentError("c", expected="a correlation between -1 and 1", got=repr(c))


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
