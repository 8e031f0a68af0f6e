"""The floating types that can be drawn, and one rounding from float32 to the narrow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.draw import double, transform
from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.draw.distributions import Distribution


@dataclass(frozen=True)
class Format:
    """A floating type: where its bits live, and how they are cut.

    Attributes:
        name: the type's name, as torch and ml_dtypes spell it.
        storage: the NumPy type that holds one element (or its bits).
        mantissa: stored mantissa bits.
        bias: of the exponent.
        largest: the largest finite value.
    """

    name: str
    storage: type[np.generic]
    mantissa: int
    bias: int
    largest: float

    @property
    def smallest(self) -> float:
        """The least positive value."""
        return float(2.0 ** (1 - self.bias - self.mantissa))

    @property
    def narrow(self) -> bool:
        """Whether float32 values must be rounded to it."""
        return self.mantissa < 23


FORMATS = {
    f.name: f
    for f in (
        Format("float64", np.float64, 52, 1023, float(np.finfo(np.float64).max)),
        Format("float32", np.float32, 23, 127, float(np.finfo(np.float32).max)),
        Format("float16", np.uint16, 10, 15, 65504.0),
        Format("bfloat16", np.uint16, 7, 127, 255 * 2.0**120),
        Format("float8_e4m3fn", np.uint8, 3, 7, 448.0),
        Format("float8_e5m2", np.uint8, 2, 15, 57344.0),
    )
}


def constants(target: Format) -> tuple[np.uint32, np.uint32, np.uint32, np.float32, np.uint32]:
    """What `to_bits` needs of a narrow format.

    Returns:
        Bits dropped from the mantissa; what the exponent loses; the float32 bits of the least
        normal number; the float32 whose last place is the format's least step; how far the
        sign moves down.
    """
    width = 8 * np.dtype(target.storage).itemsize
    return (
        np.uint32(23 - target.mantissa),
        np.uint32((127 - target.bias) << target.mantissa),
        np.uint32((128 - target.bias) << 23),
        np.float32(2.0 ** (24 - target.bias - target.mantissa)),
        np.uint32(32 - width),
    )


def to_bits(values: NDArray[np.float32], target: Format) -> NDArray[Any]:
    """The bits of float32 values, rounded once, to nearest and ties to even.

    *Definition.* In the normal range the mantissa loses its last bits, rounded. Below it, the
    value is added to the float32 number whose last place is the format's least step, so that
    the addition rounds.

    Args:
        values: float32, at most `target.largest` in size.
        target: a narrow format.
    """
    drop, rebias, smallest, magic, down = constants(target)
    bits = values.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    odd = (size >> drop) & np.uint32(1)
    half = np.uint32((1 << int(drop - 1)) - 1)
    rounded = ((size + half + odd) >> drop) - rebias
    if rebias:  # bfloat16 has the exponents of float32, and needs no other case
        tiny = (size.view(np.float32) + magic).view(np.uint32) - magic.view(np.uint32)
        rounded = np.where(size < smallest, tiny, rounded)
    return (rounded | (bits & np.uint32(0x80000000)) >> down).astype(target.storage)


def check_range(distribution: Distribution, target: Format) -> None:
    """Refuse what the type cannot hold: values beyond its range, or all rounded to 0."""
    deviation = double.REACH if target.name == "float64" else transform.REACH
    reach = distribution.reach(deviation)
    if reach > target.largest:
        raise ArgumentError(
            f"draw.fill({distribution})",
            expected=f"values that {target.name} holds, up to {target.largest:.6g}",
            got=f"values up to {reach:.6g}",
            fix="draw a smaller scale or a wider type",
        )
    if 0 < reach <= target.smallest / 2:
        raise ArgumentError(
            f"draw.fill({distribution})",
            expected=f"values that {target.name} holds, from {target.smallest:.6g}",
            got=f"values up to {reach:.6g}, which all round to 0",
            fix="draw a larger scale or a wider type",
        )
