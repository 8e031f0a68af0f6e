"""What all recipes share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from fanin import draw
from fanin.planning.choice import Choice, normal
from fanin.planning.plan import Stack, Stretch, Values
from fanin.planning.roles import Scene, Weight


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
    fans, parts = weight.fans, weight.projections
    if isinstance(gains, float):
        packed = len({p.last - p.first for p in parts}) == 1
        return normal(
            gains * _std(fans.fan_in, parts[0].last - parts[0].first if packed else fans.fan_out)
        )
    blocks = tuple(
        (p.last - p.first, normal(gains[p.part] * _std(fans.fan_in, p.last - p.first)))
        for p in parts
    )
    by_rows = sum(rows for rows, _ in blocks) == weight.shape[0] != fans.fan_in
    if by_rows and len({values for _, values in blocks}) > 1:
        return Stack(blocks)
    return blocks[-1][1]


def _std(fan_in: float, fan_out: float) -> float:
    """sqrt(2 / (fan_in + fan_out))."""
    return math.sqrt(2.0 / (fan_in + fan_out))


def zeros() -> draw.Constant:
    """All zero."""
    return draw.Constant(0.0)
