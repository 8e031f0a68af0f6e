"""Kernel shaping by weights and constant biases: plain networks of any depth, any activation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq

from fanin.errors import ArgumentError, DivergentError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, layer_rule
from fanin.theory.rules.search import (
    BETAS,
    ROUNDING,
    SCALES,
    Candidate,
    candidates,
    rounding,
)
from fanin.theory.spread import Spread, Spreads

if TYPE_CHECKING:
    from jaxtyping import Float

    Points = Float[np.ndarray, "points"]

_DIVERGENT = 2  # candidates at which E[f'^2] does not exist, before the others are not tried
_IN_SIGHT = 6.0  # standard deviations at which a cusp shows
_TRIES = 6  # candidates of each kind that are solved exactly before giving up
_SPREADS = 4.0  # of the variance by chance, before it runs away within the depth
_NEAR = math.log(11.0)  # how far ln s may be from a coarse one that is right
_NOTHING = 50.0  # a growth that is none is so far below the target, in its logarithm
_FAR = math.log(50.0)  # how far it is looked for between two points of the coarse curve


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
    cusps, diverged = _cusps(act), 0
    for kind, solve in zip(found, (_met, _unused), strict=True):
        for candidate in kind[:_TRIES]:
            try:
                s = math.nan if _sees(candidate, cusps) else solve(act, candidate, budget)
            except DivergentError:
                s = math.nan
            if s is not None and math.isnan(s):
                diverged += 1
                if diverged == _DIVERGENT:
                    why = "E[f'^2] is infinite at the points that were tried"
                    raise _no_solution(act, budget, why)
            elif s is not None:
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


Rate = Callable[[Spread], float]


def _solve(at: Spreads, s: float, target: float, rate: Rate, reach: float = _NEAR) -> float | None:
    """The s near a coarse one at which the growth per layer is exp(target); None if none is."""

    def excess(t: float) -> float:
        found = rate(at(math.exp(t)))
        return math.log(found / target) if found > 0 else -_NOTHING

    start = t = math.log(s)
    value = excess(t)
    step = -value * 0.55  # a smooth f has a growth of s^2, so this is a tenth too far
    while value != 0:
        step = math.copysign(min(max(abs(step), 1e-3), 1.0), -value)
        if abs(t + step - start) > reach:
            return None
        beyond = excess(t + step)
        if (beyond > 0) != (value > 0):
            low, high = sorted((t, t + step))
            return math.exp(brentq(excess, low, high, xtol=1e-12, rtol=1e-12))
        slope = (beyond - value) / step
        t, value = t + step, beyond
        step = max(3 * abs(step), 1.1 * abs(value / slope)) if slope > 0 else 3 * abs(step)
    return math.exp(t)


def _chi(spread: Spread) -> float:
    """ln C'(1); -inf where f is constant."""
    return math.log(spread.chi) if spread.chi > 0 else -math.inf


def _slope(spread: Spread) -> float:
    """ln Q'; -inf where the variance map falls."""
    return math.log(spread.slope) if spread.slope > 0 else -math.inf


def _met(act: Activation, candidate: Candidate, budget: Budget) -> float | None:
    """The exact s of a candidate, or None if the coarse grid was wrong about it."""
    at, near, weight = Spreads(act, candidate.beta), candidate.s, budget.variance_weight
    if candidate.slope < 1 or weight * math.log(candidate.slope) < math.log(candidate.chi):
        s = _solve(at, near, budget.rate, _chi)
        if s is None or weight * _slope(at(s)) <= budget.rate * (1 + 1e-9):
            return s

    def larger(spread: Spread) -> float:
        return max(_chi(spread), weight * _slope(spread))

    return _solve(at, near, budget.rate, larger)


def _unused(act: Activation, candidate: Candidate, budget: Budget) -> float | None:
    """The s of a candidate below the budget, if it is."""
    spread = Spreads(act, candidate.beta)(candidate.s)
    used = max(_chi(spread), budget.variance_weight * _slope(spread))
    return candidate.s if spread.chi > 0 and used <= budget.rate else None


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
        with contextlib.suppress(_OffCurveError):
            beta, s = _crossing(act, budget, slope, a, b)
            return _rule(act, beta, s, budget)
    raise _no_solution(act, budget, f"no operating point has Q' = {slope:g}")


class _OffCurveError(Exception):
    """Between two points of the coarse curve there is no exact one."""


def _crossing(
    act: Activation, budget: Budget, slope: float, a: Candidate, b: Candidate
) -> tuple[float, float]:
    """Where, between two points, Q' has a given value on the curve: beta and s."""

    def at(beta: float) -> tuple[float, float]:
        spreads = Spreads(act, beta)
        try:
            s = _solve(spreads, math.sqrt(a.s * b.s), budget.rate, _chi, _FAR)
        except DivergentError:
            s = None
        if s is None:
            raise _OffCurveError
        return s, spreads(s).slope - slope

    if at(a.beta)[1] * at(b.beta)[1] >= 0:
        raise _OffCurveError
    beta = brentq(lambda x: at(x)[1], a.beta, b.beta, xtol=1e-13)
    return beta, at(beta)[0]


def _refuse_jumps(act: Activation) -> None:
    """At a jump E[f'^2] is infinite: distances of close inputs grow without bound."""
    jumps = [point.location for point in act.breakpoints if point.kind == "jump"]
    if jumps:
        raise NoSolutionError(
            f"shaped({act.name})",
            expected="an activation without jumps",
            got=f"a jump at {min(jumps, key=abs):.6g}, "
            "where C'(1) is infinite at every operating point",
            fix="use 'centred'",
        )


def _cusps(act: Activation) -> Points:
    """Where the slope of f is not square integrable, such as at 0 for |x|^(1/2).

    Over [h, 2h] beside a point the integral of f'^2 is at least (f(2h) - f(h))^2/h: these must
    vanish with h for their sum to exist.
    """
    places = np.array(sorted({0.0, *(point.location for point in act.breakpoints)}))
    scale = np.maximum(np.abs(places), 2.0**-14)[:, None, None]
    steps = scale * np.array([[1.0], [-1.0]]) * 2.0 ** np.array([-10.0, -22.0])
    rises = act(places[:, None, None] + 2 * steps) - act(places[:, None, None] + steps)
    far, near = np.moveaxis(rises**2 / np.abs(steps), -1, 0)
    found: Points = places[((near > 0.9 * far) & (far > 0)).any(axis=1)]
    return found


def _sees(candidate: Candidate, cusps: Points) -> bool:
    """Whether a cusp lies so near to an operating point that E[f'^2] is found to be infinite."""
    return bool((np.abs(cusps - candidate.beta) < _IN_SIGHT * candidate.s).any())


def _no_solution(act: Activation, budget: Budget, why: str) -> NoSolutionError:
    """None of the candidates could be solved."""
    return NoSolutionError(
        f"shaped({act.name}, depth={budget.depth:g}, zeta={budget.zeta:g})",
        expected="an operating point that meets the budget",
        got=f"{why}, for |beta| <= {BETAS.max():g}, s in [{SCALES[0]:.0e}, {SCALES[-1]:g}]",
        fix="use 'centred', or a larger zeta",
    )
