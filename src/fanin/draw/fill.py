"""`fill`: any block of a tensor, drawn in place, without the rest of the tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.draw import transform
from fanin.draw.distributions import (
    Constant,
    DeltaOrthogonal,
    Distribution,
    Normal,
    Orthogonal,
    Rademacher,
    TruncatedNormal,
    Uniform,
)
from fanin.draw.orthogonal import fill_orthogonal
from fanin.draw.philox import Stream, stream
from fanin.draw.rounding import FORMATS, Format, to_bits
from fanin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 2**16


def fill(
    out: NDArray[Any],
    distribution: Distribution,
    *,
    seed: int,
    name: str,
    shape: tuple[int, ...] | None = None,
    index: tuple[slice, ...] | None = None,
    dtype: str | None = None,
) -> NDArray[Any]:
    """Draw one block of a tensor into an array, in place.

    *Definition.* Element i (counted in row-major order over `shape`) of the tensor is a function of
    (seed, canonical name, i, distribution) alone; `out` receives the elements at `index`.

    Args:
        out: float16, float32 or float64, or the bits of a narrow type as uint16 or uint8; any
            strides.
        distribution: what to draw.
        seed: an integer in [0, 2^64).
        name: the tensor's full name.
        shape: of the whole tensor; `out.shape` if not given.
        index: the block, one slice a dimension; the whole tensor if not given.
        dtype: the type whose bits `out` holds, such as "bfloat16"; from `out` if not given.

    Returns:
        `out`.

    Raises:
        ArgumentError: the block does not fit `out`, or a value could exceed the type's range.
        ArgumentTypeError: `out` is of a type that cannot be drawn.

    Example:
        >>> whole = fill(np.empty((4, 6), np.float32), Normal(), seed=0, name="w")
        >>> part = fill(np.empty((2, 3), np.float32), Normal(), seed=0, name="w", shape=(4, 6),
        ...             index=(slice(1, 3), slice(0, 6, 2)))
        >>> bool((part == whole[1:3, 0:6:2]).all())
        True
    """
    shape = out.shape if shape is None else tuple(int(n) for n in shape)
    index = tuple(slice(None) for _ in shape) if index is None else tuple(index)
    if len(index) != len(shape):
        raise ArgumentError(
            "draw.fill(index)", expected=f"{len(shape)} slices", got=f"{len(index)}"
        )
    picked = [range(n)[s] for n, s in zip(shape, index, strict=True)]
    if out.shape != tuple(len(r) for r in picked):
        raise ArgumentError(
            "draw.fill(out)",
            expected=f"the block's shape {tuple(len(r) for r in picked)}",
            got=str(out.shape),
        )
    target = _format(out, dtype)
    if isinstance(distribution, (Orthogonal, DeltaOrthogonal)):
        values = fill_orthogonal(distribution, stream(seed, name), shape)[index]
        out[...] = _rounded(np.ascontiguousarray(values), target, out.dtype)
        return out
    source = stream(seed, name)
    flat = np.zeros((), np.int64)
    for n, r in zip(shape, picked, strict=True):
        flat = flat[..., None] * n + np.arange(r.start, r.stop, r.step, dtype=np.int64)
    if out.size == 0:
        return out
    positions = flat.reshape(-1)
    view = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
    for i in range(0, len(positions), CHUNK):
        at = positions[i : i + CHUNK]
        first, last = int(at.min()) // 4, int(at.max()) // 4
        if last - first > 8 * CHUNK:
            values = np.concatenate(
                [
                    _values(distribution, source, int(p) // 4, 1)[int(p) % 4 : int(p) % 4 + 1]
                    for p in at
                ]
            )
        else:
            values = _values(distribution, source, first, last - first + 1)[at - 4 * first]
        view[i : i + CHUNK] = _rounded(values, target, out.dtype)
    if not out.flags.c_contiguous:
        out[...] = view.reshape(out.shape)
    return out


def _format(out: NDArray[Any], dtype: str | None) -> Format:
    """The floating type that `out` holds."""
    name = dtype or out.dtype.name
    if name not in FORMATS:
        raise ArgumentTypeError("draw.fill(out)", expected="one of " + ", ".join(FORMATS), got=name)
    target = FORMATS[name]
    allowed = {np.dtype(target.storage)} | ({np.dtype(np.float16)} if name == "float16" else set())
    if out.dtype not in allowed:
        raise ArgumentTypeError(
            f"draw.fill(dtype={name!r})",
            expected=f"an array of {np.dtype(target.storage).name}",
            got=out.dtype.name,
        )
    return target


def _rounded(values: NDArray[Any], target: Format, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values as elements of the output array."""
    if target.mantissa >= 23:
        return values.astype(dtype)
    return to_bits(values, target).view(dtype)


def _values(
    distribution: Distribution, source: Stream, first: int, count: int
) -> NDArray[np.float32]:
    """Elements 4·first to 4·(first + count) as float32."""
    F = np.float32
    if isinstance(distribution, Constant):
        return np.full(4 * count, distribution.value, np.float32)
    words = source.words(first, count)
    if isinstance(distribution, Normal):
        return transform.normal(words) * F(distribution.std) + F(distribution.mean)
    words = np.ascontiguousarray(words.T).reshape(-1)
    if isinstance(distribution, Uniform):
        half = F((distribution.high - distribution.low) / 2)
        return transform.symmetric(words) * half + F(distribution.mean)
    if isinstance(distribution, TruncatedNormal):
        outside = math.erfc(distribution.bound / math.sqrt(2))
        z = transform.truncated(words, F(outside), F(1 - outside))
        return z * F(distribution.scale) + F(distribution.mean)
    assert isinstance(distribution, Rademacher)
    return transform.signs(words) * F(distribution.scale)
