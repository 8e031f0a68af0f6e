"""The elementwise draws in torch's own operations, for tensors on a GPU.

The integers are those of `draw.philox`, and the float32 operations those of `draw.transform` in the
same order, each rounded once; so the values are the CPU's, bit for bit, wherever the device
rounds +, -, * and square roots as IEEE 754 says. Torch has no unsigned 32-bit arithmetic: words
live in int64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fanin import draw
from fanin.draw import transform
from fanin.draw.blocks import block
from fanin.draw.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, Stream, stream
from fanin.draw.rounding import FORMATS, check_range

LOW = 0xFFFFFFFF
AT_A_TIME = 2**18  # elements; the operations' scratch memory stays below 64 MiB


def covers(tensor: Tensor, distribution: draw.Distribution) -> bool:
    """Whether a tensor is drawn on its device; others are drawn in memory and copied."""
    elementwise = isinstance(
        distribution, draw.Normal | draw.Uniform | draw.TruncatedNormal | draw.Rademacher
    )
    return tensor.is_cuda and elementwise and tensor.dtype != torch.float64


def fill(
    tensor: Tensor,
    distribution: draw.Distribution,
    *,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> None:
    """`draw.fill` for a float32 or narrower tensor on any device that torch computes on."""
    check_range(distribution, FORMATS[str(tensor.dtype).removeprefix("torch.")])
    part = block(shape, index, tuple(tensor.shape))
    kind, numbers = distribution.transform()  # type: ignore[union-attr]
    source, where = stream(seed, name), tensor.device
    flat = tensor.view(-1) if tensor.is_contiguous() else torch.empty(tensor.numel()).to(tensor)
    for at, starts, length in part.rows(AT_A_TIME):
        first = torch.from_numpy(starts).to(where)[:, None]
        skip = first % 4
        touched = (int(starts.max() % 4) + length + 3) // 4
        blocks = first // 4 + torch.arange(touched, device=where)
        words = _words(source, blocks.reshape(-1))
        values = _TRANSFORMS[kind](words, *numbers).T.reshape(len(starts), 4 * touched)
        wanted = skip + torch.arange(length, device=where)
        picked = values.gather(1, wanted).reshape(-1)
        flat[at : at + picked.numel()] = picked.to(tensor.dtype)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _words(source: Stream, blocks: Tensor) -> Tensor:
    """Words of numbered blocks [n] as int64 [4, n] in [0, 2^32)."""
    c0, c1 = blocks & LOW, blocks >> 32
    c2, c3 = (torch.full_like(blocks, word) for word in source.lane)
    for i in range(ROUNDS):
        k0, k1 = ((k + i * s) % 2**32 for k, s in zip(source.key, KEY_STEPS, strict=True))
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64, seen as signed
        c0, c1, c2, c3 = (b >> 32 & LOW) ^ c1 ^ k0, b & LOW, (a >> 32 & LOW) ^ c3 ^ k1, a & LOW
    return torch.stack((c0, c1, c2, c3))


def _minus_log(x: Tensor, halvings: int = 0) -> Tensor:
    bits = x.view(torch.int32) - (transform.TWO_THIRDS + (halvings << 23))
    exponent = (bits >> 23).to(torch.float32)
    f = ((bits & 0x7FFFFF) + transform.TWO_THIRDS).view(torch.float32) - 1.0
    c0, c1, c2, c3, c4, c5, c6 = transform.LOG
    f2 = f * f
    high, low = f2 * c6 + (f * c5 + c4), (f * c3 + c2) * f2 + (f * c1 + c0)
    return (exponent * -transform.LN2 - (f2 * -0.5 + f)) - (f2 * f) * (high * (f2 * f2) + low)


def _root(x: Tensor) -> Tensor:
    """The square root, rounded correctly: in float64, since torch's float32 root is not always."""
    return x.to(torch.float64).sqrt().to(torch.float32)


def _flip(values: Tensor, words: Tensor, bit: int) -> Tensor:
    return torch.where(words >> bit & 1 == 1, -values, values)


def _upper(words: Tensor) -> Tensor:
    return (words >> 1).to(torch.int32).to(torch.float32) + 0.5


def _normal(words: Tensor, mean: float, std: float) -> Tensor:
    radius = _root(_minus_log(_upper(words[0::2]), 31)) * std
    angle = words[1::2]
    w = (angle >> 9 | 0x3F800000).to(torch.int32).view(torch.float32) - 1.5
    t = w * w
    s0, s1, s2, s3 = transform.SIN
    c0, c1, c2 = transform.COS
    sine = ((t * s3 + s2) * (t * t) + (t * s1 + s0)) * w
    cosine = (t * t * c2 + (t * c1 + c0)) * t + 1.0
    first = _flip(radius * (cosine - sine), angle, 0) + mean
    second = _flip(radius * (cosine + sine), angle, 1) + mean
    return torch.stack((first[0], second[0], first[1], second[1]))


def _uniform(words: Tensor, centre: float, half: float) -> Tensor:
    signed = words.to(torch.int32) >> 8
    return (signed.to(torch.float32) + 0.5) * (half * 2.0**-23) + centre


def _truncated(words: Tensor, mean: float, scale: float, inside: float, outside: float) -> Tensor:
    q = _upper(words) * (inside * 2.0**-31) + outside
    x = 1.0 - q
    v = _minus_log(q * (x + 1.0))
    far = _pairs(transform.TAIL, _root(v) - transform.TAIL_CENTRE)
    z = torch.where(v < 5.0, _pairs(transform.CENTRE, v) * x, far)
    return _flip(z, words, 0) * scale + mean


def _pairs(c: tuple[float, ...], x: Tensor) -> Tensor:
    """The polynomials of ten coefficients, in the order of `transform`."""
    x2 = x * x
    x4 = x2 * x2
    low = (x * c[3] + c[2]) * x2 + (x * c[1] + c[0])
    high = (x * c[7] + c[6]) * x2 + (x * c[5] + c[4])
    return ((x * c[9] + c[8]) * x4 + high) * x4 + low


def _rademacher(words: Tensor, scale: float) -> Tensor:
    return _flip(torch.full(words.shape, scale, device=words.device), words, 31)


_TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "truncated": _truncated,
    "rademacher": _rademacher,
}
