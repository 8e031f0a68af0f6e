"""The one value that every rule returns: what a layer's weights and biases should be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fanin.errors import ArgumentError
from fanin.theory.activation import Activation
from fanin.theory.fixed import settling_variance
from fanin.theory.gaussian import Moments, hermite_coefficients, moments
from fanin.theory.maps import NEUTRAL

Fan = Literal["fan_in", "fan_avg", "fan_out"]
Role = Literal["hidden", "first", "last"]


class OperatingPoint(NamedTuple):
    """Mean and variance of the pre-activation that a rule aims at."""

    mean: float
    variance: float


@dataclass(frozen=True)
class LayerRule:
    """The layer that reads f's output and writes f's next pre-activation.

    *Definition*: with N the fan, `Var(W_ij) = weight_variance_times_fan_in / N` and
    `b_i = bias - centre * sum_j W_ij + N(0, bias_variance)`.

    Attributes:
        rule: name of the rule.
        activation: name of the activation.
        weight_variance_times_fan_in: sigma_w^2, the weight variance times the fan.
        bias: beta, the constant part of every bias.
        centre: m, the mean of f that the bias takes out; 0 if the rule does not centre.
        bias_variance: sigma_b^2, the variance of the random part of the bias.
        fan: what N is: `fan_in`, `fan_out`, or `fan_avg`, their mean.
        operating_point: mean and variance of the pre-activations at which moments are taken.
        moments: of f at the operating point; for `first()` the moments of the input are not known
            and these stay those of f.
        slope: derivative of the variance map of this layer at the operating point, its centre held
            fixed; below 1 the operating point attracts.
        chi: growth of squared gradients per layer, `sigma_w^2 E[f'^2]`; infinite if f jumps.
        returned_variance: what the layer makes of the operating variance.
        role: `hidden`, `first` or `last`.
        first_variance: sigma_w^2 of the layer that reads the network's input.
        last_variance: sigma_w^2 of the linear output layer.
        exactness: how the weight variance was obtained: `closed form` or `quadrature`.
        notes: what to know before using it, one sentence each.
    """

    rule: str
    activation: str
    weight_variance_times_fan_in: float
    operating_point: OperatingPoint
    moments: Moments
    slope: float
    chi: float
    returned_variance: float
    first_variance: float
    last_variance: float
    bias: float = 0.0
    centre: float = 0.0
    bias_variance: float = 0.0
    fan: Fan = "fan_in"
    role: Role = "hidden"
    exactness: str = "quadrature"
    notes: tuple[str, ...] = ()

    @property
    def is_fixed_point(self) -> bool:
        """Whether the layer gives the operating variance back."""
        return abs(self.returned_variance / self.operating_point.variance - 1) < 1e-8

    @property
    def stable(self) -> bool | None:
        """True: the operating variance attracts. False: it repels, or is no fixed point.

        None: it is neutral to first order, as every variance is for ReLU.
        """
        if not self.is_fixed_point:
            return False
        return None if abs(abs(self.slope) - 1) <= NEUTRAL else abs(self.slope) < 1

    def std(self, fan_in: int, fan_out: int | None = None) -> float:
        """The standard deviation of the weights of one layer.

        Args:
            fan_in: number of inputs of a unit, at least 1.
            fan_out: number of units that read an input; needed by rules that average the fans.

        Example:
            >>> from fanin.theory import rules
            >>> rules.get("he")("relu").std(fan_in=8)
            0.5
        """
        fans = {"fan_in": fan_in, "fan_out": fan_out}
        if self.fan == "fan_in":
            del fans["fan_out"]
        elif self.fan == "fan_out":
            del fans["fan_in"]
        for name, value in fans.items():
            if value is None or not value >= 1:
                raise ArgumentError(
                    f"std({name})",
                    expected=f"a number of at least 1, because rule '{self.rule}' uses {self.fan}",
                    got=repr(value),
                )
        known = [value for value in fans.values() if value is not None]
        return math.sqrt(self.weight_variance_times_fan_in * len(known) / sum(known))

    def __str__(self) -> str:
        mean, variance = self.operating_point
        layer = "" if self.role == "hidden" else f", {self.role} layer"
        lines = [
            f"{self.rule} for {self.activation}{layer}",
            f"  weights   variance {self.weight_variance_times_fan_in:.9g} / {self.fan}",
            f"  bias      {self._bias_in_words()}",
            f"  signal    pre-activation of mean {mean:.6g}, variance {variance:.6g}",
            f"  maps      variance slope {self.slope:.6g}, gradient chi {self.chi:.6g}",
        ]
        return "\n".join(lines + [f"  note      {note}" for note in self.notes])

    def _bias_in_words(self) -> str:
        """beta - m * row sum + noise, without the terms that are 0."""
        parts = [f"{self.bias:.9g}"] if self.bias else []
        parts += [f"-{self.centre:.9g} * row sum of the weights"] if self.centre else []
        parts += [f"N(0, {self.bias_variance:.9g})"] if self.bias_variance else []
        return " + ".join(parts).replace("+ -", "- ") or "0"

    def first(self) -> LayerRule:
        """The layer that reads the network's input, of mean square 1."""
        return replace(
            self, role="first", weight_variance_times_fan_in=self.first_variance, centre=0.0
        )

    def last(self) -> LayerRule:
        """The linear output layer, which has no operating point to reach: bias and noise are 0."""
        return replace(
            self,
            role="last",
            weight_variance_times_fan_in=self.last_variance,
            bias=0.0,
            bias_variance=0.0,
        )


