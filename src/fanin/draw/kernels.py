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
SIGN, EXPONENT, UPPER = np.uint32(0x80000000), np.uint32(0x7F800000), np.uint32(0xFFFF0000)
EIGHT, SIXTEEN, TWENTY_FOUR = np.uint32(8), np.uint32(16), np.uint32(24)
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


def narrow(name: str) -> tuple[Any, Any, Any, Any]:
    """What `_narrowed` needs of a format: bits dropped, the same in an exponent, the least normal
    number, and what is too much in every element of a packed word.
    """
    width = 8 * np.dtype(FORMATS[name].storage).itemsize
    drop, _, least, _, _ = (int(c) for c in constants(FORMATS[name]))
    excess = sum((least >> drop) << at for at in range(0, 32, width)) % 2**32
    return np.uint32(drop), np.uint32(drop << 23), np.int32(least), np.uint32(excess)


H_DROP, H_STEP, H_LEAST, H_EXCESS = narrow("float16")
P_DROP, P_STEP, P_LEAST, P_EXCESS = narrow("float8_e4m3fn")
Q_DROP, Q_STEP, Q_LEAST, Q_EXCESS = narrow("float8_e5m2")


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
def _normals(words, blocks, z, out, std, mean, whole):  # type: ignore[no-untyped-def]
    """Into `out` in order where that is `whole`, else into the rows of z by word."""
    for j in (0, 2):
        _radii(words[j], blocks, z[j], std)
    angle0, angle1, z0, z1, z2, z3 = words[1], words[3], z[0], z[1], z[2], z[3]
    if whole:
        for i in range(blocks):
            a, b = _angle(angle0[i], z0[i])
            c, d = _angle(angle1[i], z2[i])
            out[4 * i] = a + mean
            out[4 * i + 1] = b + mean
            out[4 * i + 2] = c + mean
            out[4 * i + 3] = d + mean
        return
    for i in range(blocks):
        a, b = _angle(angle0[i], z0[i])
        z0[i] = a + mean
        z1[i] = b + mean
    for i in range(blocks):
        c, d = _angle(angle1[i], z2[i])
        z2[i] = c + mean
        z3[i] = d + mean


@inlined
def _uniform(word, half, centre):  # type: ignore[no-untyped-def]
    return (np.float32(np.int32(np.int32(word) >> np.int32(8))) + HALF) * half + centre


