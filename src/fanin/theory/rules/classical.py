"""The rules that everyone knows: LeCun 1998, Glorot and Bengio 2010, He et al. 2015."""

from __future__ import annotations

from typing import Any, Literal

from fanin.errors import ArgumentError, NotCoveredError
from fanin.theory.activation import activation
from fanin.theory.rules.layer import LayerRule, layer_rule


def lecun(f: Any) -> LayerRule:
    """Give every weight the variance 1/fan_in, whatever f is.

    *Definition*: `Var(W_ij) = 1 / fan_in`, biases 0; it keeps the variance of a linear layer.

    Wrong when: f is not close to the identity with slope 1 at 0.

    Args:
        f: an activation; only the operating point depends on it.

    Returns:
        The layer; the same variance holds for every layer.

    Example:
        >>> lecun("tanh").std(fan_in=100)
        0.1

    Reference: LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.6.
    """
    return layer_rule("lecun", activation(f), 1.0, exactness="closed form", every_layer=True)


def xavier(f: Any) -> LayerRule:
    """Give every weight the variance 2/(fan_in + fan_out), whatever f is.

    *Definition*: `Var(W_ij) = 1 / fan_avg`, `fan_avg = (fan_in + fan_out)/2`, biases 0: the
    compromise between keeping the forward variance (fan_in) and the backward one (fan_out) of a
    linear layer. The operating point is that of square layers, where both fans agree.

    Wrong when: f is not close to the identity with slope 1 at 0; ReLU halves the variance per
    layer.

    Args:
        f: an activation; only the operating point depends on it.

    Returns:
        The layer, with `fan="fan_avg"`; the same variance holds for every layer.

    Example:
        >>> round(xavier("tanh").std(fan_in=100, fan_out=300), 6)
        0.070711

    Reference: Glorot & Bengio 2010, eqs. (12) and (16).
    """
    act = activation(f)
    return layer_rule("xavier", act, 1.0, exactness="closed form", every_layer=True, fan="fan_avg")


def he(f: Any, *, fan: Literal["fan_in", "fan_out"] = "fan_in") -> LayerRule:
    """Keep the second moment through a leaky ReLU of any two slopes.

    *Definition*: `Var(W_ij) = 2 / ((a_left^2 + a_right^2) fan)`, with the slopes of f on both
    sides of 0; biases 0. For ReLU this is 2/fan, for leaky ReLU `2/((1 + a^2) fan)`.

    Wrong when: f is not made of two straight lines that meet at 0; that is refused.

    Args:
        f: an activation that is homogeneous of degree 1.
        fan: `fan_in` keeps the forward scale, `fan_out` the backward one.

    Returns:
        The layer; the same variance holds for every layer.

    Raises:
        NotCoveredError: f is not homogeneous of degree 1, or is 0 everywhere.
        ArgumentError: fan is neither `fan_in` nor `fan_out`.

    Example:
        >>> round(he("leaky_relu(0.2)").std(fan_in=1), 6)
        1.38675

    Reference: He, Zhang, Ren & Sun 2015 (arXiv:1502.01852), eqs. (10), (14) and (15).
    """
    act = activation(f)
    if fan not in ("fan_in", "fan_out"):
        raise ArgumentError("he(fan)", expected="'fan_in' or 'fan_out'", got=repr(fan))
    squares = act.slope_left**2 + act.slope_right**2
    if act.homogeneity != 1 or squares == 0:
        raise NotCoveredError(
            f"he({act.name})",
            expected="an activation made of two straight lines that meet at 0",
            got=f"homogeneity {act.homogeneity}",
            fix="use 'second_moment', which is 'he' for any activation",
        )
    return layer_rule("he", act, 2 / squares, exactness="closed form", every_layer=True, fan=fan)
