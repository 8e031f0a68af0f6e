"""What the initializers share: which weights a target has, which seed, which distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import nn

from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError, NotCoveredError
from fanin.planning.fans import Fans, Part
from fanin.theory import rules
from fanin.torch.fans import Layout, fan, fans
from fanin.torch.slots import refuse, writable
from fanin.torch.writing.seeds import seed_from
from fanin.torch.writing.write import write_

Target = TypeVar("Target", torch.Tensor, nn.Module)
P = ParamSpec("P")
R = TypeVar("R")
Nonlinearity = str | Callable[..., Any]
Scale = Callable[[Part], float]
Make = Callable[[float], draw.Distribution]

LINEAR = ("linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)))
"""What `torch.nn.init` takes for "no activation"."""


class Initializer(Generic[P, R]):
    """An initializer: a function that runs without gradients and prints as its dotted name."""

    def __init__(self, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._name = function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad():
            return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"fanin.torch.init.{self._name}"

    def __reduce__(self) -> str:
        return self._name  # pickled by reference, as a function is


def fill(
    where: str, target: Target, distribution: draw.Distribution, generator: torch.Generator | None
) -> Target:
    """One distribution for the tensor, or for every weight of the layer."""
    names = _weights(where, target, fans(target)) if isinstance(target, nn.Module) else []
    tensor = target if isinstance(target, nn.Module) else refuse(where, target)
    seed = 0 if isinstance(distribution, draw.Constant) else seed_from(generator)
    if isinstance(tensor, torch.Tensor):
        write_(tensor, distribution, seed=seed, name="")
    for name in names:
        assert isinstance(target, nn.Module)
        with writable(target, name) as tensor:
            write_(tensor, distribution, seed=seed, name=name)
    return target


def fill_parts(
    where: str,
    target: Target,
    make: Callable[[Fans], Sequence[draw.Distribution]],
    generator: torch.Generator | None,
    layout: Layout,
) -> Target:
    """Each matrix of the tensor, or of every weight of the layer, by its own fans."""
    unknown = set(layout) - set(Layout.__annotations__)
    if unknown:
        raise ArgumentTypeError(
            where, expected=f"keywords {', '.join(Layout.__annotations__)}", got=sorted(unknown)[0]
        )
    if not isinstance(target, nn.Module):
        tensor = refuse(where, target)
        counted = fan(tensor, **layout)
        draw_parts(tensor, counted, make(counted), seed_from(generator), "")
        return target
    found = layer_fans(target, layout)
    _weights(where, target, found)
    seed = seed_from(generator)
    for name, counted in found.items():
        with writable(target, name) as tensor:
            draw_parts(tensor, counted, make(counted), seed, name)
    return target


def fill_scaled(
    where: str,
    target: Target,
    scale: Scale,
    make: Make,
    generator: torch.Generator | None,
    layout: Layout,
) -> Target:
    """Each matrix from a distribution with the standard deviation that its fans give."""

    def each(counted: Fans) -> list[draw.Distribution]:
        return [make(scale(part)) for part in counted.parts]

    return fill_parts(where, target, each, generator, layout)


def layer_fans(layer: nn.Module, layout: Layout) -> dict[str, Fans]:
    """The fans of a layer's weights; a layout declared for the only weight goes first."""
    found = fans(layer, size=layout.get("size"))
    if layout.get("axes") is None and layout.get("splits", 1) == 1:
        return found
    if len(found) > 1:
        raise ArgumentError(
            f"axes, splits of {type(layer).__name__}",
            expected="a layer with one weight",
            got=f"the weights {', '.join(found)}",
            fix="pass one of its tensors",
        )
    return {name: fan(layer, name, **layout) for name in found}


def normal(std: float) -> draw.Distribution:
    """A normal distribution of mean 0."""
    return draw.Normal(0.0, std)


def uniform(std: float) -> draw.Distribution:
    """A uniform distribution of mean 0 and this standard deviation."""
    return draw.Uniform(-math.sqrt(3) * std, math.sqrt(3) * std)


def fan_in_scale(gain: float) -> Scale:
    """gain / sqrt(fan_in)."""
    return lambda part: gain / math.sqrt(part.fan_in)


def fan_average_scale(gain: float) -> Scale:
    """gain * sqrt(2 / (fan_in + fan_out))."""
    return lambda part: gain * math.sqrt(2.0 / (part.fan_in + part.fan_out))


def kaiming_scale(a: float, mode: str, nonlinearity: Nonlinearity) -> Scale:
    """gain / sqrt(fan), forwards or backwards."""
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError("mode", expected="'fan_in' or 'fan_out'", got=repr(mode))
    gain = gain_for(nonlinearity, a, "second_moment" if mode == "fan_in" else "backward")
    return lambda part: gain / math.sqrt(getattr(part, mode))


def gain_for(nonlinearity: Nonlinearity, a: float, rule: str) -> float:
    """The gain of an activation as `torch.nn.init` names it, with its slope `a`."""
    if nonlinearity in LINEAR:
        return 1.0
    if nonlinearity == "leaky_relu":
        nonlinearity = f"leaky_relu({a})"
    elif a != 0:
        raise ArgumentError(
            "a", expected=f"0 with {nonlinearity}", got=str(a), fix="use 'leaky_relu'"
        )
    return math.sqrt(rules.get(rule)(nonlinearity).weight_variance_times_fan_in)


def _weights(where: str, layer: nn.Module, found: dict[str, Fans]) -> list[str]:
    """The names of the weights, once all of them can be written."""
    for name in found:
        with torch.enable_grad():
            value = functools.reduce(getattr, name.split("."), layer)
        assert isinstance(value, torch.Tensor)
        refuse(f"{where}({type(layer).__name__}.{name})", value.detach())
    return list(found)


def draw_parts(
    tensor: torch.Tensor,
    counted: Fans,
    distributions: Sequence[draw.Distribution],
    seed: int,
    name: str,
) -> None:
    """Draw the matrices of one tensor: at once where one distribution serves them all."""
    if all(d == distributions[0] for d in distributions):
        write_(tensor, distributions[0], seed=seed, name=name)
        return
    if type(tensor).__name__ == "DTensor":
        raise NotCoveredError(
            name or "tensor",
            expected="one distribution for all matrices of a sharded tensor",
            got=f"{len(distributions)} matrices that differ",
            fix="draw it before sharding",
        )
    for i, (part, distribution) in enumerate(zip(counted.parts, distributions, strict=True)):
        write_(tensor[part.index], distribution, seed=seed, name=f"{name}[{i}]")