def deviation_slope(
    act: Activation, m: Moments, mean: float, variance: float, centre: float
) -> float:
    """The derivative of E[(f - centre)^2] by the variance, E[f'^2 + (f - centre) f''].

    E[f''] is the second Hermite coefficient, which also counts kinks.
    """
    bend = 0.0
    if centre != 0:
        second = hermite_coefficients(act, 2, mean, variance)[2]
        bend = math.sqrt(2.0) * float(second) / variance
    return float(m.derivative_second_moment + m.curvature) - centre * bend


def layer_rule(
    rule: str,
    act: Activation,
    weight: float,
    *,
    mean: float = 0.0,
    variance: float | None = None,
    centre: float = 0.0,
    bias_variance: float = 0.0,
    every_layer: bool = False,
    fan: Fan = "fan_in",
    exactness: str | None = None,
    notes: tuple[str, ...] = (),
) -> LayerRule:
    """Fill in what follows from the weight variance and the operating point.

    Rules that fix the weight variance alone (`every_layer`) leave `variance` out: the operating
    point is then where the variance settles, or 1 with a note where it settles nowhere.
    """
    if variance is None:
        settled = settling_variance(act, weight, bias_variance)
        variance = 1.0 if settled is None else settled
    m = moments(act, mean, variance)
    received = float(m.second_moment) - centre * (2 * float(m.mean) - centre)
    returned = weight * received + bias_variance
    result = LayerRule(
        rule=rule,
        activation=act.name,
        weight_variance_times_fan_in=weight,
        operating_point=OperatingPoint(mean, variance),
        moments=m,
        slope=weight * deviation_slope(act, m, mean, variance, centre),
        chi=math.inf if act.has_jumps else weight * float(m.derivative_second_moment),
        returned_variance=returned,
        first_variance=weight if every_layer else variance - bias_variance,
        last_variance=weight if every_layer else 1 / received,
        bias=mean,
        centre=centre,
        bias_variance=bias_variance,
        fan=fan,
        exactness=exactness or m.variance.how,
        notes=notes,
    )
    if result.is_fixed_point:
        return result
    drift = f"A layer turns the variance {variance:.6g} into {returned:.6g}."
    return replace(result, notes=(*notes, drift))
