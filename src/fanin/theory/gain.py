"""One number for one activation, with what it keeps, whether it holds, and what to do instead."""

from __future__ import annotations

import math
from typing import Any

from fanin.theory import rules
from fanin.theory.activation import activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import LayerRule

_NOTICEABLE = 0.1  # a factor per layer this far from 1 matters within ten layers


class Gain(float):
    """A gain that explains itself; as a float it is `std * sqrt(fan)` of the weights.

    Attributes:
        rule: name of the rule it comes from.
        layer: the whole rule, a `LayerRule`; its `fan` says which fan is meant.
        forward: `1/sqrt(E[f(Z)^2])`, keeps the second moment.
        centred: `1/std[f(Z)]`, keeps the variance when the mean of f is removed.
        backward: `1/sqrt(E[f'(Z)^2])`, keeps squared gradients; 0 if f jumps.
        mean: `E[f(Z)]`. These four describe f at Z ~ N(0, 1), whatever the rule.
        slope: derivative of the variance map at the operating point of the rule.
        stable: True if that point attracts, False if it repels or is no fixed point, None if it is
            neutral: every variance is kept, as with ReLU.
        chi: growth of squared gradients per layer there.
        advice: what to do with it, in one sentence.
    """

    rule: str
    layer: LayerRule
    forward: float
    centred: float
    backward: float
    mean: float
    slope: float
    stable: bool | None
    chi: float
    advice: str

    def __new__(cls, value: float, **facts: Any) -> Gain:
        made = super().__new__(cls, value)
        made.__dict__.update(facts)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (float(self), self.__dict__)

    def __repr__(self) -> str:
        return float.__repr__(self)

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __str__(self) -> str:
        return self.explain()

    def explain(self) -> str:
        """The gain with everything it carries, in a few lines."""
        verdict = {True: "attracts", False: "does not hold", None: "neutral"}[self.stable]
        mean, variance = self.layer.operating_point
        lines = [
            f"gain {float(self):.9g} for {self.layer.activation} by rule '{self.rule}'"
            f" (std = gain / sqrt({self.layer.fan}))",
            f"  forward   {self.forward:.9g}   keeps E[y^2] at N(0, 1)",
            f"  centred   {self.centred:.9g}   keeps it with the mean {self.mean:.6g} removed",
            f"  backward  {self.backward:.9g}   keeps squared gradients",
            f"  at        mean {mean:.6g}, variance {variance:.6g}: {verdict},"
            f" slope {self.slope:.6g}, chi {self.chi:.6g}",
        ]
        lines += [f"  note      {note}" for note in self.layer.notes]
        return "\n".join([*lines, f"  advice    {self.advice}"])

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        mean, variance = self.layer.operating_point
        return {
            "activation": self.layer.activation,
            "rule": self.rule,
            "gain": float(self),
            "forward": self.forward,
            "centred": self.centred,
            "backward": self.backward,
            "mean": self.mean,
            "slope": self.slope,
            "stable": self.stable,
            "chi": self.chi if math.isfinite(self.chi) else None,
            "weight_variance_times_fan_in": self.layer.weight_variance_times_fan_in,
            "fan": self.layer.fan,
            "bias": self.layer.bias,
            "centre": self.layer.centre,
            "bias_variance": self.layer.bias_variance,
            "operating_point": {"mean": mean, "variance": variance},
            "notes": list(self.layer.notes),
            "advice": self.advice,
        }


def gain(f: Any, rule: str = "second_moment", **parameters: Any) -> Gain:
    """The factor that multiplies `1/sqrt(fan)` to give the standard deviation of the weights.

    *Definition*: `gain = sqrt(weight_variance_times_fan_in)` of the rule; for the default rule
    `1/sqrt(E[f(Z)^2])`, Z ~ N(0, 1).

    Args:
        f: a name, a Python callable on NumPy, torch or JAX values, a module, or an `Activation`.
        rule: one of `fanin.theory.rules.names()`.
        parameters: passed to the rule, such as `depth=50` for `shaped`.

    Returns:
        A float with attributes, see `Gain`.

    *Accuracy*: 1e-12 relative for named activations.

    Raises:
        UnknownNameError: the activation or the rule is not known; near names are listed.
        NotCoveredError: the rule does not cover f; one that does is named.

    Example:
        >>> g = gain("gelu")
        >>> round(g, 6), round(g.slope, 3), g.stable
        (1.53353, 1.144, False)
        >>> gain("sigmoid").advice
        "Inputs become alike (chi = 0.153), because f has a mean: use rule 'centred' or 'shaped'."
    """
    act = activation(f)
    layer = rules.applied(rule, act, parameters)
    unit = moments(act, 0.0, 1.0)
    return Gain(
        math.sqrt(layer.weight_variance_times_fan_in),
        rule=rule,
        layer=layer,
        forward=_inverse_root(unit.second_moment),
        centred=_inverse_root(unit.variance),
        backward=0.0 if act.has_jumps else _inverse_root(unit.derivative_second_moment),
        mean=float(unit.mean),
        slope=layer.slope,
        stable=layer.stable,
        chi=layer.chi,
        advice=_advice(layer),
    )


def _restore(value: float, facts: dict[str, Any]) -> Gain:
    """Unpickle a gain."""
    return Gain(value, **facts)


def _inverse_root(value: float) -> float:
    """1/sqrt, infinite at 0."""
    return 1 / math.sqrt(value) if value > 0 else math.inf


def _advice(layer: LayerRule) -> str:
    """What the maps at the operating point say about using the rule."""
    if layer.rule == "shaped":
        return "Use it, weights and biases, in every layer of a plain network of this depth."
    if math.isinf(layer.chi):
        return "f jumps: no scale of the weights keeps gradients, and near inputs part at once."
    if not layer.is_fixed_point:
        return (
            f"The variance does not stay at {layer.operating_point.variance:.4g}, a layer makes it "
            f"{layer.returned_variance:.4g}: use rule 'second_moment' or 'shaped'."
        )
    if layer.stable is False:
        return (
            f"The fixed point repels: a deviation of the variance grows by {abs(layer.slope):.3f} "
            f"a layer, {_tenfold(layer.slope)}; in deep plain networks use rule 'shaped'."
        )
    if layer.chi < 1 - _NOTICEABLE:
        has_mean = layer.centre == 0 and abs(layer.moments.mean) > 1e-3
        why = ", because f has a mean" if has_mean else ""
        return f"Inputs become alike (chi = {layer.chi:.3f}){why}: use rule 'centred' or 'shaped'."
    if layer.chi > 1 + _NOTICEABLE:
        return (
            f"Squared gradients grow by {layer.chi:.3f} a layer, {_tenfold(layer.chi)}; "
            "in deep plain networks use rule 'shaped'."
        )
    hold = "Signal and gradient hold"
    if layer.stable is None:
        hold = "Signal and gradient hold, but nothing pulls the variance back"
    return (
        f"{hold}; in deep plain networks inputs still drift together or apart: use rule 'shaped'."
    )


def _tenfold(factor: float) -> str:
    """After how many layers a growth per layer makes a factor of 10."""
    layers = math.ceil(math.log(10) / math.log(abs(factor)))
    return f"tenfold in {layers} layer{'s' if layers > 1 else ''}"
