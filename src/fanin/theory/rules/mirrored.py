"""Units in mirrored pairs: only the odd part of f about beta acts, whatever f is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fanin.errors import ArgumentError, FaninError, NoSolutionError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, deviation_slope
from fanin.theory.rules.shaped import Budget, shaped

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Array = Float[ndarray, "*shape"]


def mirrored(f: Any, depth: float, zeta: float = 1.5, *, width: float = math.inf) -> LayerRule:
    """Pairs of units with opposite weights, read with opposite weights: no mean, no even part.

    *Definition*: the units of a layer come in pairs `beta + u` and `beta - u`: their weights are
    opposite, their biases both beta. The next layer reads a pair with opposite weights, so that
    `u' = sum_p W_p (f(beta + u_p) - f(beta - u_p)) = 2 sum_p W_p g(u_p)` with the odd part
    `g(u) = (f(beta + u) - f(beta - u))/2` in place of f. The mean of f cancels exactly, at padded
    borders too, and of the maps only the odd Hermite coefficients are left. With N inputs, which
    are N/2 pairs, `Var(W_ij) = s^2 / (2 N E[g(sZ)^2])`, and `C'(1) = s^2 E[g'^2] / E[g^2]`.

    (beta, s) is the point of `shaped` at infinite width. A network of pairs that training has made
    unequal is one of `shaped`, so its budget bounds what asymmetry does; but the finite width,
    which pushes `shaped` with x^2 so near to linear that the mean outweighs the signal a
    thousandfold, has no hold here: x^2 becomes exactly linear, `g = 2 beta u`. `auto` takes pairs
    where shaped leaves E[f]^2/Var f above 100: plain networks of x^2 with 100 layers then train to
    0.92 at rates where they stay at chance without (docs/theory.md, "Mirrored pairs").

    Wrong when: weights are trained apart by much (nothing keeps the pairs), and for f whose odd
    part drifts itself (exp, sinh, x^3).

    Args:
        f: an activation without jumps, in any form that `fanin.activation` takes.
        depth: number of nonlinear layers, at least 1.
        zeta: the budget of `shaped`, > 1.
        width: fan-in of the layers, twice the number of pairs; > 0.

    Returns:
        The layer with `bias` = beta, `operating_point` = (beta, s^2), `centre` the mean that the
        pairs cancel, and `moments` of f; `slope` and `chi` are those of g.

    *Accuracy*: the weight variance is within 1e-9 relative of its definition.

    Raises:
        NoSolutionError: `shaped` has none, or the variance map of g grows beyond what half the
            width allows.
        ArgumentError: depth, zeta or width out of range.

    Example:
        >>> rule = mirrored("square", depth=100)
        >>> round(rule.slope, 12), round(rule.chi, 12)
        (1.0, 1.0)

    Reference: docs/theory.md, "Mirrored pairs"; for ReLU at beta = 0 these are the looks-linear
    networks of Balduzzi et al. 2017 (arXiv:1702.08591).
    """
    act = activation(f)
    if not width > 0:
        raise ArgumentError("mirrored(width)", expected="a number > 0", got=repr(width))
    plain = _shaped(act, depth, zeta)
    beta, variance = plain.operating_point
    odd = odd_part(act, beta)
    m = moments(odd, 0.0, variance)
    second = float(m.second_moment)
    slope = variance * deviation_slope(odd, m, 0.0, variance, 0.0) / second
    allowed = Budget(depth, zeta, width / 2).variance
    if abs(slope) ** depth > allowed * (1 + 1e-9):
        raise NoSolutionError(
            f"mirrored({act.name}, depth={depth:g}, zeta={zeta:g})",
            expected=f"an odd part whose variance grows by less than {allowed:.4g}",
            got=f"{abs(slope) ** depth:.4g}",
            fix="use 'shaped'",
        )
    return replace(
        plain,
        rule="mirrored",
        weight_variance_times_fan_in=variance / (2 * second),
        slope=slope,
        chi=variance * float(m.derivative_second_moment) / second,
        last_variance=1 / (2 * second),
        notes=("Units come in pairs of opposite weights.", *plain.notes[:1]),
    )


def _shaped(act: Activation, depth: float, zeta: float) -> LayerRule:
    """The point of `shaped`; its errors name the rule that was asked for."""
    try:
        return shaped(act, depth, zeta)
    except FaninError as error:
        where = error.where.replace("shaped(", "mirrored(", 1)
        raise type(error)(where, expected=error.expected, got=error.got, fix=error.fix) from None


def odd_part(act: Activation, beta: float) -> Activation:
    """g(u) = (f(beta + u) - f(beta - u))/2."""

    def value(u: Array) -> Array:
        result: Array = (act(beta + u) - act(beta - u)) / 2
        return result

    def derivative(u: Array) -> Array:
        result: Array = (act.derivative(beta + u) + act.derivative(beta - u)) / 2
        return result

    name = f"odd part of {act.name} about {beta:.6g}"
    return Activation(name, value, None, {}, value, derivative if act.exact_derivative else None)
