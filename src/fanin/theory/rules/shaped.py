"""Kernel shaping by weights and constant biases: plain networks of any depth, any activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, deviation_slope, layer_rule
from fanin.theory.rules.search import BETAS, SCALES, Candidate, candidates

_TRIES = 6  # candidates of each kind that are solved exactly before giving up
_FAR = 50.0  # how far the exact s may be from the coarse one, as a factor


def shaped(
    f: Any, depth: int, zeta: float = 1.5, *, variance_slope: float | None = None
) -> LayerRule:
    """Keep a deep plain network mildly nonlinear: an operating point of f, and centring biases.

    *Definition*: every pre-activation is `z ~ N(beta, s^2)`; with m = E[f(z)] and V = Var[f(z)] a
    layer is `z' = beta + W (x - m)`, `Var(W_ij) = s^2 / (V N)`, `b_i = beta - m sum_j W_ij`. Per
    layer, distances between inputs and squared gradients grow by `C'(1) = s^2 E[f'(z)^2] / V >=
    1`, and a deviation of the variance by `Q' = (s^2/V) E[(f - m)(z - beta) f'] / s^2`. (beta, s)
    is chosen with `max(C'(1), Q')^depth = zeta`. C'(1) binds wherever f allows it; Q' binds for
    exp, sinh and x^3.

    Of the points on that curve the one of least `search.cost` is taken: a slope near 1, a small
    mean, N V near 1, a variance that does not grow. The training runs that the cost was fitted to
    are in docs/theory.md, "Which root". A function that is affine wherever its Gaussian falls
    cannot use the budget up; a note says so.

    Wrong when: layers are normalised or skipped (shaping has nothing to add), at zero padding
    (the bias does not centre there), and in bfloat16 where V is below 1e-4 E[f]^2.

    Args:
        f: an activation without jumps, in any form that `fanin.activation` takes.
        depth: number of nonlinear layers, at least 1.
        zeta: the budget, > 1: what C'(1) may grow to over the whole depth.
        variance_slope: impose Q' at this value too (1 as in DKS) and let that choose the root.

    Returns:
        The layer with `bias` = beta, `centre` = m, `operating_point` = (beta, s^2).

    *Accuracy*: `max(C'(1), Q')^depth` is zeta within 1e-8 relative.

    Raises:
        NoSolutionError: f is constant or jumps, or no operating point in the range that was
            searched meets the budget.
        ArgumentError: depth or zeta out of range.

    Example:
        >>> rule = shaped("relu", depth=50)
        >>> beta, variance = rule.operating_point
        >>> round(beta / variance**0.5, 5), round(rule.chi**50, 9)
        (2.32136, 1.5)

    Reference: docs/theory.md, "Shaping"; the conditions are those of deep kernel shaping, Martens
    et al. 2021 (arXiv:2110.01765), with its four constants absorbed into W and b.
    """
    act = activation(f)
    if not (float(depth) == int(depth) and depth >= 1):
        raise ArgumentError("shaped(depth)", expected="a whole number >= 1", got=repr(depth))
    if not (math.isfinite(zeta) and zeta > 1):
        raise ArgumentError("shaped(zeta)", expected="a finite number > 1", got=repr(zeta))
    _refuse_jumps(act)
    log_budget = math.log(zeta) / depth
    if variance_slope is not None:
        return _with_slope(act, log_budget, depth, zeta, variance_slope)
    for found, solve in zip(candidates(act, log_budget, depth), (_met, _unused), strict=True):
        for candidate in found[:_TRIES]:
            s = solve(act, candidate, log_budget)
            if s is not None:
                return _rule(act, candidate.beta, s, depth, zeta)
    raise _no_solution(act, depth, zeta, "none was found")


def _rule(act: Activation, beta: float, s: float, depth: int, zeta: float) -> LayerRule:
    """The layer at an operating point."""
    m = moments(act, beta, s * s)
    rule = layer_rule(
        "shaped",
        act,
        s * s / float(m.variance),
        mean=beta,
        variance=s * s,
        centre=float(m.mean),
        notes=(f"Made for {depth} nonlinear layers and a budget of {zeta:g}.",),
    )
    used = max(rule.chi, rule.slope) ** depth
    notes = rule.notes
    if used < zeta * (1 - 1e-6):
        notes = (
            *notes,
            f"The budget is not used up: f is so nearly affine that it takes {used:.4g}.",
        )
    elif rule.chi**depth < zeta * (1 - 1e-6):
        notes = (*notes, f"The variance map binds: C'(1)^depth is {rule.chi**depth:.4g}.")
    return replace(rule, notes=notes)


Growth = Callable[[Activation, float, float], float]


def _solve(
    act: Activation, beta: float, s: float, log_budget: float, growth: Growth
) -> float | None:
    """The s near a coarse one at which the growth meets the budget; None if there is none."""

    def excess(t: float) -> float:
        rate = growth(act, beta, math.exp(t))
        return math.log(math.log(rate) / log_budget) if rate > 1 else -_FAR

    low = high = math.log(s)
    step = 0.02
    try:
        below = above = excess(low)
        while below >= 0 or above <= 0:
            if step > math.log(_FAR):
                return None
            if below >= 0:
                low, high, above = low - step, low, below
                below = excess(low)
            else:
                low, high, below = high, high + step, above
                above = excess(high)
            step *= 3
        return math.exp(brentq(excess, low, high, xtol=1e-12, rtol=1e-12))
    except DivergentError:
        return None


def _chi(act: Activation, beta: float, s: float) -> float:
    """C'(1) at an operating point."""
    m = moments(act, beta, s * s)
    return s * s * float(m.derivative_second_moment) / float(m.variance)


