"""What a rule does to a stretch of some depth: signal, gradient, distance of inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fanin.theory.activation import Activation
from fanin.theory.gaussian import hermite_coefficients
from fanin.theory.rules import LayerRule
from fanin.theory.rules.mirrored import odd_part

GROWTH = 2.0
"""Signal and squared gradients of a stretch may grow or shrink by this factor."""
DISTANCE = 0.25
"""Of two independent inputs at least this share of the squared distance must be left."""
_ORDER = 64  # Hermite coefficients of an activation


@dataclass(frozen=True)
class Verdict:
    """What a rule does to a stretch of this depth.

    Args:
        signal: growth of a deviation of the second moment.
        gradient: growth of squared gradients.
        distance: what is left of the squared distance of two independent inputs, of 1.
    """

    signal: float
    gradient: float
    distance: float

    @property
    def holds(self) -> bool:
        """Whether all three are kept."""
        calm = self.signal <= GROWTH and 1 / GROWTH <= self.gradient <= GROWTH
        return calm and self.distance >= DISTANCE

    def __str__(self) -> str:
        return (
            f"signal x{self.signal:.3g}, gradient x{self.gradient:.3g}, "
            f"{self.distance:.0%} of the distance of inputs"
        )


def judge(rule: LayerRule, act: Activation, depth: float) -> Verdict:
    """What `depth` layers of a rule do: growth by its slopes, distance by its correlation map.

    *Definition*: with normalised Hermite coefficients a_k of f at the operating point the
    correlation map is C(c) = sum a_k^2 c^k / sum a_k^2, the sums from k = 1 where the rule centres
    and from k = 0 where it does not; mirrored pairs have the coefficients of their odd part.
    Distance is 1 - C applied `depth` times to 0.

    Example:
        >>> from fanin.theory import rules
        >>> from fanin.theory.activation import activation
        >>> judge(rules.get("he")("relu"), activation("relu"), 1).distance > 0.6
        True
    """
    mean, variance = rule.operating_point
    second = float(rule.moments.second_moment)
    if rule.rule == "mirrored":
        act, mean, second = odd_part(act, mean), 0.0, 1 / (2 * rule.last_variance)
    powers = hermite_coefficients(act, _ORDER, mean, variance) ** 2
    tail = max(second - powers.sum(), 0.0)
    if rule.centre:
        powers[0] = 0.0
    total, correlation = powers.sum() + tail, 0.0
    for _ in range(math.ceil(depth)):
        correlation = float(np.polynomial.polynomial.polyval(correlation, powers) / total)
    return Verdict(float(abs(rule.slope) ** depth), float(rule.chi**depth), 1.0 - correlation)
