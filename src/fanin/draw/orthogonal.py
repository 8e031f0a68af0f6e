"""Random orthogonal matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fanin.draw import transform
from fanin.draw.distributions import DeltaOrthogonal, Orthogonal
from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.draw.philox import Stream


def fill_orthogonal(
    distribution: Orthogonal | DeltaOrthogonal, source: Stream, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The whole tensor."""
    batch = distribution.batch_dims if isinstance(distribution, Orthogonal) else 0
    if len(shape) < batch + 2 or shape[batch] % distribution.groups:
        raise ArgumentError(
            "Orthogonal",
            expected=f"a matrix after {batch} dimensions, divisible into {distribution.groups} groups",
            got=str(shape),
        )
    delta = isinstance(distribution, DeltaOrthogonal)
    count = math.prod(shape[:batch]) * distribution.groups
    rows = shape[batch] // distribution.groups
    columns = shape[batch + 1] if delta else math.prod(shape[batch + 1 :])
    long, short = max(rows, columns), min(rows, columns)
    words = source.words(0, -(-count * rows * columns // 4))
    drawn = transform.normal(words)[: count * rows * columns].reshape(count, long, short)
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    matrices = q if rows >= columns else np.swapaxes(q, 1, 2)
    gain = distribution.gain
    if distribution.keep == "second_moment":
        gain *= math.sqrt(max(1.0, rows / columns))
    matrices = (matrices * np.float32(gain)).astype(np.float32)
    if not delta:
        return matrices.reshape(shape)
    result = np.zeros(shape, np.float32)
    result[(slice(None), slice(None), *(n // 2 for n in shape[2:]))] = matrices.reshape(shape[:2])
    return result
