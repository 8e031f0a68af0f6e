"""From what a user writes as a rule to a method: names, recipes, distributions, patterns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError, PlanError, UnknownNameError
from fanin.planning import recipes
from fanin.planning.auto import Auto
from fanin.planning.choice import Choice, Draws, Fixed, Keep, Method
from fanin.planning.names import matches, near
from fanin.planning.plan import Mirrored, Stack, Stretch
from fanin.planning.roles import Scene, Weight
from fanin.planning.ruled import LITERAL, Literal
from fanin.planning.store import values_from_dict
from fanin.theory import rules

_SPECIAL = ("auto", "keep")


def names() -> tuple[str, ...]:
    """Every name that `rule=` takes: rules of the theory, recipes, `auto` and `keep`.

    Example:
        >>> "gpt2" in names() and "shaped" in names()
        True
    """
    return (*_SPECIAL, *rules.names(), *recipes.names())


def method(rule: object, paths: Sequence[str] = ()) -> Method:
    """The method that a rule stands for.

    Args:
        rule: a name; a distribution or a number; a recipe, or a callable without arguments that
            makes one (such as a `functools.partial`); a mapping with the key `recipe`, `rule` or
            `kind` and parameters (a rule's own, and `draws`: "normal" or "orthogonal"); or an
            ordered mapping of patterns to any of these, in which the first match wins.
        paths: the names that patterns must match.

    Raises:
        UnknownNameError: an unknown name; near ones are listed.
        PlanError: a parameter that the recipe does not have, a pattern that matches nothing or is
            never reached.
        ArgumentTypeError: something else.

    Example:
        >>> method({"recipe": "gpt2", "std": 0.01}).name
        'gpt2(std=0.01)'
    """
    if isinstance(rule, str):
        return _by_name(rule, {})
    if isinstance(rule, Stack | Mirrored | draw.Distribution):
        return Fixed(rule)
    if isinstance(rule, int | float) and not isinstance(rule, bool):
        return Fixed(draw.Constant(float(rule)))
    if isinstance(rule, Mapping):
        return _from_mapping(rule, paths)
    if hasattr(rule, "choose") and hasattr(rule, "prepare") and not isinstance(rule, type):
        return rule  # type: ignore[return-value]
    if callable(rule):
        return method(_called(rule), paths)
    raise ArgumentTypeError(
        "rule",
        expected="a name, a distribution, a recipe, or a mapping of patterns to these",
        got=repr(rule),
    )


def _called(rule: Callable[[], Any]) -> Any:
    """What a callable without arguments makes."""
    try:
        return rule()
    except TypeError as error:
        raise ArgumentTypeError(
            "rule",
            expected="a name, a distribution, a recipe, or what makes one when called without "
            "arguments",
            got=f"{getattr(rule, '__name__', rule)!r}: {error}",
            fix="give a distribution such as fanin.draw.Normal(0, std), or a rule's name",
        ) from error


def _by_name(name: str, parameters: Mapping[str, Any]) -> Method:
    """A rule or recipe with parameters."""
    if name in recipes.names():
        return recipes.get(name, parameters)
    if name == "keep" and not parameters:
        return Keep()
    if name in LITERAL:
        return Literal(name, dict(parameters))
    if name in ("auto", *rules.names()):
        draws = parameters.get("draws")
        if draws not in (None, *get_args(Draws)):
            raise ArgumentError(
                "rule draws", expected=f"one of {', '.join(get_args(Draws))}", got=repr(draws)
            )
        return Auto(name, {k: v for k, v in parameters.items() if k != "draws"}, draws)
    listed = difflib.get_close_matches(name, names(), n=3) or names()
    raise UnknownNameError(
        "rule",
        expected="the name of a rule or recipe",
        got=repr(name),
        fix=f"try {', '.join(map(repr, listed))}",
    )


def _from_mapping(rule: Mapping[Any, Any], paths: Sequence[str]) -> Method:
    """One rule with parameters, a distribution by its kind, or patterns."""
    if not rule or not all(isinstance(key, str) for key in rule):
        raise ArgumentTypeError("rule", expected="a mapping with text as keys", got=repr(rule))
    for key in ("recipe", "rule"):
        if key in rule:
            return _by_name(str(rule[key]), {k: v for k, v in rule.items() if k != key})
    if "kind" in rule:
        return Fixed(values_from_dict(rule, "rule"))
    return Patterns.of({pattern: method(inner, paths) for pattern, inner in rule.items()}, paths)


@dataclass(frozen=True)
class Patterns:
    """Methods by pattern: the first whose pattern matches a tensor's name decides for it.

    Args:
        methods: pairs of a glob pattern and its method, in order.
    """

    methods: tuple[tuple[str, Method], ...]

    @classmethod
    def of(cls, methods: Mapping[str, Method], paths: Sequence[str]) -> Patterns:
        """The patterns, each of which must decide for one of the paths at least."""
        taken: dict[str, str] = {}
        for pattern in methods:
            found = [path for path in paths if matches(pattern, [path])]
            if not found and paths:
                raise PlanError(
                    f"rule {pattern!r}",
                    expected="a pattern that matches",
                    got=f"0 of {len(paths)} tensors",
                    fix=near(pattern, paths),
                )
            fresh = [path for path in found if path not in taken]
            if found and not fresh:
                raise PlanError(
                    f"rule {pattern!r}",
                    expected="a pattern that is reached",
                    got=f"all {len(found)} of its tensors taken by {taken[found[0]]!r}",
                    fix="put the narrower pattern first",
                )
            taken.update(dict.fromkeys(fresh, pattern))
        return cls(tuple(methods.items()))

    @property
    def name(self) -> str:
        """The patterns with their methods."""
        inside = ", ".join(f"{pattern!r}: {inner.name}" for pattern, inner in self.methods)
        return f"{{{inside}}}"

    @cached_property
    def needs_signal(self) -> bool:
        """Whether one of the methods does."""
        return any(inner.needs_signal for _, inner in self.methods)

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """What the methods decided for stretches with tensors of their own."""
        undrawn, found = set(scene.elsewhere), []
        for _, inner in self.methods:
            others = {p for p, w in scene.weights.items() if self._decider(w) is not inner}
            scene.elsewhere.update(others)
            found += [
                stretch
                for stretch in inner.prepare(scene)
                if any(self._decider(scene.weights[p]) is inner for p in stretch.weights)
            ]
            scene.elsewhere.intersection_update(undrawn)
        return tuple(found)

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """The choice of the first method whose pattern matches."""
        inner = self._decider(weight)
        if inner is None:
            return Choice("left alone", "no pattern matches")
        return inner.choose(weight, scene)

    def _decider(self, weight: Weight) -> Method | None:
        """The method that decides for a tensor."""
        every = (weight.path, *weight.names)
        return next((m for pattern, m in self.methods if matches(pattern, every)), None)


Rule = str | float | draw.Distribution | Method | Mapping[str, Any] | Callable[[], Any]
