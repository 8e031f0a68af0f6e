"""Kernel shaping by weights and constant biases: plain networks of any depth, any activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, deviation_slope, layer_rule
from fanin.theory.rules.search import BETAS, SCALES, Candidate, candidates

_TRIES = 6  # candidates of each kind that are solved exactly before giving up


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

    Of the points on that curve the one of least `search.cost` is taken: steep, small mean, N V
    near 1. Measured at depth 50 (docs/theory.md, "Which root"), that order is the order of
    accuracy. A function that is affine wherever its Gaussian falls cannot use the budget up; a
    note says so.

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
        searched
            meets the budget.
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
    meeting, below = candidates(act, log_budget, depth)
    for candidate in meeting[:_TRIES] + below[:_TRIES]:
        scale = _solve(act, candidate, log_budget)
        if scale is not None:
            return _rule(act, candidate.beta, scale, depth, zeta)
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


Slopes = tuple[float, float]


def _solve(
    act: Activation, candidate: Candidate, log_budget: float, bound: Callable[[Slopes], float] = max
) -> float | None:
    """The exact s of a candidate, or None if the coarse grid was wrong about it."""

    def excess(t: float) -> float:
        return math.log(bound(_slopes(act, candidate.beta, math.exp(t)))) / log_budget - 1

    low, high = math.log(candidate.low), math.log(candidate.high)
    try:
        if not candidate.uses_budget:
            return candidate.s if excess(low) <= 0 else None
        for _ in range(4):
            low -= math.log(2.0) if excess(low) >= 0 else 0.0
            high += math.log(2.0) if excess(high) <= 0 else 0.0
        if excess(low) >= 0 or excess(high) <= 0:
            return None
        return math.exp(brentq(excess, low, high, xtol=1e-12, rtol=1e-12))
    except DivergentError:
        return None


def _slopes(act: Activation, beta: float, s: float) -> Slopes:
    """C'(1) and Q' at an operating point."""
    m = moments(act, beta, s * s)
    scale = s * s / float(m.variance)
    slope = scale * deviation_slope(act, m, beta, s * s, float(m.mean))
    return scale * float(m.derivative_second_moment), slope


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

        def at(beta: float, a: Candidate = a, b: Candidate = b) -> tuple[float, float]:
            low, high = min(a.low, b.low), max(a.high, b.high)
            here = replace(a, beta=beta, low=low, high=high)
            s = _solve(act, here, log_budget, bound=itemgetter(0))
            return (math.nan, math.nan) if s is None else (s, _slopes(act, beta, s)[1] - slope)

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
