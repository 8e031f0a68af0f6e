"""The compiled kernels: the arithmetic of `transform` and `rounding`, a few numbers at a time.

Only this module needs Numba. Nothing is compiled at import; machine code is cached beside the
source, or in the user's cache directory. `fastmath` stays off, so products and sums are rounded
apart, in the order written, and the bits are those of the NumPy path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fanin.draw import transform
from fanin.draw.philox import KEY_STEPS, MULTIPLIERS, ROUNDS
from fanin.draw.rounding import FORMATS, constants

BLOCKS = 512  # in one tile: 8 KiB of words, which stay in the first cache

KINDS = ("normal", "uniform", "truncated", "rademacher")
NORMAL, UNIFORM, TRUNCATED, RADEMACHER = range(4)

FORMS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
FLOAT32, BFLOAT16, FLOAT16, E4M3, E5M2 = range(5)

M0, M1 = (np.uint64(m) for m in MULTIPLIERS)
STEP0, STEP1 = (np.uint64(s) for s in KEY_STEPS)
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
SIGN = np.uint32(0x80000000)
TWO_THIRDS, MANTISSA = np.int32(transform.TWO_THIRDS), np.int32(0x7FFFFF)
ONE, HALF, MINUS_HALF = np.float32(1), np.float32(0.5), np.float32(-0.5)
MINUS_LN2, FIVE = np.float32(-transform.LN2), np.float32(5)
TAIL_NEEDED = np.float32(0.0034)  # v < 5 wherever q is above this
TAIL_CENTRE = np.float32(transform.TAIL_CENTRE)
L0, L1, L2, L3, L4, L5, L6 = (np.float32(c) for c in transform.LOG)
S0, S1, S2, S3 = (np.float32(c) for c in transform.SIN)
C0, C1, C2 = (np.float32(c) for c in transform.COS)
A0, A1, A2, A3, A4, A5, A6, A7, A8, A9 = (np.float32(c) for c in transform.CENTRE)
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9 = (np.float32(c) for c in transform.TAIL)

H_DROP, H_REBIAS, H_SMALLEST, H_MAGIC, H_DOWN = constants(FORMATS["float16"])
P_DROP, P_REBIAS, P_SMALLEST, P_MAGIC, P_DOWN = constants(FORMATS["float8_e4m3fn"])
Q_DROP, Q_REBIAS, Q_SMALLEST, Q_MAGIC, Q_DOWN = constants(FORMATS["float8_e5m2"])


def compiled(function: Any) -> Any:
    """Compile at the first call, without the interpreter's lock, and keep the machine code."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)


def inlined(function: Any) -> Any:
    """A helper that becomes part of its callers' loops, which LLVM can then vectorise."""
    return njit(cache=True, nogil=True, error_model="numpy", inline="always")(function)


def parameters(kind: str, numbers: tuple[float, ...]) -> Any:
    """The arguments of a transform as float32 [4], scaled to the integers that they multiply."""
    scale = {"uniform": (1.0, 2.0**-23), "truncated": (1.0, 1.0, 2.0**-31, 1.0)}.get(
        kind, (1.0,) * 4
    )
    p = np.zeros(4, np.float32)
    p[: len(numbers)] = [n * s for n, s in zip(numbers, scale, strict=False)]
    return p


