"""From random words to float32 values, in arithmetic of a fixed order: the NumPy path.

Only +, -, *, square root and conversions are used, each rounded once as IEEE 754 says, and the
functions are polynomials of our own; so the compiled kernels, which do the same operations
in the same order, have the same bits, and no platform's libm has a say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]
    Values = NDArray[np.float32]

# Minimax polynomials, lowest order first; tests/reference/draw_polynomials.py makes them.
# log(1 + f) = f + f²(-1/2 + f P(f)) for |f| <= 1/3.
LOG = (
    0.3333321511745453,
    -0.24999797344207764,
    0.20010405778884888,
    -0.16680486500263214,
    0.14005862176418304,
    -0.12184277921915054,
    0.13984467089176178,
    -0.12891601026058197,
)
# sin(πw/4) = w S(w²) and cos(πw/4) = 1 + w² C(w²) for |w| <= 1.
SIN = (0.7853981852531433, -0.08074543625116348, 0.002490007085725665, -3.595450834836811e-05)
COS = (-0.3084251284599304, 0.015854327008128166, -0.00032594200456514955, 3.5313344142196e-06)
# The normal quantile z at which P(|Z| > z) = q, with x = 1 - q and v = -log(q (1 + x)):
# z = x A(v) for v < 5, z = B(sqrt(v) - 3.625) above.
CENTRE = (
    1.2533141374588013,
    0.32811710238456726,
    0.016332263126969337,
    -0.00330119370482862,
    -0.00018028593331109732,
    6.302454130491242e-05,
    5.633212822431233e-06,
    -2.7951505217060912e-06,
    3.125856267160998e-07,
    -1.2432431084619111e-08,
)
TAIL = (
    4.895230770111084,
    1.4257009029388428,
    0.0035579733084887266,
    -0.002038266509771347,
    0.0007130737067200243,
    -0.00020811690774280578,
    5.464379501063377e-05,
    -4.9829627641884144e-06,
    -7.163303052948322e-06,
    2.7580019832385005e-06,
)
LN2 = 0.6931471824645996
TWO_THIRDS = 0x3F2AAAAB  # the bits of 2/3: mantissas are taken from [2/3, 4/3)

F = np.float32


def polynomial(coefficients: Sequence[float], x: Values) -> Values:
    """Horner's scheme in float32."""
    result = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + F(c)
    return result


def minus_log(u: Values) -> Values:
    """-log(u) for normal positive u, within 2 ulp."""
    bits = u.view(np.int32)
    exponent = (bits - np.int32(TWO_THIRDS)) >> np.int32(23)
    f = (bits - (exponent << np.int32(23))).view(np.float32) - F(1)
    small = ((polynomial(LOG, f) * f + F(-0.5)) * (f * f)) + f
    return exponent.astype(np.float32) * F(-LN2) - small


def unit(words: Words) -> Values:
    """31 bits as a number in (0, 1], with full resolution near 0."""
    return ((words >> np.uint32(1)).astype(np.int32).astype(np.float32) + F(0.5)) * F(2.0**-31)


def _signed(values: Values, words: Words, bit: int) -> Values:
    """Values with the sign flipped where that bit of the word is set."""
    sign = (words << np.uint32(31 - bit)) & np.uint32(0x80000000)
    return (values.view(np.uint32) ^ sign).view(np.float32)


def normal(words: Words) -> Values:
    """Standard normals from blocks [4, n], in the order of the elements, shape [4 n].

    Box-Muller: words 0 and 2 give the radius, 1 and 3 the angle: 30 bits for the place in a
    quadrant, 2 for the signs.
    """
    radius = np.sqrt(minus_log(unit(words[0::2])))  # over sqrt(2): see the angle
    angle = words[1::2]
    w = (angle.view(np.int32) >> np.int32(2)).astype(np.float32) * F(2.0**-29)
    t = w * w
    sine, cosine = polynomial(SIN, t) * w, polynomial(COS, t) * t + F(1)
    # cos and sin of π/4 (1 + w), times sqrt(2)
    first = _signed(radius * (cosine - sine), angle, 0)
    second = _signed(radius * (cosine + sine), angle, 1)
    return np.stack([first[0], second[0], first[1], second[1]], axis=-1).reshape(-1)


def truncated(words: Words, outside: Values, inside: Values) -> Values:
    """Standard normals given |z| <= bound, from words in any shape.

    Args:
        words: one word an element: 31 bits for the size, the lowest for the sign.
        outside: the probability of |z| > bound.
        inside: 1 - outside.
    """
    q = unit(words) * inside + outside
    x = F(1) - q
    v = minus_log(q * (x + F(1)))
    near, far = polynomial(CENTRE, v) * x, polynomial(TAIL, np.sqrt(v) - F(3.625))
    return _signed(np.where(v < F(5), near, far), words, 0)


def symmetric(words: Words) -> Values:
    """Uniform on (-1, 1): the odd multiples of 2^-24."""
    return ((words.view(np.int32) >> np.int32(8)).astype(np.float32) + F(0.5)) * F(2.0**-23)


def signs(words: Words) -> Values:
    """-1 or +1."""
    return _signed(np.ones(words.shape, np.float32), words, 31)
