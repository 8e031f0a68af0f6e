"""One rounding from float32 to the narrower types, to nearest, ties to even, as bit patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


FORMATS = {
    f.name: f
    for f in (
        Format("float64", np.float64, 52, 1023, float(np.finfo(np.float64).max)),
        Format("float32", np.float32, 23, 127, float(np.finfo(np.float32).max)),
        Format("float16", np.uint16, 10, 15, 65504.0),
        Format("bfloat16", np.uint16, 7, 127, float(255 * 2.0**120)),
        Format("float8_e4m3fn", np.uint8, 3, 7, 448.0),
        Format("float8_e5m2", np.uint8, 2, 15, 57344.0),
    )
}


def to_bits(values: NDArray[np.float32], target: Format) -> NDArray[Any]:
    """The bits of float32 values, rounded once to a type of 16 or 8 bits.

    *Definition.* In the normal range the float32 bits lose their last 23 - mantissa bits by
    rounding to nearest even. Below it, adding the float32 number whose last place is the
    target's smallest step makes the float32 addition do the rounding.

    Args:
        values: float32, at most `target.largest` in size.
        target: a format narrower than float32.
    """
    bits = values.view(np.uint32)
    sign = bits & np.uint32(0x80000000)
    size = bits ^ sign
    drop = 23 - target.mantissa
    odd = (size >> np.uint32(drop)) & np.uint32(1)
    half = np.uint32((1 << (drop - 1)) - 1)
    rebias = np.uint32((127 - target.bias) << target.mantissa)
    rounded = ((size + half + odd) >> np.uint32(drop)) - rebias
    magic = np.float32(2.0 ** (24 - target.bias - target.mantissa))
    tiny = (size.view(np.float32) + magic).view(np.uint32) - magic.view(np.uint32)
    smallest = np.uint32((128 - target.bias) << 23)
    small = np.where(size < smallest, tiny, rounded) if target.bias < 127 else rounded
    width = 8 * np.dtype(target.storage).itemsize
    return (small | sign >> np.uint32(32 - width)).astype(target.storage)
