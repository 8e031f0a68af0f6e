"""What can be drawn, as frozen values: the parameters, and the moments of what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal

from fanin.errors import ArgumentError, ArgumentTypeError

Transform = tuple[str, tuple[float, ...]]
"""The name of a function of `transform` and `double`, and the numbers that it takes."""

Keep = Literal["singular_values", "second_moment"]


def _check(value: object, holds: Callable[[], bool], expected: str) -> None:
    """Raise unless all numbers among the fields are numbers, finite, and the condition holds."""
    name = type(value).__name__
    for field in fields(value):  # type: ignore[arg-type]
        number = getattr(value, field.name)
        where = f"{name}({field.name})"
        if field.type == "float" and not isinstance(number, Real):
            raise ArgumentTypeError(where, expected="a number", got=type(number).__name__)
        if field.type == "float" and not math.isfinite(number):
            raise ArgumentError(where, expected="a finite number", got=str(number))
        if field.type == "int" and (not isinstance(number, Integral) or isinstance(number, bool)):
            raise ArgumentTypeError(where, expected="an integer", got=type(number).__name__)
    if not holds():
        raise ArgumentError(name, expected=expected, got=repr(value))


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
        _check(self, lambda: not self.std < 0, "std >= 0")

    def reach(self, deviation: float) -> float:
        """The largest size that can come out, if standard normals reach `deviation`."""
        return abs(self.mean) + self.std * deviation

    def transform(self) -> Transform:
        """How words become values."""
        return "normal", (self.mean, self.std)


@dataclass(frozen=True)
class Uniform:
    """Uniform between low and high.

    Example:
        >>> round(Uniform(-0.5, 0.5).std, 6)
        0.288675
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check(self, lambda: not self.low > self.high, "low <= high")

    @property
    def mean(self) -> float:
        """The middle."""
        return self.low / 2 + self.high / 2

    @property
    def std(self) -> float:
        """The standard deviation."""
        return (self.high - self.low) / math.sqrt(12)

    def reach(self, deviation: float) -> float:
        """The largest size that can come out."""
        return max(abs(self.low), abs(self.high))

    def transform(self) -> Transform:
        """How words become values."""
        return "uniform", (self.mean, self.high / 2 - self.low / 2)


@dataclass(frozen=True)
class TruncatedNormal:
    """A normal cut at `bound` of its own sigmas on both sides; `std` is the std of what comes out.

    *Definition.* mean + s z with z ~ N(0, 1) given |z| <= bound, and s = std / sqrt(1 - 2 bound
    φ(bound) / erf(bound/√2)), φ the normal density, so that the standard deviation after the cut
    is `std`. The sigmas are those of the normal before the cut, s.

    Example:
        >>> round(TruncatedNormal(std=1.0, bound=2.0).scale, 6)
        1.136847
    """

    mean: float = 0.0
    std: float = 1.0
    bound: float = 2.0

    def __post_init__(self) -> None:
        _check(self, lambda: self.std >= 0 and self.bound >= 0.01, "std >= 0 and bound >= 0.01")

    @property
    def scale(self) -> float:
        """s, the std before the cut."""
        density = math.exp(-(self.bound**2) / 2) / math.sqrt(2 * math.pi)
        kept = 1 - 2 * self.bound * density / math.erf(self.bound / math.sqrt(2))
        return self.std / math.sqrt(kept)

    @property
    def limit(self) -> float:
        """The largest distance from the mean that can come out: bound s."""
        return self.bound * self.scale

    def reach(self, deviation: float) -> float:
        """The largest size that can come out, if standard normals reach `deviation`."""
        return abs(self.mean) + self.scale * min(self.bound, deviation)

    def transform(self) -> Transform:
        """How words become values."""
        edge = self.bound / math.sqrt(2)
        return "truncated", (self.mean, self.scale, math.erf(edge), math.erfc(edge))


@dataclass(frozen=True)
class Rademacher:
    """-scale or scale, each with probability 1/2.

    Example:
        >>> Rademacher(0.1).std
        0.1
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self, lambda: not self.scale < 0, "scale >= 0")

    @property
    def mean(self) -> float:
        """Zero."""
        return 0.0

    @property
    def std(self) -> float:
        """The scale."""
        return self.scale

    def reach(self, deviation: float) -> float:
        """The largest size that can come out."""
        return self.scale

    def transform(self) -> Transform:
        """How words become values."""
        return "rademacher", (self.scale,)


@dataclass(frozen=True)
class Constant:
    """Every element is `value`.

    Example:
        >>> Constant(1.0)
        Constant(value=1.0)
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        _check(self, lambda: True, "")

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    @property
    def std(self) -> float:
        """Zero."""
        return 0.0

    def reach(self, deviation: float) -> float:
        """The value's size."""
        return abs(self.value)


@dataclass(frozen=True)
class Orthogonal:
    """A random (semi-)orthogonal matrix, uniform over all of them, times a gain.

    *Definition.* The tensor [..., d0, d1, d2, ...] is read as matrices of d0 rows and d1 d2 ...
    columns; the first `batch_dims` dimensions count matrices, and with `groups` the d0 rows are
    cut into so many matrices. Each matrix W has WᵀW = g² I if it is tall, WWᵀ = g² I if it is wide.
    g = gain; or, if `keep` is "second_moment", g = gain sqrt(max(1, rows / columns)), so that the
    mean square of a weight is gain² / columns whatever the shape.

    *Accuracy*: |WᵀW - g² I| below 2e-6 g² in float32 in every entry; narrower types are this
    matrix, rounded once.

    Example:
        >>> Orthogonal(gain=2.0)
        Orthogonal(gain=2.0, groups=1, batch_dims=0, keep='singular_values')

    Reference:
        Stewart 1980, "The efficient generation of random orthogonal matrices", section 3.
    """

    gain: float = 1.0
    groups: int = 1
    batch_dims: int = 0
    keep: Keep = "singular_values"

    def __post_init__(self) -> None:
        _check(
            self,
            lambda: self.groups >= 1 and self.batch_dims >= 0,
            "groups >= 1 and batch_dims >= 0",
        )
        _check(self, lambda: self.keep in ("singular_values", "second_moment"), "a known `keep`")

    def reach(self, deviation: float) -> float:
        """The largest size that can come out of a wide or square matrix."""
        return abs(self.gain)


@dataclass(frozen=True)
class DeltaOrthogonal:
    """A convolution kernel [out, in, taps...], zero but at its centre, where it is orthogonal.

    *Definition.* The tap at index n // 2 of each spatial dimension n holds `Orthogonal(gain,
    groups)` of shape [out, in]; the other taps are 0.

    Example:
        >>> DeltaOrthogonal(gain=1.5)
        DeltaOrthogonal(gain=1.5, groups=1, keep='singular_values')

    Reference:
        Xiao et al. 2018 (arXiv:1806.05393), algorithm 1.
    """

    gain: float = 1.0
    groups: int = 1
    keep: Keep = "singular_values"

    def __post_init__(self) -> None:
        _check(self, lambda: self.groups >= 1, "groups >= 1")
        _check(self, lambda: self.keep in ("singular_values", "second_moment"), "a known `keep`")

    def reach(self, deviation: float) -> float:
        """The largest size that can come out of a wide or square matrix."""
        return abs(self.gain)


Elementwise = Normal | Uniform | TruncatedNormal | Rademacher
"""What each element draws on its own."""

Distribution = Elementwise | Constant | Orthogonal | DeltaOrthogonal
"""Everything that `fill` can draw."""
