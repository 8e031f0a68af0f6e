"""What can be drawn, as frozen values: the parameters, and the moments of what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from fanin.errors import ArgumentError


def _check(value: object, **conditions: bool) -> None:
    """Raise for the first field that is not finite or whose condition is false."""
    name = type(value).__name__
    for field in fields(value):  # type: ignore[arg-type]
        number = getattr(value, field.name)
        if isinstance(number, float) and not math.isfinite(number):
            raise ArgumentError(
                f"{name}({field.name})", expected="a finite number", got=str(number)
            )
    for text, holds in conditions.items():
        if not holds:
            raise ArgumentError(name, expected=text.replace("_", " "), got=repr(value))


@dataclass(frozen=True)
class Normal:
    """N(mean, std²).

    Example:
        >>> Normal(std=0.02)
        Normal(mean=0.0, std=0.02)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check(self, std_of_at_least_0=self.std >= 0)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high].

    Example:
        >>> Uniform(-0.5, 0.5).std
        0.28867513459481287
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check(self, low_not_above_high=self.low <= self.high)

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def std(self) -> float:
        return (self.high - self.low) / math.sqrt(12)


@dataclass(frozen=True)
class TruncatedNormal:
    """A normal cut at `bound` of its own sigmas on both sides; `std` is the std of what comes out.

    *Definition.* mean + s·z with z ~ N(0, 1) given |z| <= bound, and s = std / sqrt(1 - 2 bound
    φ(bound) / erf(bound/√2)), so that the standard deviation after the cut is `std`.

    Example:
        >>> round(TruncatedNormal(std=1.0, bound=2.0).scale, 6)
        1.136847
    """

    mean: float = 0.0
    std: float = 1.0
    bound: float = 2.0

    def __post_init__(self) -> None:
        _check(self, std_of_at_least_0=self.std >= 0, bound_above_0=self.bound > 0)

    @property
    def scale(self) -> float:
        """The std of the normal before the cut."""
        density = math.exp(-(self.bound**2) / 2) / math.sqrt(2 * math.pi)
        kept = 1 - 2 * self.bound * density / math.erf(self.bound / math.sqrt(2))
        return self.std / math.sqrt(kept)

    @property
    def limit(self) -> float:
        """The largest distance from the mean that can come out."""
        return self.bound * self.scale


@dataclass(frozen=True)
class Rademacher:
    """-scale or +scale, each with probability 1/2."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Constant:
    """Every element is `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Orthogonal:
    """A random (semi-)orthogonal matrix, uniform over all of them, times a gain.

    *Definition.* The tensor [..., d0, d1, ...] is read as matrices d0 x (d1·d2·...); with `groups`, d0
    is cut into that many blocks, each a matrix of its own; the first `batch_dims` dimensions count
    matrices. Each matrix W has WᵀW = g²I (tall) or WWᵀ = g²I (wide). g = gain, or, where
    `keep` is "second_moment", g = gain·sqrt(max(1, rows/columns)), so that the mean square
    of a weight is gain²/columns for every shape.

    Example:
        >>> Orthogonal(gain=2.0)
        Orthogonal(gain=2.0, groups=1, batch_dims=0, keep='singular_values')
    """

    gain: float = 1.0
    groups: int = 1
    batch_dims: int = 0
    keep: Literal["singular_values", "second_moment"] = "singular_values"

    def __post_init__(self) -> None:
        _check(
            self,
            groups_of_at_least_1=self.groups >= 1,
            batch_dims_of_at_least_0=self.batch_dims >= 0,
        )


@dataclass(frozen=True)
class DeltaOrthogonal:
    """A convolution kernel that is zero but at its spatial centre, where it is orthogonal.

    Example:
        >>> DeltaOrthogonal(gain=1.5).gain
        1.5
    """

    gain: float = 1.0
    groups: int = 1
    keep: Literal["singular_values", "second_moment"] = "singular_values"

    def __post_init__(self) -> None:
        _check(self, groups_of_at_least_1=self.groups >= 1)


Distribution = (
    Normal | Uniform | TruncatedNormal | Rademacher | Constant | Orthogonal | DeltaOrthogonal
)