def _slope(act: Activation, beta: float, s: float) -> float:
    """Q' at an operating point."""
    m = moments(act, beta, s * s)
    return s * s * deviation_slope(act, m, beta, s * s, float(m.mean)) / float(m.variance)


def _larger(act: Activation, beta: float, s: float) -> float:
    """The larger of the two."""
    return max(_chi(act, beta, s), _slope(act, beta, s))


def _met(act: Activation, candidate: Candidate, log_budget: float) -> float | None:
    """The exact s of a candidate, or None if the coarse grid was wrong about it."""
    if candidate.slope < candidate.chi:
        s = _solve(act, candidate.beta, candidate.s, log_budget, _chi)
        if s is None or math.log(_slope(act, candidate.beta, s)) <= log_budget:
            return s
    return _solve(act, candidate.beta, candidate.s, log_budget, _larger)


def _unused(act: Activation, candidate: Candidate, log_budget: float) -> float | None:
    """The s of a candidate below the budget, if it is."""
    growth = _larger(act, candidate.beta, candidate.s)
    return candidate.s if math.log(growth) <= log_budget else None


def _with_slope(
    act: Activation, log_budget: float, depth: int, zeta: float, slope: float
) -> LayerRule:
    """The best point on the curve C'(1)^depth = zeta at which Q' has a given value."""
    meeting, _ = candidates(act, log_budget, depth, chi_alone=True)
    curve = sorted(meeting, key=lambda c: c.beta)
    signs = [c.slope < slope for c in curve]
    # One point more on both sides, since the grid is coarse.
    brackets = [
        (curve[max(i - 1, 0)], curve[min(i + 2, len(curve) - 1)])
        for i in range(len(curve) - 1)
        if signs[i] != signs[i + 1]
    ]
    for a, b in sorted(brackets, key=lambda ends: round(ends[0].cost + ends[1].cost, 6)):

        def at(beta: float, near: float = math.sqrt(a.s * b.s)) -> tuple[float, float]:
            s = _solve(act, beta, near, log_budget, _chi)
            return (math.nan, math.nan) if s is None else (s, _slope(act, beta, s) - slope)

        if at(a.beta)[1] * at(b.beta)[1] < 0:
            beta = brentq(lambda x, at=at: at(x)[1], a.beta, b.beta, xtol=1e-13)
            return _rule(act, beta, at(beta)[0], depth, zeta)
    raise _no_solution(act, depth, zeta, f"no operating point has Q' = {slope:g}")


def _refuse_jumps(act: Activation) -> None:
    """At a jump E[f'^2] is infinite: distances of close inputs grow without bound."""
    jumps = [point.location for point in act.breakpoints if point.kind == "jump"]
    if jumps:
        raise NoSolutionError(
            f"shaped({act.name})",
            expected="an activation without jumps",
            got=f"a jump at {jumps[0]:.6g}, where C'(1) is infinite at every operating point",
            fix="use 'centred'",
        )


def _no_solution(act: Activation, depth: int, zeta: float, why: str) -> NoSolutionError:
    """None of the candidates could be solved."""
    return NoSolutionError(
        f"shaped({act.name}, depth={depth}, zeta={zeta:g})",
        expected="an operating point that meets the budget",
        got=f"{why} for |beta| <= {BETAS.max():g}, s in [{SCALES[0]:.0e}, {SCALES[-1]:g}]",
        fix="use 'centred', or a larger zeta",
    )
