"""Kernel shaping by weights and constant biases: plain networks of any depth, any activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, deviation_slope, layer_rule
from fanin.theory.rules.search import (
    BETAS,
    ROUNDING,
    SCALES,
    Candidate,
    candidates,
    rounding,
)

_DIVERGENT = 2  # candidates at which E[f'^2] does not exist, before the others are not tried
_TRIES = 6  # candidates of each kind that are solved exactly before giving up
_SPREADS = 4.0  # of the variance by chance, before it runs away within the depth
_FAR = 50.0  # how far the exact s may be from the coarse one, as a factor


def shaped(
    f: Any,
    depth: float,
    zeta: float = 1.5,
    *,
    width: float = math.inf,
    variance_slope: float | None = None,
) -> LayerRule:
    """Keep a deep plain network mildly nonlinear: an operating point of f, and centring biases.

    *Definition*: every pre-activation is `z ~ N(beta, s^2)`; with m = E[f(z)] and V = Var[f(z)] a
    layer is `z' = beta + W (x - m)`, `Var(W_ij) = s^2 / (V N)`, `b_i = beta - m sum_j W_ij`. Per
    layer, distances between inputs and squared gradients grow by `C'(1) = s^2 E[f'(z)^2] / V >=
    1`, and a deviation of the variance by `Q' = (s^2/V) E[(f - m)(z - beta) f'] / s^2`. (beta, s)
    is chosen so that `C'(1)^depth <= zeta` and `Q'^depth <= zeta_Q`, one of them with equality;
    `zeta_Q = min(zeta, 1/(1 - exp(-4 (2 depth/width)^(1/2))))`. C'(1) binds wherever f allows
    it; Q' binds for exp, sinh and x^3, and in narrow networks for x^2.

    zeta_Q keeps what finite width does to one example's variance from running away: by chance
    its logarithm spreads by (2 depth/width)^(1/2), and near the linear limit a variance u times
    too large grows without bound within the depth if `u > zeta_Q/(zeta_Q - 1)`. That is put four
    spreads away.

    Of the points on that curve the one of least `search.cost` is taken: a slope near 1, a small
    mean, N V near 1, a variance that does not grow. The training runs that the cost was fitted to
    are in docs/theory.md, "Which root". A function that is affine wherever its Gaussian falls
    cannot use the budget up; a note says so.

    Wrong when: layers are normalised or skipped (shaping has nothing to add), and at zero padding
    (the bias does not centre there). Points at which bfloat16 adds more than a quarter of noise,
    `(2/3) depth 2^-16 m^2/V > 1/4`, are avoided; where f has no other, a note says so.

    Args:
        f: an activation without jumps, in any form that `fanin.activation` takes.
        depth: number of nonlinear layers, at least 1; of a network with branches the length of the
            chain that uses the budget up as fast.
        zeta: the budget, > 1: what C'(1) may grow to over the whole depth.
        width: fan-in of the layers, their harmonic mean where they differ; > 0.
        variance_slope: impose Q' at this value too (1 as in DKS) and let that choose the root.

    Returns:
        The layer with `bias` = beta, `centre` = m, `operating_point` = (beta, s^2).

    *Accuracy*: `C'(1)^depth` is zeta, or `Q'^depth` is zeta_Q, within 1e-8 relative.

    Raises:
        NoSolutionError: f is constant or jumps, or no operating point in the range that was
            searched meets the budget.
        ArgumentError: depth, zeta or width out of range.

    Example:
        >>> rule = shaped("relu", depth=50)
        >>> beta, variance = rule.operating_point
        >>> round(beta / variance**0.5, 5), round(rule.chi**50, 9)
        (2.32136, 1.5)

    Reference: docs/theory.md, "Shaping"; the conditions are those of deep kernel shaping, Martens
    et al. 2021 (arXiv:2110.01765), with its four constants absorbed into W and b.
    """
    act = activation(f)
    if not (math.isfinite(depth) and depth >= 1):
        raise ArgumentError("shaped(depth)", expected="a finite number >= 1", got=repr(depth))
    if not (math.isfinite(zeta) and zeta > 1):
        raise ArgumentError("shaped(zeta)", expected="a finite number > 1", got=repr(zeta))
    if not width > 0:
        raise ArgumentError("shaped(width)", expected="a number > 0", got=repr(width))
    _refuse_jumps(act)
    budget = Budget(depth, zeta, width)
    if variance_slope is not None:
        return _with_slope(act, budget, variance_slope)
    found = candidates(act, budget.rate, depth, budget.variance_weight)
    diverged = 0
    for kind, solve in zip(found, (_met, _unused), strict=True):
        for candidate in kind[:_TRIES]:
            try:
                s = solve(act, candidate, budget)
            except DivergentError:
                diverged += 1
                if diverged < _DIVERGENT:
                    continue
                why = "E[f'^2] is infinite at the points that were tried"
                raise _no_solution(act, budget, why) from None
            if s is not None:
                return _rule(act, candidate.beta, s, budget)
    raise _no_solution(act, budget, "none was found")


@dataclass(frozen=True)
class Budget:
    """What the slopes of a network may grow to.

    Args:
        depth: number of nonlinear layers.
        zeta: what C'(1) may grow to.
        width: fan-in of the layers.
    """

    depth: float
    zeta: float
    width: float = math.inf

    @property
    def rate(self) -> float:
        """ln C'(1) of one layer at most."""
        return math.log(self.zeta) / self.depth

    @property
    def variance(self) -> float:
        """zeta_Q, what Q' may grow to."""
        escape = -math.expm1(-_SPREADS * math.sqrt(2 * self.depth / self.width))
        return self.zeta if escape * self.zeta <= 1 else 1 / escape

    @property
    def variance_weight(self) -> float:
        """How much more ln Q' counts than ln C'(1)."""
        return math.log(self.zeta) / math.log(self.variance)


