"""Initializers that set a weight and its bias together, by a rule of `fanin.theory.rules`."""

from __future__ import annotations

import functools
import math
from typing import Literal, Unpack

import torch
from torch import nn

from fanin.errors import ArgumentError, NotCoveredError
from fanin.planning.fans import Fans
from fanin.theory import rules
from fanin.theory.activation import Activation, activation
from fanin.theory.rules import LayerRule
from fanin.torch.fans import Layout, fan, row_sums
from fanin.torch.filling import (
    Initializer,
    Make,
    Nonlinearity,
    Target,
    fan_in_scale,
    fill_scaled,
    layer_fans,
    normal,
    uniform,
)
from fanin.torch.slots import refuse

Position = Literal["first", "hidden", "last"]


@Initializer
def kumar_normal_(
    tensor: Target,
    nonlinearity: Nonlinearity,
    generator: torch.Generator | None = None,
    *,
    bias: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> Target:
    r"""Fill with N(0, v^2) as Kumar's paper derives from the activation, and the bias with 0.

    *Definition*: v^2 = 1 / (N g'(0)^2 (1 + g(0)^2)) for g differentiable at 0, v^2 = 2 / N for
    ReLU; N = fan_in.

    Args:
        tensor: a weight, laid out (out, in, taps...), or a layer with one weight.
        nonlinearity: the activation g whose output the layer reads.
        generator: where the seed is taken from.
        bias: the bias of a weight given as a tensor; a layer knows its own.
        layout: `axes`, `splits`, `size`.

    Returns:
        What was given.

    Raises:
        NotCoveredError: g is not differentiable at 0; the rule that covers it is named.

    Example:
        >>> layer = kumar_normal_(nn.Linear(400, 300), "sigmoid")     # 12.8 / N
        >>> round(float(layer.weight.var() * 400), 0), float(layer.bias.abs().max())
        (13.0, 0.0)

    Reference: Kumar 2017 (arXiv:1704.08863).
    """
    rule = rules.get("kumar")(activation(nonlinearity))
    return _ruled("kumar_normal_", tensor, rule, normal, bias, generator, layout)


@Initializer
def kumar_uniform_(
    tensor: Target,
    nonlinearity: Nonlinearity,
    generator: torch.Generator | None = None,
    *,
    bias: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with a uniform distribution of the variance of `kumar_normal_`, and the bias with 0.

    *Definition*: U(-r, r) with r = sqrt(3) v.

    Example:
        >>> layer = kumar_uniform_(nn.Linear(3, 4), "tanh")     # v = 1 / sqrt(3)
        >>> bool(layer.weight.abs().max() <= 1.0)
        True
    """
    rule = rules.get("kumar")(activation(nonlinearity))
    return _ruled("kumar_uniform_", tensor, rule, uniform, bias, generator, layout)


@Initializer
def centred_(
    tensor: Target,
    nonlinearity: Nonlinearity,
    generator: torch.Generator | None = None,
    *,
    bias: torch.Tensor | None = None,
    position: Position = "hidden",
    **layout: Unpack[Layout],
) -> Target:
    r"""Fill so that the mean of the activation is removed and unit variance kept.

    *Definition*: W_ij ~ N(0, 1 / (N Var[f(z)])), b_i = -E[f(z)] sum_j W_ij, z ~ N(0, 1). The
    layer then reads f - E[f]. The sum is over the weights as stored.

    Args:
        tensor: a weight, laid out (out, in, taps...), or a layer with one weight.
        nonlinearity: the activation f whose output the layer reads.
        generator: where the seed is taken from.
        bias: the bias of a weight given as a tensor; a layer knows its own.
        position: "first" for the layer that reads the network's input (variance 1 / N, bias 0),
            "last" for the linear output layer, else "hidden".
        layout: `axes`, `splits`, `size`.

    Raises:
        NotCoveredError: there is no bias to carry the mean.

    Example:
        >>> layer = centred_(nn.Linear(400, 300), "sigmoid")
        >>> round(float(layer.weight.std() * 20), 1)
        4.8
        >>> bool(torch.allclose(layer.bias, -0.5 * layer.weight.sum(1), atol=1e-5))
        True

    Reference: docs/theory.md, removing the mean.
    """
    rule = _at(rules.get("centred")(activation(nonlinearity)), position)
    return _ruled("centred_", tensor, rule, normal, bias, generator, layout)


@Initializer
def shaped_(
    tensor: Target,
    nonlinearity: Nonlinearity,
    depth: int,
    zeta: float = 1.5,
    generator: torch.Generator | None = None,
    *,
    bias: torch.Tensor | None = None,
    position: Position = "hidden",
    **layout: Unpack[Layout],
) -> Target:
    r"""Fill a layer of a plain deep network so that inputs stay distinct over its whole depth.

    *Definition*: W_ij ~ N(0, s^2 / (N V)), b_i = beta - m sum_j W_ij, where m and V are mean and
    variance of f(z), z ~ N(beta, s^2), and (beta, s) make the slope of the correlation map
    zeta^(1/depth), with a variance map of slope at most 1 where one exists.

    Args:
        tensor: a weight, laid out (out, in, taps...), or a layer with one weight.
        nonlinearity: the activation f whose output the layer reads.
        depth: number of nonlinear layers of the network.
        zeta: nonlinearity budget of the whole depth, above 1.
        generator: where the seed is taken from.
        bias: the bias of a weight given as a tensor; a layer knows its own.
        position: "first" (variance s^2 / N, bias beta), "last" (variance 1 / (V N), bias
            -m sum_j W_ij), else "hidden".
        layout: `axes`, `splits`, `size`.

    Raises:
        NotCoveredError: there is no bias to carry the operating point.
        NoSolutionError: no operating point meets the budget.

    Example:
        >>> net = [nn.Linear(64, 64) for _ in range(20)]
        >>> for layer in net:
        ...     _ = shaped_(layer, "sigmoid", depth=20)

    Reference: docs/theory.md, kernel shaping; the conditions are those of Martens et al. 2021
    (arXiv:2110.01765).
    """
    found = _shaped(activation(nonlinearity), depth, zeta)
    return _ruled("shaped_", tensor, _at(found, position), normal, bias, generator, layout)


@functools.lru_cache(maxsize=64)
def _shaped(f: Activation, depth: int, zeta: float) -> LayerRule:
    """The rule, solved once for all layers of a network."""
    return rules.get("shaped")(f, depth=depth, zeta=zeta)


def _at(rule: LayerRule, position: Position) -> LayerRule:
    """The rule of a layer at one place of the network."""
    if position not in ("first", "hidden", "last"):
        raise ArgumentError("position", expected="'first', 'hidden' or 'last'", got=repr(position))
    if position == "hidden":
        return rule
    return rule.first() if position == "first" else rule.last()


def _ruled(
    where: str,
    target: Target,
    rule: LayerRule,
    make: Make,
    bias: torch.Tensor | None,
    generator: torch.Generator | None,
    layout: Layout,
) -> Target:
    """The weight from the rule's variance, then the bias from the weight as stored."""
    counted = _counted(where, target, layout)
    if isinstance(target, nn.Module):
        bias = target.get_parameter("bias") if getattr(target, "bias", None) is not None else None
    if bias is not None:
        refuse(f"{where}(bias)", bias)
    elif rule.bias != 0 or rule.centre != 0:
        raise NotCoveredError(
            where, expected="a bias to carry the mean", got="none", fix="give the layer a bias"
        )
    scale = fan_in_scale(math.sqrt(rule.weight_variance_times_fan_in))
    fill_scaled(where, target, scale, make, generator, layout)
    if bias is not None:
        weight = target.weight if isinstance(target, nn.Module) else target
        shift = rule.centre * row_sums(weight, counted)
        bias.copy_((rule.bias - shift).reshape(bias.shape))
    return target


def _counted(where: str, target: torch.Tensor | nn.Module, layout: Layout) -> Fans:
    """The fans of the one weight that the target has."""
    if not isinstance(target, nn.Module):
        return fan(refuse(where, target), **layout)
    found = layer_fans(target, layout)
    if list(found) != ["weight"]:
        raise NotCoveredError(
            f"{where}({type(target).__name__})",
            expected="a layer with one weight",
            got=f"the weights {', '.join(found)}",
            fix="let fanin.init_ plan it",
        )
    return found["weight"]
