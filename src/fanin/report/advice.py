"""What to do, in the words of the library: the gain that the activation needs, and who sets it."""

from __future__ import annotations

import functools
import statistics

from fanin.errors import FaninError
from fanin.report.view import View

COLLAPSING = ("sigmoid", "softplus", "hardsigmoid")
"""Activations whose mean outweighs what differs between inputs: only a centred rule helps."""
TORCH_DEFAULT = 3**-0.5
"""std * sqrt(fan_in) of `kaiming_uniform_(a=sqrt(5))`, the default of linear layers."""


@functools.lru_cache(maxsize=64)
def needed_gain(activation: str, rule: str = "second_moment") -> float | None:
    """The gain that a rule gives this activation, or None where it has none."""
    from fanin.theory.gain import gain

    try:
        return float(gain(activation, rule))
    except FaninError:
        return None


def weights_sentence(view: View) -> str:
    """What gain the weights have and what the activation needs, as the end of a sentence."""
    gains = [g for g in (view.gain(row) for row in view.trunk) if g]
    if not gains:
        return ""
    typical = statistics.median(gains)
    text = f"; the weights have gain {typical:.3g} (std * sqrt(fan_in))"
    if abs(typical / TORCH_DEFAULT - 1) < 0.05:
        text += ", torch's default"
    rule = "centred" if view.activations in COLLAPSING else "second_moment"
    needed = needed_gain(view.activations, rule) if view.activations else None
    if needed:
        text += f", where {view.activations} needs {needed:.3g}"
        text += " and its mean removed" if rule == "centred" else ""
    return text


def parameter(name: str) -> str:
    """Code that reaches a parameter of `model` by its name."""
    dotted = all(part.isidentifier() for part in name.split("."))
    return f"model.{name}" if dotted else f'model.get_parameter("{name}")'


def gain_advice(view: View, centred: bool = False) -> str:
    """Code that mends the scale of the whole model."""
    rule = "centred" if centred or view.activations in COLLAPSING else "second_moment"
    needed = needed_gain(view.activations, rule) if view.activations else None
    if needed is None:
        return "fanin.init_(model, inputs)"
    name = f'"{view.activations}"' + ("" if rule == "second_moment" else f', "{rule}"')
    return f"fanin.init_(model, inputs)  # or by hand: gain fanin.gain({name}) = {needed:.4g}"