def _rule(act: Activation, beta: float, s: float, budget: Budget) -> LayerRule:
    """The layer at an operating point."""
    m = moments(act, beta, s * s)
    rule = layer_rule(
        "shaped",
        act,
        s * s / float(m.variance),
        mean=beta,
        variance=s * s,
        centre=float(m.mean),
        notes=(f"Made for {budget.depth:.6g} nonlinear layers and a budget of {budget.zeta:g}.",),
    )
    noise = float(rounding(float(m.mean), float(m.variance), budget.depth))
    if noise > ROUNDING:
        note = f"In bfloat16 rounding makes {noise:.0%} of the variance: train it in float32."
        rule = replace(rule, notes=(*rule.notes, note))
    chi, slope = rule.chi**budget.depth, rule.slope**budget.depth
    if chi >= budget.zeta * (1 - 1e-6):
        return rule
    if slope >= budget.variance * (1 - 1e-6):
        note = f"The variance map binds: Q'^depth is {slope:.4g}, C'(1)^depth {chi:.4g}."
    else:
        used = max(chi, slope)
        note = f"The budget is not used up: f is so nearly affine that it takes {used:.4g}."
    return replace(rule, notes=(*rule.notes, note))


Rate = Callable[[Activation, float, float], float]


def _solve(act: Activation, beta: float, s: float, target: float, rate: Rate) -> float | None:
    """The s near a coarse one at which the growth per layer is exp(target); None if none is."""

    def excess(t: float) -> float:
        found = rate(act, beta, math.exp(t))
        return math.log(found / target) if found > 0 else -_FAR

    low = high = math.log(s)
    step = 0.02
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
    return math.exp(brentq(excess, low, high, xtol=1e-10, rtol=1e-10))


def _chi(act: Activation, beta: float, s: float) -> float:
    """ln C'(1) at an operating point."""
    m = moments(act, beta, s * s)
    return math.log(s * s * float(m.derivative_second_moment) / float(m.variance))


def _slope(act: Activation, beta: float, s: float) -> float:
    """ln Q' at an operating point; -inf where the variance map falls."""
    m = moments(act, beta, s * s)
    q = s * s * deviation_slope(act, m, beta, s * s, float(m.mean)) / float(m.variance)
    return math.log(q) if q > 0 else -math.inf


def _met(act: Activation, candidate: Candidate, budget: Budget) -> float | None:
    """The exact s of a candidate, or None if the coarse grid was wrong about it."""
    beta, near, weight = candidate.beta, candidate.s, budget.variance_weight
    if candidate.slope < 1 or weight * math.log(candidate.slope) < math.log(candidate.chi):
        s = _solve(act, beta, near, budget.rate, _chi)
        if s is None or weight * _slope(act, beta, s) <= budget.rate * (1 + 1e-9):
            return s

    def larger(act: Activation, beta: float, s: float) -> float:
        return max(_chi(act, beta, s), weight * _slope(act, beta, s))

    return _solve(act, beta, near, budget.rate, larger)


def _unused(act: Activation, candidate: Candidate, budget: Budget) -> float | None:
    """The s of a candidate below the budget, if it is."""
    beta, s = candidate.beta, candidate.s
    used = max(_chi(act, beta, s), budget.variance_weight * _slope(act, beta, s))
    return s if used <= budget.rate else None


def _with_slope(act: Activation, budget: Budget, slope: float) -> LayerRule:
    """The best point on the curve C'(1)^depth = zeta at which Q' has a given value."""
    meeting, _ = candidates(act, budget.rate, budget.depth, 0.0)
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
            try:
                s = _solve(act, beta, near, budget.rate, _chi)
            except DivergentError:
                s = None
            return (
                (math.nan, math.nan) if s is None else (s, math.exp(_slope(act, beta, s)) - slope)
            )

        if at(a.beta)[1] * at(b.beta)[1] < 0:
            beta = brentq(lambda x, at=at: at(x)[1], a.beta, b.beta, xtol=1e-13)
            return _rule(act, beta, at(beta)[0], budget)
    raise _no_solution(act, budget, f"no operating point has Q' = {slope:g}")


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


def _no_solution(act: Activation, budget: Budget, why: str) -> NoSolutionError:
    """None of the candidates could be solved."""
    return NoSolutionError(
        f"shaped({act.name}, depth={budget.depth:g}, zeta={budget.zeta:g})",
        expected="an operating point that meets the budget",
        got=f"{why}, for |beta| <= {BETAS.max():g}, s in [{SCALES[0]:.0e}, {SCALES[-1]:g}]",
        fix="use 'centred', or a larger zeta",
    )
