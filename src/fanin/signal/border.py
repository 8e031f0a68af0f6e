"""What zero padding leaves of the pairs of positions under a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def beside(taps: Array, level: Array) -> Array:
    """For each output and tap, the share of an element's pairs whose other is reached as well.

    *Definition.* A window moves both elements of a pair alike, so zero padding takes the pair with
    the first of them: C(i, j) is proportional to l(min(i, j)) r(max(i, j)), with l and r the
    running maxima from either end of the second moments. Where these are flat, pairs are alike.

    Args:
        taps: index [output, tap] into the input; -1 where the tap falls outside.
        level: E[x_i^2] of each input.
    """
    n, (size, count) = len(level), taps.shape
    left = np.maximum.accumulate(level)[:, None]
    right = np.maximum.accumulate(level[::-1])[::-1, None]
    reached = np.zeros((n, count))
    rows, columns = np.nonzero(taps >= 0)
    np.add.at(reached, (taps[rows, columns], columns), 1.0)

    def met(present: Array) -> Array:
        before, after = left * present, right * present
        below = np.cumsum(before, axis=0) - before
        above = after.sum(0) - np.cumsum(after, axis=0)
        return np.asarray(right * below + left * above)

    share = met(reached) / np.maximum(met(np.ones((n, 1))), 1e-300) * (n - 1) / max(size - 1, 1)
    return np.asarray((taps >= 0) * share[np.maximum(taps, 0), np.arange(count)])
