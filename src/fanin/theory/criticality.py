"""Where signals neither grow nor die: the edge of chaos and the two-susceptibility criterion.

Both ask for `chi = sigma_w2 E[f'^2] = 1` at a fixed point q of the variance map. The edge of
chaos asks for no more, so it is a curve in (sigma_w2, sigma_b2); the criterion of Roberts, Yaida
and Hanin also asks that the variance map have slope 1, which leaves points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from fanin.errors import DivergentError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.fixed import Stability, stability_of
from fanin.theory.gaussian import moments
from fanin.theory.maps import FLAT, check_positive, value_at_zero
from fanin.theory.roots import log_roots

Kind = Literal["point", "continuum", "family", "zero"]


_FLAT_SLOPE = 1e-30  # E[f'^2] below this: f is flat wherever the signal is


@dataclass(frozen=True)
class CriticalPoint:
    """A pair of variances at which gradients keep their size.

    Attributes:
        sigma_w2: fan_in times the weight variance.
        sigma_b2: bias variance.
        q: the fixed point of the variance map.
        slope: derivative of the variance map at q.
        stability: what q does to nearby variances.
        kind: `point`; `family`, if every q in `interval` has a pair of its own (this is the one
            of the q nearest to 1); `continuum`, if every q in `interval` will do (ReLU); `zero`,
            if the fixed point is q = 0, which the variance approaches or leaves as a power of the
            depth.
        interval: the range of q for which the pair is critical.
    """

    sigma_w2: float
    sigma_b2: float
    q: float
    slope: float
    stability: Stability
    kind: Kind
    interval: tuple[float, float]


def edge_of_chaos(
    f: Any, sigma_b2: float = 0.0, *, low: float = 1e-6, high: float = 1e4
) -> tuple[CriticalPoint, ...]:
    """Find every edge-of-chaos point at a bias variance.

    *Definition*: `q = sigma_w2 E[f^2] + sigma_b2` with `sigma_w2 = 1/E[f'^2]`, expectations over
    N(0, q): the roots of `sigma_b2 + E[f^2]/E[f'^2] = q`. A point may be unstable, see `stability`.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        sigma_b2: bias variance, >= 0.
        low: smallest positive q to search from; q = 0 is looked at too.
        high: largest q to search to.

    Returns:
        All points with q in the range, in increasing order of q.

    *Accuracy*: 1e-8 relative.

    Raises:
        NoSolutionError: there is no point in the range; the message names it.

    Example:
        >>> (point,) = edge_of_chaos("tanh", 0.05)
        >>> round(point.sigma_w2, 9), round(point.q, 9), point.stability
        (1.76095464, 0.570047882, 'stable')

    Reference: Schoenholz et al. 2017 (arXiv:1611.01232); Hayou et al. 2019 (arXiv:1902.06853),
    alg. 1.
    """
    check_positive(sigma_b2=sigma_b2, low=low, high=high)
    act = _without_jumps(f, "edge_of_chaos")

    def log_ratio(q: float) -> float:
        second, slope = _second_and_slope(act, q)
        return math.log((sigma_b2 + second / slope) / q) if slope > _FLAT_SLOPE else math.inf

    roots = log_roots(log_ratio, low, high)
    found = [_point(act, root.x, sigma_b2) for root in roots.points]
    found += [_continuum(act, interval, sigma_b2) for interval in roots.intervals]
    zero = _zero(act) if sigma_b2 == 0 else None
    if zero is not None and not roots.intervals:
        found.append(zero)
    if not found:
        raise NoSolutionError(
            f"edge_of_chaos({act.name})",
            expected=f"a variance q with chi = 1 at bias variance {sigma_b2:g}",
            got=f"none for q in [{low:g}, {high:g}]",
            fix="use the rule 'centred' or 'shaped'",
        )
    return tuple(sorted(found, key=lambda point: point.q))


def susceptibility_points(
    f: Any, *, low: float = 1e-4, high: float = 100.0
) -> tuple[CriticalPoint, ...]:
    """Find every point at which both susceptibilities are 1.

    *Definition*: `chi_par = sigma_w2 E[f^2 (z^2 - q)] / (2 q^2) = 1` (slope of the variance map)
    and `chi_perp = sigma_w2 E[f'^2] = 1`, z ~ N(0, q): the roots of `E[f f''] = 0`, with
    `sigma_w2 = 1/E[f'^2]` and `sigma_b2 = q - sigma_w2 E[f^2]`, which must not be negative.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        low: smallest positive q to search from; q = 0 is looked at too.
        high: largest q to search to.

    Returns:
        All points with q in the range, in increasing order of q.

    *Accuracy*: 1e-8 relative.

    Raises:
        NoSolutionError: there is none; the message names the range and what candidates failed.

    Example:
        >>> (zero, point) = susceptibility_points("gelu")
        >>> round(point.q, 8), round(point.sigma_w2, 8), round(point.sigma_b2, 8)
        (3.56155281, 1.98305826, 0.17292239)

    Reference: Roberts, Yaida & Hanin 2022, The Principles of Deep Learning Theory, section 5.3.
    """
    check_positive(low=low, high=high)
    act = _without_jumps(f, "susceptibility_points")

    def relative_curvature(q: float) -> float:
        m = moments(act, 0.0, q)
        slope = float(m.derivative_second_moment)
        return float(m.curvature) / slope if slope > _FLAT_SLOPE else math.inf

    roots = log_roots(relative_curvature, low, high)
    candidates = [_point(act, root.x, None) for root in roots.points]
    candidates += [_continuum(act, interval, None) for interval in roots.intervals]
    zero = _zero(act)
    if zero is not None and not roots.intervals:
        candidates.append(zero)
    found = [point for point in candidates if point.sigma_b2 >= 0]
    if not found:
        raise NoSolutionError(
            f"susceptibility_points({act.name})",
            expected="a variance q at which both susceptibilities are 1",
            got=_why_none(act, candidates, low, high),
            fix="use the rule 'centred' or 'shaped'",
        )
    return tuple(sorted(found, key=lambda point: point.q))


def variance_drift(f: Any) -> float:
    """The coefficient a_1 by which the variance leaves or approaches the fixed point q = 0.

    *Definition*: with f(0) = 0 and `sigma_w2 = 1/f'(0)^2`, `q' = q + a_1 q^2 + ...`; if a_1 < 0,
    `q_l -> 1/(-a_1 l)` from any start. For smooth f, `a_1 = f'''/f' + (3/4) (f''/f')^2` at 0.

    Args:
        f: an activation with f(0) = 0 and a slope at 0, smooth there.

    Returns:
        a_1, per unit of variance.

    *Accuracy*: 1e-6 relative.

    Raises:
        NoSolutionError: q = 0 is no fixed point of f, or f has no slope there.

    Example:
        >>> round(variance_drift("tanh"), 6), round(variance_drift("gelu"), 6)
        (-2.0, 1.909859)

    Reference: Roberts, Yaida & Hanin 2022, section 5.3.3.
    """
    act = activation(f)
    if _zero(act) is None:
        raise NoSolutionError(
            f"variance_drift({act.name})", expected="f(0) = 0 and one non-zero slope at 0"
        )
    slope = act.slope_right

    def quotient(q: float) -> float:
        return (float(moments(act, 0.0, q).second_moment) / (slope**2 * q) - 1) / q

    row = [quotient(4e-3 / 2**k) for k in range(4)]
    for power in range(1, len(row)):
        row = [(2**power * b - a) / (2**power - 1) for a, b in pairwise(row)]
    return row[0]


def _without_jumps(f: Any, where: str) -> Activation:
    """At a jump E[f'^2] is infinite: chi is never 1."""
    act = activation(f)
    if act.has_jumps:
        raise NoSolutionError(
            f"{where}({act.name})",
            expected="a variance q with chi = 1",
            got="chi infinite for every q, because f jumps",
            fix="use the rule 'centred'",
        )
    return act


def _second_and_slope(act: Activation, q: float) -> tuple[float, float]:
    """E[f^2] and E[f'^2]; a divergent expectation counts as infinite over 1."""
    try:
        m = moments(act, 0.0, q)
    except DivergentError:
        return math.inf, 1.0
    return float(m.second_moment), float(m.derivative_second_moment)


def _point(act: Activation, q: float, sigma_b2: float | None) -> CriticalPoint:
    """The critical point at q; sigma_b2 follows from the fixed-point equation where it is None."""
    m = moments(act, 0.0, q)
    sigma_w2 = 1 / float(m.derivative_second_moment)
    if sigma_b2 is None:
        sigma_b2 = q - sigma_w2 * float(m.second_moment)
    slope = sigma_w2 * float(m.slope * m.second_moment) / q

    def growth(x: float) -> int:
        second, _ = _second_and_slope(act, x)
        change = sigma_w2 * second + sigma_b2 - x
        return (change > 0) - (change < 0)

    stability = stability_of(slope, growth(q * 0.995), growth(q * 1.005))
    return CriticalPoint(sigma_w2, sigma_b2, q, slope, stability, "point", (q, q))


def _continuum(
    act: Activation, interval: tuple[float, float], sigma_b2: float | None
) -> CriticalPoint:
    """The solution for a whole interval of q, seen at its q nearest to 1."""
    low, high = interval
    q = min(max(1.0, low), high)
    m = moments(act, 0.0, q)
    sigma_w2 = 1 / float(m.derivative_second_moment)
    rest = q - sigma_w2 * float(m.second_moment)
    sigma_b2 = sigma_b2 if sigma_b2 is not None else (0.0 if abs(rest) < 1e-9 * q else rest)
    ends = [1 / _second_and_slope(act, end)[1] for end in interval]
    same = all(math.isclose(sigma_w2, end, rel_tol=1e-9) for end in ends)
    kind: Kind = "continuum" if same else "family"
    return CriticalPoint(sigma_w2, sigma_b2, q, 1.0, "neutral", kind, interval)


def _zero(act: Activation) -> CriticalPoint | None:
    """The point with q = 0: needs f(0) = 0 and one slope at 0 that is neither 0 nor infinite."""
    slope = act.slope_right
    if not act.differentiable_at_zero or not math.isfinite(slope) or abs(slope) < FLAT:
        return None
    sigma_w2 = 1 / slope**2
    sigma_b2 = -sigma_w2 * value_at_zero(act) ** 2
    if sigma_b2 < -1e-12:
        return None
    second, _ = _second_and_slope(act, 1e-3)
    falls = sigma_w2 * second < 1e-3
    return CriticalPoint(
        sigma_w2, 0.0, 0.0, 1.0, "stable" if falls else "unstable", "zero", (0.0, 0.0)
    )


def _why_none(act: Activation, candidates: list[CriticalPoint], low: float, high: float) -> str:
    """The range that was searched, and the negative bias variance that candidates would need."""
    text = f"none for q in [{low:g}, {high:g}]"
    failed = [(point.q, point.sigma_b2) for point in candidates]
    slope = act.slope_right
    if act.differentiable_at_zero and abs(slope) > FLAT and value_at_zero(act) != 0:
        failed.append((0.0, -((value_at_zero(act) / slope) ** 2)))
    if failed:
        q, sigma_b2 = max(failed, key=lambda pair: pair[1])
        text += f"; q = {q:.4g} would need the bias variance {sigma_b2:.4g}"
    return text