@compiled
def _uniforms(words, blocks, z, out, half, centre, whole):  # type: ignore[no-untyped-def]
    """Into `out` in order where that is `whole`, else into the rows of z by word."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    if whole:
        for i in range(blocks):
            out[4 * i] = _uniform(w0[i], half, centre)
            out[4 * i + 1] = _uniform(w1[i], half, centre)
            out[4 * i + 2] = _uniform(w2[i], half, centre)
            out[4 * i + 3] = _uniform(w3[i], half, centre)
        return
    for j in range(4):
        word, row = words[j], z[j]
        for i in range(blocks):
            row[i] = _uniform(word[i], half, centre)


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


@inlined
def _bits(value):  # type: ignore[no-untyped-def]
    return np.float32(value).view(np.uint32)


@inlined
def _bfloat16(value):  # type: ignore[no-untyped-def]
    """Rounded to nearest even at bit 16: the upper half is the result."""
    odd = np.uint32(np.uint32(_bits(value) >> SIXTEEN) & np.uint32(1))
    return np.uint32(_bits(value) + np.uint32(0x7FFF) + odd)


@compiled
def _to_bfloat16(z, blocks, out):  # type: ignore[no-untyped-def]
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for i in range(blocks):
        out[2 * i] = np.uint32(_bfloat16(z0[i]) >> SIXTEEN) | np.uint32(_bfloat16(z1[i]) & UPPER)
        out[2 * i + 1] = np.uint32(_bfloat16(z2[i]) >> SIXTEEN) | np.uint32(
            _bfloat16(z3[i]) & UPPER
        )


@inlined
def _narrowed(value, drop, step, least):  # type: ignore[no-untyped-def]
    """`rounding.to_bits` of the size of one value, and (least >> drop) too much.

    The size is added to the power of two whose last place is the size's last place in the format,
    or that of the least normal number where the size is less; so the addition rounds.
    """
    size = np.uint32(_bits(value) & np.uint32(0x7FFFFFFF))
    exponent = np.uint32(max(np.int32(size & EXPONENT), least))
    power = np.uint32(exponent + step)
    rounded = _bits(size.view(np.float32) + power.view(np.float32))
    return np.uint32(np.uint32(rounded - power) + np.uint32(exponent >> drop))


@inlined
def _two(a, b):  # type: ignore[no-untyped-def]
    """Two values of float16 in one word."""
    first = _narrowed(a, H_DROP, H_STEP, H_LEAST)
    second = _narrowed(b, H_DROP, H_STEP, H_LEAST)
    sizes = np.uint32(np.uint32(first + np.uint32(second << SIXTEEN)) - H_EXCESS)
    low = np.uint32(np.uint32(_bits(a) & SIGN) >> SIXTEEN)
    return np.uint32(sizes | np.uint32(low | np.uint32(_bits(b) & SIGN)))


@compiled
def _to_float16(z, blocks, out):  # type: ignore[no-untyped-def]
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for i in range(blocks):
        out[2 * i] = _two(z0[i], z1[i])
        out[2 * i + 1] = _two(z2[i], z3[i])


@inlined
def _four(a, b, c, d, drop, step, least, excess):  # type: ignore[no-untyped-def]
    """Four values of an 8-bit format in one word."""
    low = np.uint32(
        _narrowed(a, drop, step, least) + np.uint32(_narrowed(b, drop, step, least) << EIGHT)
    )
    high = np.uint32(
        _narrowed(c, drop, step, least) + np.uint32(_narrowed(d, drop, step, least) << EIGHT)
    )
    sizes = np.uint32(np.uint32(low + np.uint32(high << SIXTEEN)) - excess)
    signs = np.uint32(np.uint32(_bits(a) & SIGN) >> TWENTY_FOUR)
    signs |= np.uint32(np.uint32(_bits(b) & SIGN) >> SIXTEEN)
    signs |= np.uint32(np.uint32(_bits(c) & SIGN) >> EIGHT)
    return np.uint32(sizes | np.uint32(signs | np.uint32(_bits(d) & SIGN)))


@compiled
def _to_e4m3(z, blocks, out):  # type: ignore[no-untyped-def]
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for i in range(blocks):
        out[i] = _four(z0[i], z1[i], z2[i], z3[i], P_DROP, P_STEP, P_LEAST, P_EXCESS)


@compiled
def _to_e5m2(z, blocks, out):  # type: ignore[no-untyped-def]
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for i in range(blocks):
        out[i] = _four(z0[i], z1[i], z2[i], z3[i], Q_DROP, Q_STEP, Q_LEAST, Q_EXCESS)


@compiled
def _store(z, blocks, out, form):  # type: ignore[no-untyped-def]
    """Rows by word into the bytes of a type of `FORMS`, in order; `out` is words of 32 bits."""
    if form == FLOAT32:
        _interleave(z, blocks, out.view(np.float32))
    elif form == BFLOAT16:
        _to_bfloat16(z, blocks, out)
    elif form == FLOAT16:
        _to_float16(z, blocks, out)
    elif form == E4M3:
        _to_e4m3(z, blocks, out)
    else:
        _to_e5m2(z, blocks, out)


@compiled
def _tile(out, first, blocks, scratch, z, kind, p, source, form):  # type: ignore[no-untyped-def]
    """All elements of consecutive blocks."""
    _philox(scratch, first, blocks, source)
    words, whole = scratch.view(np.uint32), form == FLOAT32
    if kind == NORMAL:
        _normals(words, blocks, z, out.view(np.float32), p[1], p[0], whole)
    elif kind == UNIFORM:
        _uniforms(words, blocks, z, out.view(np.float32), p[1], p[0], whole)
    elif kind == TRUNCATED:
        for j in range(4):
            _centres(words[j], blocks, z[4], z[j], p[2], p[3])
            if p[3] < TAIL_NEEDED:
                _tails(blocks, z[4], z[j])
            _signed(words[j], blocks, z[j], p[1], p[0])
    else:
        for j in range(4):
            _signs(words[j], blocks, z[j], p[0])
    if not (whole and kind <= UNIFORM):
        _store(z, blocks, out, form)


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
    aside = np.empty(4 * BLOCKS, np.uint32)
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
            if count == 4 * blocks and target.ctypes.data % 4 == 0:
                _tile(target.view(np.uint32), first, blocks, scratch, z, kind, p, source, form)
            else:
                _tile(aside, first, blocks, scratch, z, kind, p, source, form)
                target[:] = aside.view(np.uint8)[size * skip : size * (skip + count)]
            done += count
            at += count
