"""An axis as its factors, outer to inner: splitting it into heads and joining it loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul


def boundaries(sizes: Sequence[int]) -> list[int]:
    """Number of elements at and below each factor, outer to inner.

    Example:
        >>> boundaries((2, 3, 4))
        [24, 12, 4]
    """
    return list(accumulate(reversed(list(sizes)), mul))[::-1]
