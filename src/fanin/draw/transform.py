"""From random words to float32 values, in arithmetic of a fixed order: the NumPy path.

Only +, -, *, square root and conversions are used, each rounded once as IEEE 754 says, and the
functions are polynomials of our own. So `kernels`, which does the same operations in the same
order, has the same bits, and no platform's mathematical library has a say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint32]
    Values = NDArray[np.float32]

# Minimax polynomials, lowest order first; tests/reference/draw_polynomials.py makes them.
LOG = (  # log(1 + f) = f - f²/2 + f³ P(f) for |f| <= 1/3
    0.3333326578140259,
    -0.2500423789024353,
    0.20007918775081635,
    -0.1647232472896576,
    0.14042328298091888,
    -0.15122190117835999,
    0.13820135593414307,
)
SIN = (  # sin(πw/2) = w S(w²) for |w| <= 1/2
    1.5707963705062866,
    -0.6459634900093079,
    0.07968022674322128,
    -0.004602177068591118,
)
COS = (  # cos(πw/2) = 1 + w² C(w²) for |w| <= 1/2
    -1.2336980104446411,
    0.2536063492298126,
    -0.020426249131560326,
)
# The z at which P(|Z| > z) = q, with x = 1 - q and v = -log(q (1 + x)): z = x A(v) for v < 5,
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
TAIL = (  # and z = B(sqrt(v) - TAIL_CENTRE) from there to z = 6.7.
    4.895230770111084,
    1.4257009029388428,
    0.0035579733084887266,
    -0.002038266509771347,
    0.0007130737067200243,
    -0.00020811690774280578,
    5.464379137265496e-05,
    -4.9829627641884144e-06,
    -7.163303052948322e-06,
    2.7580019832385005e-06,
)
TAIL_CENTRE = 3.625
LN2 = 0.6931471824645996
TWO_THIRDS = 0x3F2AAAAB  # the bits of 2/3: mantissas are taken from [2/3, 4/3)
REACH = 6.661
"""No standard normal that is drawn exceeds this: sqrt(-2 log 2^-32) = 6.6604."""

F = np.float32


def minus_log(x: Values, halvings: int = 0) -> Values:
    """-log(x / 2^halvings) of positive normal x."""
    bits = x.view(np.int32) - np.int32(TWO_THIRDS + (halvings << 23))
    exponent = (bits >> np.int32(23)).astype(np.float32)
    f = ((bits & np.int32(0x7FFFFF)) + np.int32(TWO_THIRDS)).view(np.float32) - F(1)
    c0, c1, c2, c3, c4, c5, c6 = (F(c) for c in LOG)
    f2 = f * f
    high, low = c6 * f2 + (c5 * f + c4), (c3 * f + c2) * f2 + (c1 * f + c0)
    series = high * (f2 * f2) + low
    result: Values = (exponent * F(-LN2) - (F(-0.5) * f2 + f)) - (f2 * f) * series
    return result


def _flip(values: Values, words: Words, bit: int) -> Values:
    """Values with the sign changed where that bit of the word is set."""
    sign = (words << np.uint32(31 - bit)) & np.uint32(0x80000000)
    return (values.view(np.uint32) ^ sign).view(np.float32)


def _upper(words: Words) -> Values:
    """The upper 31 bits k of the words as k + 1/2."""
    return (words >> np.uint32(1)).astype(np.int32).astype(np.float32) + F(0.5)


def normal(words: Words, mean: float, std: float) -> Values:
    """N(mean, std²) from blocks [4, n], by Box and Muller's transform.

    Words 0 and 2 are radii, with 31 bits; words 1 and 3 are angles, with 23 bits for the place in
    a quadrant, seen from its middle, and the last 2 bits for the signs.

    Returns:
        float32 [4, n]: one value a word.
    """
    radius = np.sqrt(minus_log(_upper(words[0::2]), 31)) * F(std)  # sqrt(2) is in the angle
    angle = words[1::2]
    w = (angle >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - F(1.5)
    t = w * w
    s0, s1, s2, s3 = (F(c) for c in SIN)
    c0, c1, c2 = (F(c) for c in COS)
    sine = ((s3 * t + s2) * (t * t) + (s1 * t + s0)) * w
    cosine = (c2 * (t * t) + (c1 * t + c0)) * t + F(1)
    values = np.empty_like(words, np.float32)
    values[0::2] = _flip(radius * (cosine - sine), angle, 0) + F(mean)
    values[1::2] = _flip(radius * (cosine + sine), angle, 1) + F(mean)
    return values


def uniform(words: Words, centre: float, half: float) -> Values:
    """Uniform within half of the centre: odd multiples of 2^-24 half."""
    odd = (words.view(np.int32) >> np.int32(8)).astype(np.float32) + F(0.5)
    return odd * F(half * 2.0**-23) + F(centre)


def truncated(words: Words, mean: float, scale: float, inside: float, outside: float) -> Values:
    """mean + scale z given |z| <= bound: 31 bits for the size, the last for the sign.

    Args:
        words: one word a value.
        mean: the mean.
        scale: the std before the cut.
        inside: the probability that |z| <= bound.
        outside: 1 - inside.
    """
    q = _upper(words) * F(inside * 2.0**-31) + F(outside)
    x = F(1) - q
    v = minus_log(q * (x + F(1)))
    z = np.where(v < F(5), _centre(v) * x, _tail(np.sqrt(v) - F(TAIL_CENTRE)))
    return _flip(z, words, 0) * F(scale) + F(mean)


def _centre(v: Values) -> Values:
    """The polynomial A, in pairs: its two halves do not wait for each other."""
    a = [F(c) for c in CENTRE]
    v2 = v * v
    v4 = v2 * v2
    low = (a[3] * v + a[2]) * v2 + (a[1] * v + a[0])
    high = (a[7] * v + a[6]) * v2 + (a[5] * v + a[4])
    result: Values = ((a[9] * v + a[8]) * v4 + high) * v4 + low
    return result


def _tail(s: Values) -> Values:
    """The polynomial B, in the same order."""
    b = [F(c) for c in TAIL]
    s2 = s * s
    s4 = s2 * s2
    low = (b[3] * s + b[2]) * s2 + (b[1] * s + b[0])
    high = (b[7] * s + b[6]) * s2 + (b[5] * s + b[4])
    result: Values = ((b[9] * s + b[8]) * s4 + high) * s4 + low
    return result


def rademacher(words: Words, scale: float) -> Values:
    """-scale or scale, by the first bit."""
    return _flip(np.full(words.shape, scale, np.float32), words, 31)
