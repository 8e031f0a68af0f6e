"""What a method answers for one parameter, and the methods that need no theory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from fanin import draw
from fanin.planning.plan import LEFT_ALONE, Stretch, Values
from fanin.planning.roles import Scene, Weight

AS_ASKED = "as asked"
"""The reason of what a user says of a tensor by itself."""


@dataclass(frozen=True)
class Choice:
    """What one parameter gets.

    Args:
        rule: name of the rule.
        reason: why, in one line.
        values: what is drawn; None to leave it alone.
        exactness: how the numbers were obtained.
        bias: the constant of the layer's bias.
        bias_std: the standard deviation of the bias about that.
        centre: mean of what the layer reads, to be taken out by its bias.
        zero_sum: whether the weight takes it out instead, its inputs summing to zero at each tap.
        parts: how many inputs each part has, where parts of different means are read.
        means: the mean of each part.
        lr: factor on the learning rate.
    """

    rule: str
    reason: str
    values: Values | None = None
    exactness: str = "closed form"
    bias: float = 0.0
    bias_std: float = 0.0
    centre: float = 0.0
    zero_sum: bool = False
    parts: tuple[int, ...] = ()
    means: tuple[float, ...] = ()
    lr: float = 1.0

    @property
    def plain_bias(self) -> bool:
        """Whether the layer's bias is 0."""
        return self.bias == self.bias_std == self.centre == 0.0


class Method(Protocol):
    """A way to choose: a rule by name, a recipe, patterns of them."""

    @property
    def name(self) -> str:
        """How it prints, such as "gpt2(std=0.02)"."""

    @property
    def needs_signal(self) -> bool:
        """Whether `choose` asks what a weight reads."""

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Look at the whole network first; what was decided for whole stretches."""

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """The choice for one parameter; None where the method says nothing of it."""


@dataclass(frozen=True)
class Fixed:
    """One distribution, whatever the parameter does."""

    values: Values
    needs_signal: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """The distribution."""
        return repr(self.values)

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Nothing to look at."""
        return ()

    def choose(self, weight: Weight, scene: Scene) -> Choice:
        """The distribution."""
        return Choice("given", AS_ASKED, self.values)


@dataclass(frozen=True)
class Keep:
    """Leave alone."""

    name: str = "keep"
    needs_signal: bool = field(default=False, init=False)

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Nothing to look at."""
        return ()

    def choose(self, weight: Weight, scene: Scene) -> Choice:
        """No values."""
        return Choice(LEFT_ALONE, AS_ASKED)


def normal(std: float) -> draw.Normal:
    """N(0, std^2)."""
    return draw.Normal(0.0, std)


def uniform(std: float) -> draw.Uniform:
    """The uniform distribution of mean 0 with this standard deviation."""
    return draw.Uniform(-math.sqrt(3) * std, math.sqrt(3) * std)


def centre_stays_inside(weight: Weight, scene: Scene) -> bool:
    """Whether the centre tap of a kernel reads the map at every position, and never its padding.

    A kernel of that tap alone (delta-orthogonal) then does at borders what it does elsewhere.
    """
    use = weight.use
    if use is None or use.data is None or use.node.name != "convolution" or len(weight.shape) < 3:
        return False
    node, taps = use.node, weight.shape[2:]
    if node["transposed"]:
        return False
    sizes = zip(
        scene.graph.values[use.data].shape[2:],
        scene.graph.values[use.output].shape[2:],
        strict=True,
    )
    rank = len(taps)
    geometry = zip(*(_each(node[k], rank) for k in ("stride", "dilation", "padding")), strict=True)
    for k, (size, made), (stride, dilation, padding) in zip(taps, sizes, geometry, strict=True):
        first = dilation * (k // 2) - padding
        if first < 0 or first + (made - 1) * stride >= size:
            return False
    return True


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each axis, where one may stand for all."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * rank if len(numbers) == 1 else numbers


Draws = Literal["normal", "orthogonal"]


def drawn_as(draws: Draws, weight: Weight, choice: Choice, *, delta: bool = False) -> Choice:
    """A normal choice as a random orthogonal matrix or kernel whose weights have its mean square.

    With `delta` a kernel is orthogonal at its centre tap and 0 elsewhere, and gives its outputs the
    same variance. What is no matrix of its own (fused, transposed or stacked weights) stays normal.
    """
    use, values = weight.use, choice.values
    if draws == "normal" or use is None or not isinstance(values, draw.Normal):
        return choice
    kernel = use.node.name == "convolution" and not use.node["transposed"]
    if weight.projections or not (kernel or use.node.name == "linear"):
        return choice
    groups = int(use.node["groups"]) if kernel else 1
    if delta:
        gain = values.std * math.sqrt(weight.fans.fan_in)
        return replace(choice, values=draw.DeltaOrthogonal(gain, groups, keep="second_moment"))
    gain = values.std * math.sqrt(math.prod(weight.shape[1:]))
    return replace(choice, values=draw.Orthogonal(gain, groups, keep="second_moment"))
