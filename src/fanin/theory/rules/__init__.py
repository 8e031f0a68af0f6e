"""From an activation to a layer's weights and biases: one function a rule, one value for all."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from fanin.errors import UnknownNameError
from fanin.theory.rules.classical import he, lecun, xavier
from fanin.theory.rules.critical import critical
from fanin.theory.rules.kumar import kumar
from fanin.theory.rules.layer import LayerRule, OperatingPoint
from fanin.theory.rules.moment import backward, centred, second_moment
from fanin.theory.rules.shaped import shaped

__all__ = [
    "LayerRule",
    "OperatingPoint",
    "backward",
    "centred",
    "critical",
    "get",
    "he",
    "kumar",
    "lecun",
    "names",
    "second_moment",
    "shaped",
    "xavier",
]

Rule = Callable[..., LayerRule]

_RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (kumar, lecun, xavier, he, second_moment, backward, centred, critical, shaped)
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
