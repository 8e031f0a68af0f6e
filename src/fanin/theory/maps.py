"""The maps of one layer: what variance and what correlation leave it.

A layer is `y = W x + b` with `x = f(y of the layer before)`, weight variance `sigma_w2 / fan_in`
and bias variance `sigma_b2`. At infinite width the second moment `q = E[y^2]` and the correlation
`c` of two inputs each follow a map of one real variable (Poole et al. 2016, arXiv:1606.05340).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fanin.errors import ArgumentError, NotCoveredError
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import moments, pair_expectation

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
