"""The rule of the paper, to the letter."""

from __future__ import annotations

import math
from typing import Any

from fanin.errors import NotCoveredError
from fanin.theory.activation import Activation, activation
from fanin.theory.maps import FLAT, value_at_zero
from fanin.theory.rules.layer import LayerRule, layer_rule

_BEYOND_THE_PAPER = {
    True: "use 'he', which takes any pair of slopes",
    False: "use 'second_moment' or 'shaped', which need no slope at 0",
}


def kumar(f: Any) -> LayerRule:
    """Keep the variance of the activations at 1, in a model of f that is linear at 0.

    *Definition*: `v^2 = 1 / (N g'(0)^2 (1 + g(0)^2))`, g = f, N the fan-in, biases 0. It follows
    from `Var(x_m) = N v^2 g'(0)^2 (g(0)^2 + Var(x_{m-1}))` at the fixed point Var(x) = 1. For
    ReLU, which has no slope at 0, the paper computes `E[x^2] = Var(y)/2` directly and finds `v^2
    = 2/N`.

    Wrong when: pre-activations of variance 1 leave the linear region (sigmoid: the outputs would
    need variance 1 and cannot exceed 1/4), or the mean of f is not small, as the operating point
    shows.

    Args:
        f: an activation that is differentiable at 0 with g'(0) != 0, or ReLU.

    Returns:
        The layer; the same weight variance holds for every layer, the first and last included.

    Raises:
        NotCoveredError: f has a kink or a jump at 0 and is not ReLU, or its slope at 0 is 0; the
            message names a rule that covers it.

    Example:
        >>> kumar("sigmoid").weight_variance_times_fan_in
        12.8
        >>> kumar("relu").weight_variance_times_fan_in
        2.0

    Reference: Kumar 2017 (arXiv:1704.08863), sections 2 and 3.
    """
    act = activation(f)
    if _is_relu(act):
        return layer_rule("kumar", act, 2.0, exactness="closed form", every_layer=True)
    slope, value = _slope_at_zero(act), value_at_zero(act)
    return layer_rule(
        "kumar",
        act,
        1 / (slope**2 * (1 + value**2)),
        exactness="closed form",
        every_layer=True,
        notes=("Exact only for an f that is linear where pre-activations fall.",),
    )


def _is_relu(act: Activation) -> bool:
    """max(x, 0) in any form: homogeneous, slope 0 on the left and 1 on the right."""
    return (
        act.homogeneity == 1
        and abs(act.slope_left) < FLAT
        and math.isclose(act.slope_right, 1, rel_tol=1e-9)
    )


def _slope_at_zero(act: Activation) -> float:
    """g'(0), or an error that says which assumption of the paper fails."""
    left, right = act.slope_left, act.slope_right
    if not act.differentiable_at_zero:
        raise NotCoveredError(
            f"kumar({act.name})",
            expected="an activation that is differentiable at 0, or ReLU",
            got=f"slope {left:.6g} on the left of 0 and {right:.6g} on the right",
            fix=_BEYOND_THE_PAPER[act.homogeneity == 1],
        )
    if abs(right) < FLAT:
        raise NotCoveredError(
            f"kumar({act.name})",
            expected="a slope at 0 other than 0",
            got="g'(0) = 0, for which the paper's variance is infinite",
            fix=_BEYOND_THE_PAPER[False],
        )
    return float(right)
