"""From random words to float64 values: the draws of `transform`, with the digits that it lacks.

A second word refines each first one, so a float64 tensor holds, to about seven digits, what a
float32 tensor of the same name holds. Everything else is as in `transform`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]
    Values = NDArray[np.float64]

# As LOG, SIN, COS, CENTRE and TAIL of `transform`.
LOG = (
    0.3333333333333333,
    -0.24999999999999997,
    0.20000000000007292,
    -0.16666666666673666,
    0.1428571428355438,
    -0.12499999997926427,
    0.11111111358713932,
    -0.10000000237702213,
    0.09090894718066429,
    -0.08333319535532796,
    0.07692785032479312,
    -0.07143315368653184,
    0.06657072104827468,
    -0.0624079013522121,
    0.06000536404795356,
    -0.056689908563992544,
    0.04400369243072337,
    -0.041719942791435476,
    0.08082022805971766,
    -0.07730769181911153,
)
SIN = (
    1.5707963267948966,
    -0.6459640975062463,
    0.07969262624616692,
    -0.004681754135314827,
    0.0001604411847266723,
    -3.598842717144858e-06,
    5.691927850489633e-08,
    -6.627624938992472e-10,
)
COS = (
    -1.2337005501361697,
    0.25366950790104803,
    -0.02086348076335295,
    0.0009192602748390894,
    -2.520204236776104e-05,
    4.710874326431131e-07,
    -6.3863890969045165e-09,
    6.513222727592812e-11,
)
CENTRE = (
    1.2533141373155003,
    0.32811687386921706,
    0.016333236147008955,
    -0.003302332411089177,
    -0.00018108056332696206,
    6.591853148625991e-05,
    2.8566937763231545e-06,
    -1.4319618137231428e-06,
    -5.275799840256219e-08,
    3.225922588160826e-08,
    1.0364054662201078e-09,
    -7.119495595781736e-10,
    -4.5228890418314865e-11,
    3.059118536106962e-11,
    -5.692053129117947e-12,
    1.872633579921969e-12,
    -6.675359310742366e-13,
    1.5400250522127884e-13,
    -2.2990622086671674e-14,
    2.275514741715677e-15,
    -1.4637893444410855e-16,
    5.60028825826676e-18,
    -9.744988235326742e-20,
)
TAIL = (
    5.787277824612336,
    1.4283253189459015,
    0.0010066133463696074,
    -0.0008561652453637947,
    0.00029349211926759863,
    -8.171442325708147e-05,
    2.0435887537810275e-05,
    -4.645702031903129e-06,
    8.901516025572511e-07,
    -8.561737193739559e-08,
    -4.259274821109389e-08,
    3.643856457484398e-08,
    -1.705413036377738e-08,
    5.5477070139936265e-09,
    -1.0367473350440161e-09,
    -1.0951097949525266e-10,
    1.8218743103535064e-10,
    -8.194435663909615e-11,
    1.9304880104362893e-11,
    7.789952394001442e-13,
    -2.115851865415088e-12,
    4.229204126899921e-13,
    -2.18089916626697e-14,
    7.375822512749512e-14,
    -2.1907053933936637e-14,
    -1.325363222791735e-14,
    5.581383003137554e-15,
    5.350811319902332e-16,
    -4.0096257697320386e-16,
    1.036091794119607e-18,
    9.37190275488705e-18,
)
TAIL_CENTRE = 4.25
LN2 = 0.6931471805599453
TWO_THIRDS = 0x3FE5555555555555
REACH = 8.572
"""No standard normal that is drawn exceeds this: sqrt(-2 log 2^-53) = 8.5717."""


def _polynomial(coefficients: Sequence[float], x: Values) -> Values:
    """Horner's scheme."""
    result = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result


def minus_log(x: Values) -> Values:
    """-log(x) of positive normal x."""
    bits = x.view(np.int64) - np.int64(TWO_THIRDS)
    exponent = (bits >> np.int64(52)).astype(np.float64)
    f = ((bits & np.int64(2**52 - 1)) + np.int64(TWO_THIRDS)).view(np.float64) - 1.0
    f2 = f * f
    return (exponent * -LN2 - (-0.5 * f2 + f)) - (f2 * f) * _polynomial(LOG, f)


def _flip(values: Values, words: Words, bit: int) -> Values:
    """Values with the sign changed where that bit of the word is set."""
    sign = (words.astype(np.uint64) << np.uint64(63 - bit)) & np.uint64(2**63)
    return (values.view(np.uint64) ^ sign).view(np.float64)


def _upper(words: Words, more: Words) -> Values:
    """The upper 31 bits of a word and 21 of its refinement as a number in (0, 1)."""
    k = (words >> np.uint32(1)).astype(np.int64) << np.int64(21) | more >> np.uint32(11)
    return (k.astype(np.float64) + 0.5) * 2.0**-52


def normal(words: Words, more: Words, mean: float, std: float) -> Values:
    """N(mean, std²) from blocks [4, n] and their refinements."""
    radius = np.sqrt(minus_log(_upper(words[0::2], more[0::2]))) * std
    angle = words[1::2]
    place = (angle >> np.uint32(9)).astype(np.int64) << np.int64(29) | more[1::2] >> np.uint32(3)
    w = place.astype(np.float64) * 2.0**-52 - 0.5
    t = w * w
    sine, cosine = _polynomial(SIN, t) * w, _polynomial(COS, t) * t + 1.0
    values = np.empty(words.shape)
    values[0::2] = _flip(radius * (cosine - sine), angle, 0) + mean
    values[1::2] = _flip(radius * (cosine + sine), angle, 1) + mean
    return values


def uniform(words: Words, more: Words, centre: float, half: float) -> Values:
    """Uniform within half of the centre: odd multiples of 2^-53 half."""
    k = (words.view(np.int32) >> np.int32(8)).astype(np.int64) * 2**29 + (more >> np.uint32(3))
    return (k.astype(np.float64) + 0.5) * (half * 2.0**-52) + centre


def truncated(
    words: Words, more: Words, mean: float, scale: float, inside: float, outside: float
) -> Values:
    """mean + scale z given |z| <= bound."""
    q = _upper(words, more) * inside + outside
    x = 1.0 - q
    v = minus_log(q * (x + 1.0))
    near = _polynomial(CENTRE, np.minimum(v, 5.0)) * x
    far = _polynomial(TAIL, np.sqrt(np.maximum(v, 5.0)) - TAIL_CENTRE)
    return _flip(np.where(v < 5.0, near, far), words, 0) * scale + mean


def rademacher(words: Words, more: Words, scale: float) -> Values:
    """-scale or scale, by the first bit; there is nothing to refine."""
    return _flip(np.full(words.shape, scale), words, 31)