@inlined
def _round(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """One round; the upper halves of the 64-bit lanes are not looked at by the next."""
    a, b = M0 * (c0 & LOW), M1 * (c2 & LOW)
    return (b >> WORD) ^ c1 ^ k0, b, (a >> WORD) ^ c3 ^ k1, a


@compiled
def _philox(words, first, blocks, source):  # type: ignore[no-untyped-def]
    """Words of consecutive blocks; each uint64 of `words` [4, n/2] holds those of two blocks."""
    key0, key1, lane0, lane1 = source
    high = first >> WORD
    for i in range((blocks + 1) // 2):
        e0 = first + np.uint64(2 * i)
        e1, e2, e3 = high, lane0, lane1
        o0 = e0 + np.uint64(1)
        o1, o2, o3 = high, lane0, lane1
        k0, k1 = key0, key1
        for _ in range(ROUNDS):
            e0, e1, e2, e3 = _round(e0, e1, e2, e3, k0, k1)
            o0, o1, o2, o3 = _round(o0, o1, o2, o3, k0, k1)
            k0, k1 = k0 + STEP0, k1 + STEP1
        words[0, i] = (e0 & LOW) | (o0 << WORD)
        words[1, i] = (e1 & LOW) | (o1 << WORD)
        words[2, i] = (e2 & LOW) | (o2 << WORD)
        words[3, i] = (e3 & LOW) | (o3 << WORD)


@inlined
def _minus_log(x, base):  # type: ignore[no-untyped-def]
    """-log(x / 2^halvings), base = TWO_THIRDS + (halvings << 23)."""
    bits = np.int32(np.float32(x).view(np.int32) - base)
    exponent = np.float32(np.int32(bits >> np.int32(23)))
    f = np.int32(np.int32(bits & MANTISSA) + TWO_THIRDS).view(np.float32) - ONE
    f2 = f * f
    series = (L6 * f2 + (L5 * f + L4)) * (f2 * f2) + ((L3 * f + L2) * f2 + (L1 * f + L0))
    return (exponent * MINUS_LN2 - (MINUS_HALF * f2 + f)) - (f2 * f) * series


@inlined
def _upper(word):  # type: ignore[no-untyped-def]
    """The upper 31 bits k as k + 1/2."""
    return np.float32(np.int32(word >> np.uint32(1))) + HALF


@inlined
def _flip(value, word, shift):  # type: ignore[no-untyped-def]
    """The value, its sign changed if bit 31 - shift of the word is set."""
    sign = np.uint32(np.uint32(word << np.uint32(shift)) & SIGN)
    return np.uint32(np.float32(value).view(np.uint32) ^ sign).view(np.float32)


@compiled
def _radii(words, blocks, radii, std):  # type: ignore[no-untyped-def]
    base = np.int32(TWO_THIRDS + np.int32(31 << 23))
    for i in range(blocks):
        radii[i] = np.sqrt(_minus_log(_upper(words[i]), base)) * std


@inlined
def _angle(word, radius):  # type: ignore[no-untyped-def]
    """The two normals that one angle makes of a radius."""
    w = np.uint32(np.uint32(word >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32)
    w = w - np.float32(1.5)
    t = w * w
    t2 = t * t
    sine = ((S3 * t + S2) * t2 + (S1 * t + S0)) * w
    cosine = (C2 * t2 + (C1 * t + C0)) * t + ONE
    return _flip(radius * (cosine - sine), word, 31), _flip(radius * (cosine + sine), word, 30)


@compiled
def _normals(words, blocks, radii, out, std, mean):  # type: ignore[no-untyped-def]
    _radii(words[0], blocks, radii[0], std)
    _radii(words[2], blocks, radii[1], std)
    angle0, angle1, radius0, radius1 = words[1], words[3], radii[0], radii[1]
    for i in range(blocks):
        a, b = _angle(angle0[i], radius0[i])
        c, d = _angle(angle1[i], radius1[i])
        out[4 * i] = a + mean
        out[4 * i + 1] = b + mean
        out[4 * i + 2] = c + mean
        out[4 * i + 3] = d + mean


@inlined
def _uniform(word, half, centre):  # type: ignore[no-untyped-def]
    return (np.float32(np.int32(np.int32(word) >> np.int32(8))) + HALF) * half + centre


@compiled
def _uniforms(words, blocks, out, half, centre):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for i in range(blocks):
        out[4 * i] = _uniform(w0[i], half, centre)
        out[4 * i + 1] = _uniform(w1[i], half, centre)
        out[4 * i + 2] = _uniform(w2[i], half, centre)
        out[4 * i + 3] = _uniform(w3[i], half, centre)


@compiled
def _centres(words, blocks, v, z, inside, outside):  # type: ignore[no-untyped-def]
    """The quantile by the polynomial A, and its variable v."""
    for i in range(blocks):
        q = _upper(words[i]) * inside + outside
        x = ONE - q
        u = _minus_log(q * (x + ONE), TWO_THIRDS)
        u2 = u * u
        u4 = u2 * u2
        low = (A3 * u + A2) * u2 + (A1 * u + A0)
        high = (A7 * u + A6) * u2 + (A5 * u + A4)
        z[i] = (((A9 * u + A8) * u4 + high) * u4 + low) * x
        v[i] = u


@compiled
def _tails(blocks, v, z):  # type: ignore[no-untyped-def]
    """The quantile by the polynomial B where v >= 5; chosen by masks, to stay free of branches."""
    for i in range(blocks):
        s = np.sqrt(v[i]) - TAIL_CENTRE
        s2 = s * s
        s4 = s2 * s2
        low = (B3 * s + B2) * s2 + (B1 * s + B0)
        high = (B7 * s + B6) * s2 + (B5 * s + B4)
        far = np.float32(((B9 * s + B8) * s4 + high) * s4 + low).view(np.int32)
        mask = np.int32(np.int32(v[i] < FIVE) - np.int32(1))
        near = np.float32(z[i]).view(np.int32)
        z[i] = np.int32(near ^ np.int32(np.int32(near ^ far) & mask)).view(np.float32)


@compiled
def _signed(words, blocks, z, scale, mean):  # type: ignore[no-untyped-def]
    for i in range(blocks):
        z[i] = _flip(z[i], words[i], 31) * scale + mean


@compiled
def _signs(words, blocks, z, scale):  # type: ignore[no-untyped-def]
    for i in range(blocks):
        z[i] = _flip(scale, words[i], 0)


@compiled
def _interleave(z, blocks, out):  # type: ignore[no-untyped-def]
    """Rows by word into elements in order."""
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for i in range(blocks):
        out[4 * i] = z0[i]
        out[4 * i + 1] = z1[i]
        out[4 * i + 2] = z2[i]
        out[4 * i + 3] = z3[i]


@compiled
def _tile(out, first, blocks, scratch, z, kind, p, source):  # type: ignore[no-untyped-def]
    """All elements of consecutive blocks as float32."""
    _philox(scratch, first, blocks, source)
    words = scratch.view(np.uint32)
    if kind == NORMAL:
        _normals(words, blocks, z, out, p[1], p[0])
        return
    if kind == UNIFORM:
        _uniforms(words, blocks, out, p[1], p[0])
        return
    for j in range(4):
        if kind == TRUNCATED:
            _centres(words[j], blocks, z[4], z[j], p[2], p[3])
            if p[3] < TAIL_NEEDED:
                _tails(blocks, z[4], z[j])
            _signed(words[j], blocks, z[j], p[1], p[0])
        else:
            _signs(words[j], blocks, z[j], p[0])
    _interleave(z, blocks, out)


@compiled
def _copy(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = values[i]


@compiled
def _to_bfloat16(values, out):  # type: ignore[no-untyped-def]
    """Round to nearest even at bit 16: `rounding.to_bits` without its case of small numbers."""
    for i in range(len(out)):
        bits = np.float32(values[i]).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        out[i] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@inlined
def _narrow(value, drop, rebias, smallest, magic, down):  # type: ignore[no-untyped-def]
    """`rounding.to_bits` of one value; shifts by constants, and masks, so that it vectorises."""
    bits = np.float32(value).view(np.uint32)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32(np.uint32(size >> drop) & np.uint32(1))
    half = np.uint32(np.uint32(np.uint32(1) << np.uint32(drop - np.uint32(1))) - np.uint32(1))
    normal = np.uint32(np.uint32(np.uint32(np.uint32(size + half) + odd) >> drop) - rebias)
    added = np.float32(np.uint32(size).view(np.float32) + magic)
    tiny = np.uint32(np.float32(added).view(np.uint32) - np.float32(magic).view(np.uint32))
    less = np.uint32(np.int32(np.int32(np.int32(size) - np.int32(smallest)) >> np.int32(31)))
    rounded = np.uint32(normal ^ np.uint32(np.uint32(normal ^ tiny) & less))
    return np.uint32(rounded | np.uint32(np.uint32(bits & SIGN) >> down))


@compiled
def _to_float16(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = _narrow(values[i], H_DROP, H_REBIAS, H_SMALLEST, H_MAGIC, H_DOWN)


@compiled
def _to_e4m3(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = _narrow(values[i], P_DROP, P_REBIAS, P_SMALLEST, P_MAGIC, P_DOWN)


@compiled
def _to_e5m2(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = _narrow(values[i], Q_DROP, Q_REBIAS, Q_SMALLEST, Q_MAGIC, Q_DOWN)


@compiled
def _store(values, out, form):  # type: ignore[no-untyped-def]
    """float32 values into the bytes of a type of `FORMS`."""
    if form == FLOAT32:
        _copy(values, out.view(np.float32))
    elif form == BFLOAT16:
        _to_bfloat16(values, out.view(np.uint16))
    elif form == FLOAT16:
        _to_float16(values, out.view(np.uint16))
    elif form == E4M3:
        _to_e4m3(values, out)
    else:
        _to_e5m2(values, out)


@compiled
def draw(out, starts, kind, p, source, form):  # type: ignore[no-untyped-def]
    """Rows of consecutive elements: row i holds those from starts[i] on.

    Args:
        out: the bytes of an array [rows, length], contiguous.
        starts: int64 [rows], the position of each row's first element in the whole tensor.
        kind: NORMAL, UNIFORM, TRUNCATED or RADEMACHER.
        p: of `parameters`.
        source: the two words of the key and the upper two of the counter, as uint64.
        form: what the bytes are: FLOAT32, BFLOAT16, FLOAT16, E4M3 or E5M2.
    """
    scratch = np.empty((4, BLOCKS // 2), np.uint64)
    z = np.empty((5, BLOCKS), np.float32)
    whole = np.empty(4 * BLOCKS, np.float32)
    size = 4 if form == FLOAT32 else (2 if form <= FLOAT16 else 1)
    length = out.shape[1] // size
    for row in range(out.shape[0]):
        done, at = 0, starts[row]
        while done < length:
            skip = at % 4
            blocks = min(BLOCKS, (skip + length - done + 3) // 4)
            blocks = min(blocks, 2**32 - at // 4 % 2**32)  # no carry within a tile
            count = min(4 * blocks - skip, length - done)
            target = out[row][size * done : size * (done + count)]
            first = np.uint64(at // 4)
            if form == FLOAT32 and count == 4 * blocks:
                _tile(target.view(np.float32), first, blocks, scratch, z, kind, p, source)
            else:
                _tile(whole, first, blocks, scratch, z, kind, p, source)
                _store(whole[skip : skip + count], target, form)
            done += count
            at += count


@compiled
def _multiply_add(c, a, b):  # type: ignore[no-untyped-def]
    """c := c + a b; each element adds its products in the order of k."""
    whole = len(b) // 4 * 4
    pairs = len(c) // 2 * 2
    for p in range(0, pairs, 2):
        c0, c1 = c[p], c[p + 1]
        for k in range(0, whole, 4):
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            a00, a01, a02, a03 = a[p, k], a[p, k + 1], a[p, k + 2], a[p, k + 3]
            a10, a11, a12, a13 = a[p + 1, k], a[p + 1, k + 1], a[p + 1, k + 2], a[p + 1, k + 3]
            for j in range(b.shape[1]):
                x0, x1, x2, x3 = b0[j], b1[j], b2[j], b3[j]
                c0[j] = (((c0[j] + a00 * x0) + a01 * x1) + a02 * x2) + a03 * x3
                c1[j] = (((c1[j] + a10 * x0) + a11 * x1) + a12 * x2) + a13 * x3
    for p in range(len(c)):
        row = c[p]
        for k in range(whole if p < pairs else 0, len(b)):
            factor, other = a[p, k], b[k]
            for j in range(b.shape[1]):
                row[j] += factor * other[j]


@compiled
def _gram(x, minus, s):  # type: ignore[no-untyped-def]
    """s := X Xᵀ in float64 and minus := -Xᵀ, some columns of x at a time."""
    width, length = x.shape
    some, turned = np.empty((width, 32), np.float64), np.empty((32, width), np.float64)
    for start in range(0, length, 32):
        columns = min(32, length - start)
        for i in range(width):
            for k in range(columns):
                value = x[i, start + k]
                some[i, k] = value
                turned[k, i] = value
                minus[start + k, i] = -value
        _multiply_add(s, some, turned[:columns])


@compiled
def _reflect(x, minus, t, signs, s, t64):  # type: ignore[no-untyped-def]
    """`reflect` into given arrays, with float64 room for S and T."""
    width = len(x)
    for i in range(width):
        for j in range(i):
            x[i, j] = 0
    _gram(x, minus, s)
    for j in range(width):
        corner = np.float64(x[j, j])
        sign = -1.0 if corner < 0 else 1.0
        x[j, j] = corner + sign * np.sqrt(s[j, j])
        minus[j, j], signs[j] = -x[j, j], -sign
        added = np.float64(x[j, j]) - corner
        s[j, j] += added * (2 * corner + added)
        t64[j, j] = 2 / s[j, j]
        for i in range(j):
            s[i, j] += added * np.float64(x[i, j])
        for i in range(j):
            for r in range(j):
                t64[r, j] -= t64[r, i] * s[i, j]
        for r in range(j):
            t64[r, j] *= t64[j, j]
        for r in range(j + 1):
            t[r, j] = t64[r, j]


@compiled
def _apply_panel(q, v, minus, t, w, y):  # type: ignore[no-untyped-def]
    """`apply_panel`, some rows of q at a time, with zeroed room for its products."""
    for r in range(0, len(q), 32):
        _multiply_add(w, v[:, r : r + 32], q[r : r + 32])
    _multiply_add(y, t, w)
    for r in range(0, len(q), 32):
        _multiply_add(q[r : r + 32], minus[r : r + 32], y)


def reflect(x: Any) -> tuple[Any, Any, Any]:
    """`householder.reflect`, compiled."""
    width, length = x.shape
    minus, t = np.empty((length, width), x.dtype), np.zeros((width, width), x.dtype)
    signs = np.empty(width, x.dtype)
    _reflect(x, minus, t, signs, np.zeros((width, width)), np.zeros((width, width)))
    return minus, t, signs


def apply_panel(q: Any, v: Any, minus: Any, t: Any) -> None:
    """`householder.apply_panel`, compiled."""
    room = np.zeros((2, len(v), q.shape[1]), q.dtype)
    _apply_panel(q, v, minus, t, room[0], room[1])
