"""What all recipes share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from fanin import draw
from fanin.plan.choice import Choice, normal
from fanin.plan.plan import Stack, Stretch, Values
from fanin.plan.roles import Scene, Weight


@dataclass(frozen=True)
class Recipe:
    """A published scheme; subclasses say what each parameter gets.

    Attributes:
        label: its name in `rule=`.
        citation: where it was published.
    """

    label: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    needs_signal: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The label with the parameters that differ from the published ones."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.init and getattr(self, f.name) != f.default and f.name != "base"
        ]
        return f"{self.label}({', '.join(changed)})" if changed else self.label

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Recipes decide weight by weight."""
        return ()

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """The choice for one parameter; None for what the recipe does not speak of."""
        raise NotImplementedError

    def draws(self, values: Values, reason: str, *, lr: float = 1.0) -> Choice:
        """A choice of this recipe."""
        return Choice(self.label, reason, values, lr=lr)


def xavier(weight: Weight, gains: dict[str, float] | float = 1.0) -> Values:
    """Xavier normal; where an attention's projections are packed, each part with its own gain."""
    fans = weight.fans
    if not weight.projections or isinstance(gains, float):
        gain = gains if isinstance(gains, float) else _gain(weight, gains)
        rows = weight.projections[0].last - weight.projections[0].first if packed(weight) else None
        fan_out = rows if rows is not None else fans.fan_out
        return normal(gain * math.sqrt(2.0 / (fans.fan_in + fan_out)))
    blocks = tuple(
        (p.last - p.first, normal(gains[p.part] * _xavier_std(fans.fan_in, p.last - p.first)))
        for p in weight.projections
    )
    whole = fans.axes.split()[0] == "out" and sum(n for n, _ in blocks) == weight.shape[0]
    if len(blocks) == 1 or not whole or len({d for _, d in blocks}) == 1:
        return blocks[0][1]
    return Stack(blocks)


def packed(weight: Weight) -> bool:
    """Whether the rows of several projections of one size stand in one weight."""
    sizes = {p.last - p.first for p in weight.projections}
    return len(weight.projections) > 1 and len(sizes) == 1


def _xavier_std(fan_in: float, fan_out: float) -> float:
    return math.sqrt(2.0 / (fan_in + fan_out))


def _gain(weight: Weight, gains: dict[str, float]) -> float:
    """The gain of a weight outside of the projections into an attention."""
    return gains["other"]


def zeros() -> draw.Constant:
    """All zero."""
    return draw.Constant(0.0)
