"""From an activation to a layer's weights and biases: one function a rule, one value for all."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fanin.errors import ArgumentTypeError, UnknownNameError
from fanin.theory.rules.classical import he, lecun, xavier
from fanin.theory.rules.critical import critical
from fanin.theory.rules.kumar import kumar
from fanin.theory.rules.layer import LayerRule, OperatingPoint
from fanin.theory.rules.mirrored import mirrored
from fanin.theory.rules.moment import backward, centred, second_moment
from fanin.theory.rules.shaped import shaped

__all__ = [
    "LayerRule",
    "OperatingPoint",
    "applied",
    "backward",
    "centred",
    "critical",
    "get",
    "he",
    "kumar",
    "lecun",
    "mirrored",
    "names",
    "second_moment",
    "shaped",
    "xavier",
]

Rule = Callable[..., LayerRule]

_RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(kumar, lecun, xavier, he, second_moment, backward, centred, critical, shaped),
        mirrored,
    )
}


def names() -> tuple[str, ...]:
    """The names of all rules, from the paper's own to the newest.

    Example:
        >>> names()[0]
        'kumar'
    """
    return tuple(_RULES)


def get(name: str) -> Rule:
    """The rule with a name.

    Args:
        name: one of `names()`.

    Raises:
        UnknownNameError: there is no such rule; near names are listed.

    Example:
        >>> get("he")("relu").weight_variance_times_fan_in
        2.0
    """
    if name in _RULES:
        return _RULES[name]
    near = difflib.get_close_matches(str(name), _RULES, n=3) or list(_RULES)
    listed = ", ".join(repr(rule) for rule in near)
    raise UnknownNameError("rule", expected="a known rule", got=repr(name), fix=f"try {listed}")


def applied(name: str, f: Any, parameters: Mapping[str, Any]) -> LayerRule:
    """The layer that a rule makes of an activation, with parameters that come from a user.

    Args:
        name: one of `names()`.
        f: an activation, in any form that `fanin.activation` takes.
        parameters: by name, as the rule's own function takes them.

    Raises:
        UnknownNameError: there is no such rule; near names are listed.
        ArgumentTypeError: a parameter is missing, or the rule has none of that name.

    Example:
        >>> applied("shaped", "relu", {"depth": 50}).rule
        'shaped'
    """
    rule = get(name)
    try:
        inspect.signature(rule).bind(f, **parameters)
    except TypeError:
        asked = list(inspect.signature(rule).parameters.values())[1:]
        takes = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in asked]
        raise ArgumentTypeError(
            f"rule {name!r}",
            expected=f"the parameters {', '.join(takes)}" if takes else "no parameters",
            got=", ".join(f"{k}={v!r}" for k, v in parameters.items()) or "none",
        ) from None
    return rule(f, **parameters)
