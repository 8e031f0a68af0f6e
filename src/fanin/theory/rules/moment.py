"""The rules from exact Gaussian moments at a chosen variance of the pre-activation."""

from __future__ import annotations

import math
from typing import Any

from fanin.errors import ArgumentError, NotCoveredError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule, layer_rule


def second_moment(f: Any, *, variance: float = 1.0) -> LayerRule:
    """Keep the second moment of the pre-activations.

    *Definition*: `sigma_w^2 = q / E[f(z)^2]`, z ~ N(0, q), biases 0. At q = 1 the gain is
    `1/sqrt(E[f(Z)^2])`; for leaky ReLU it is the rule of He et al.

    Wrong when: the fixed point repels (`stable` is False: GELU, SiLU, Mish), or f has a mean, which
    makes all inputs look alike with depth (sigmoid, softplus: chi far below 1).

    Args:
        f: any activation with a finite second moment.
        variance: q, the second moment of the pre-activations, > 0.

    Returns:
        The layer; the first one gives the second moment q to inputs of mean square 1, the last one
        has outputs of mean square 1.

    Raises:
        NotCoveredError: f is 0 wherever pre-activations fall.
        DivergentError: E[f^2] does not exist.

    Example:
        >>> round(second_moment("tanh").weight_variance_times_fan_in, 9)
        2.536175433

    Reference: He et al. 2015 for ReLU; Hendrycks & Gimpel 2016 (arXiv:1607.02488) for any f.
    """
    act, m = _at(f, variance, "second_moment")
    weight = variance / _positive(act, m.second_moment, "second_moment", "E[f^2]")
    return layer_rule("second_moment", act, weight, variance=variance)


def backward(f: Any, *, variance: float = 1.0) -> LayerRule:
    """Keep the size of gradients, at pre-activations of a chosen variance.

    *Definition*: `sigma_w^2 = 1 / E[f'(z)^2]`, z ~ N(0, q), biases 0, so that chi = 1 there.

    Wrong when: q is not a fixed point of the variance map under this rule (`is_fixed_point`); chi
    then moves away from 1 as the variance does. `critical` asks for both.

    Args:
        f: any activation with a slope somewhere.
        variance: q, the second moment of the pre-activations, > 0.

    Returns:
        The layer; the first one gives the second moment q to inputs of mean square 1.

    Raises:
        NotCoveredError: f is flat wherever pre-activations fall, or it jumps: E[f'^2] is infinite.

    Example:
        >>> round(backward("tanh").weight_variance_times_fan_in, 9)
        2.153302649

    Reference: He et al. 2015, eq. (14) for ReLU.
    """
    act, m = _at(f, variance, "backward")
    if act.has_jumps:
        raise NotCoveredError(
            f"backward({act.name})",
            expected="an activation without jumps",
            got="E[f'^2] infinite",
            fix="use 'second_moment' or 'centred'",
        )
    weight = 1 / _positive(act, m.derivative_second_moment, "backward", "E[f'^2]")
    return layer_rule("backward", act, weight, variance=variance)


def centred(f: Any, *, variance: float = 1.0) -> LayerRule:
    """Take the mean of f out by the bias, and keep the variance.

    *Definition*: `sigma_w^2 = q / Var[f(z)]`, `b_i = -E[f(z)] sum_j W_ij`, z ~ N(0, q). The layer
    then sees `f - E[f]`: independent inputs stay uncorrelated. Rows of W that sum to 0 do the
    same.

    Wrong when: the depth is large; squared gradients grow by `chi >= 1` per layer (sigmoid 1.034,
    ReLU 1.467). `shaped` chooses the operating point so that they do not.

    Args:
        f: any activation that is not constant.
        variance: q, the variance of the pre-activations, > 0.

    Returns:
        The layer, with `centre` = E[f]; the first one has no centre, the last one has.

    Raises:
        NotCoveredError: f is constant wherever pre-activations fall.
        DivergentError: E[f^2] does not exist.

    Example:
        >>> rule = centred("sigmoid")
        >>> round(rule.weight_variance_times_fan_in, 6), round(rule.centre, 12)
        (23.05261, 0.5)

    Reference: docs/theory.md, "Centring"; the zero-sum form is the mechanism of scaled weight
    standardisation, Brock et al. 2021 (arXiv:2101.08692).
    """
    act, m = _at(f, variance, "centred")
    weight = variance / _positive(act, m.variance, "centred", "Var[f]")
    return layer_rule("centred", act, weight, variance=variance, centre=float(m.mean))


def _at(f: Any, variance: float, rule: str) -> tuple[Activation, Any]:
    """The activation and its moments at mean 0."""
    if not (math.isfinite(variance) and variance > 0):
        raise ArgumentError(f"{rule}(variance)", expected="a finite number > 0", got=repr(variance))
    act = activation(f)
    return act, moments(act, 0.0, variance)


def _positive(act: Activation, value: float, rule: str, name: str) -> float:
    """A moment that a rule divides by."""
    if not value > 0:
        raise NotCoveredError(
            f"{rule}({act.name})",
            expected=f"{name} > 0 at the operating point",
            got=repr(float(value)),
            fix="choose another variance, or another activation",
        )
    return float(value)
