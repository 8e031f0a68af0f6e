"""How deep a signal reaches: depth scales of variance, correlation and gradient, and decay laws.

Near a fixed point a deviation shrinks as `exp(-layers / scale)`. Where the slope is 1 the scale is
infinite, and the deviation shrinks as a power of the depth instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fanin.errors import ArgumentError, NoSolutionError
from fanin.theory.activation import activation
from fanin.theory.fixed import fixed_correlation, fixed_points, require_fixed
from fanin.theory.gaussian import moments
from fanin.theory.maps import (
    NEUTRAL,
    chi,
    correlation_map_slope,
    slope_correlation,
    variance_map_slope,
)


@dataclass(frozen=True)
class DepthScales:
    """Depth scales of a layer at a fixed point of its variance map, in layers.

    Attributes:
        variance: xi_q, over which a wrong second moment is forgotten.
        correlation: xi_c, over which the difference between two inputs is lost.
        gradient: xi_grad, over which squared gradients shrink by e; negative if they grow.
        fixed_correlation: c*, the correlation that pairs of inputs approach.
        chi: growth of squared gradients per layer.
        q: the fixed point.
    """

    variance: float
    correlation: float
    gradient: float
    fixed_correlation: float
    chi: float
    q: float


def depth_scales(
    f: Any, sigma_w2: float, sigma_b2: float = 0.0, *, q: float | None = None
) -> DepthScales:
    """Compute the depth scales at a fixed point.

    *Definition*: `xi_q = -1/ln(dq'/dq)`, `xi_c = -1/ln(dc'/dc at c*)`, `xi_grad = -1/ln(chi)`. A
    slope of 1 gives an infinite scale, a slope of 0 or below gives 0: the deviation does not
    decay smoothly.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.
        q: the fixed point; by default the stable one of `fixed_points`.

    Returns:
        The scales, in layers.

    *Accuracy*: 1e-6 relative.

    Raises:
        NoSolutionError: there is no stable fixed point, or several, and q is not given.

    Example:
        >>> scales = depth_scales("tanh", 2.0, 0.05)
        >>> round(scales.correlation, 3), round(scales.variance, 3)
        (25.213, 1.388)

    Reference: Schoenholz et al. 2017 (arXiv:1611.01232), eqs. (7), (9) and (15).
    """
    if q is None:
        q = _stable(f, sigma_w2, sigma_b2)
    require_fixed(f, q, sigma_w2, sigma_b2)
    c = fixed_correlation(f, q, sigma_w2, sigma_b2)
    backward = chi(f, q, sigma_w2)
    slope = backward if c == 1.0 else correlation_map_slope(f, c, q, sigma_w2, sigma_b2)
    return DepthScales(
        variance=_scale(variance_map_slope(f, q, sigma_w2)),
        correlation=_scale(slope),
        gradient=_scale(backward),
        fixed_correlation=c,
        chi=backward,
        q=q,
    )


@dataclass(frozen=True)
class DecayLaw:
    """A deviation that shrinks as `amplitude * layers**-exponent`.

    Attributes:
        amplitude: the factor, without unit.
        exponent: the power of the depth.
    """

    amplitude: float
    exponent: float

    def __call__(self, layers: float) -> float:
        """The deviation after that many layers."""
        return float(self.amplitude * layers**-self.exponent)


def correlation_decay(f: Any, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> DecayLaw:
    """The law by which `1 - c` shrinks at the edge of chaos, where chi = 1.

    *Definition*: without kinks `C(c) = c + k (1-c)^2 / 2` with `k = sigma_w2 q E[f''^2]`, so that
    `1 - c_l -> (2/k) / l`. A kink of slope jump d at x adds `(2/3) B (1-c)^(3/2)` with
    `B = sigma_w2 sqrt(q/pi) sum d^2 p(x)`, p the density of N(0, q), so that `1 - c_l -> (3/B)^2
    / l^2`.

    Args:
        f: an activation, in any form that `fanin.activation` takes.
        q: a fixed point of the variance map at which chi = 1.
        sigma_w2: fan_in times the weight variance, > 0.
        sigma_b2: bias variance, >= 0.

    Returns:
        The law, exact for l to infinity.

    *Accuracy*: 1e-6 relative in the amplitude.

    Raises:
        ArgumentError: q is no fixed point, chi is not 1, or f is affine: nothing decays as a power.

    Example:
        >>> law = correlation_decay("relu", 1.0, 2.0)
        >>> round(law.amplitude / math.pi**2, 6), law.exponent  # 9 pi^2 / 2
        (4.5, 2.0)

    Reference: Hayou et al. 2019 (arXiv:1902.06853), propositions 2 and 3.
    """
    require_fixed(f, q, sigma_w2, sigma_b2)
    backward = chi(f, q, sigma_w2)
    if abs(backward - 1) > 1e-4:
        raise ArgumentError(
            "sigma_w2",
            expected="a point on the edge of chaos (chi = 1)",
            got=f"chi = {backward:.6g}",
            fix="take the point from edge_of_chaos(f, sigma_b2)",
        )
    kink = _kink_strength(f, q, sigma_w2)
    if kink > 0:
        return DecayLaw((3 / kink) ** 2, 2.0)
    curvature = _correlation_curvature(f, q, sigma_w2)
    if curvature < 1e-9:
        raise ArgumentError("f", expected="a nonlinear activation", got="an affine one")
    return DecayLaw(2 / curvature, 1.0)


def _stable(f: Any, sigma_w2: float, sigma_b2: float) -> float:
    """The one positive stable fixed point."""
    found = fixed_points(f, sigma_w2, sigma_b2)
    stable = [p.variance for p in found if p.stability == "stable" and p.variance > 0]
    if len(stable) == 1:
        return stable[0]
    what = "no" if not stable else f"{len(stable)}"
    raise NoSolutionError(
        f"depth_scales({activation(f).name})",
        expected="one stable fixed point of the variance map",
        got=f"{what} in [{found.searched[0]:g}, {found.searched[1]:g}]",
        fix="pass q, one of fixed_points(f, sigma_w2, sigma_b2)",
    )


def _scale(slope: float) -> float:
    """-1/ln(slope), infinite at slope 1 and 0 where nothing decays smoothly."""
    if abs(slope - 1) < NEUTRAL:
        return math.inf
    return -1 / math.log(slope) if slope > 0 else 0.0


def _kink_strength(f: Any, q: float, sigma_w2: float) -> float:
    """The coefficient B of `correlation_decay`."""
    act = activation(f)
    total = 0.0
    for point in act.breakpoints:
        density = math.exp(-(point.location**2) / (2 * q)) / math.sqrt(2 * math.pi * q)
        total += point.change**2 * density
    return sigma_w2 * math.sqrt(q / math.pi) * total


def _correlation_curvature(f: Any, q: float, sigma_w2: float) -> float:
    """C''(1) = sigma_w2 q E[f''^2], as the limit of a difference quotient of the slope."""
    act = activation(f)
    top = float(moments(act, 0.0, q).derivative_second_moment)
    steps = [2.0**-k for k in (5, 6, 7, 8, 9)]
    row = [sigma_w2 * (top - slope_correlation(act, 1 - h, q)) / h for h in steps]
    for power in range(1, len(steps)):  # Richardson: the error is a power series in h
        row = [(2**power * b - a) / (2**power - 1) for a, b in pairwise(row)]
    return row[0]
