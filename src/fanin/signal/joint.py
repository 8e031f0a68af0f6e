"""Actual arrays with the second moments of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def sample(table: Table, generator: np.random.Generator, count: int | None = None) -> Array:
    """Draw a jointly Gaussian array with the mean and the second moments of a table.

    With a count, so many of them along a first axis.

    *Definition.* A sum of independent arrays, one for each set U of axes, that vary along U
    and are constant along the others; along each axis the variance that varies is
    T[same] - T[differ], and T[differ] stays.
    """
    k = len(table.factors)
    flat = table.flat()
    parts = flat.pairs.reshape((2,) * k)
    for a in range(k):
        same, differ = parts.take(0, a), parts.take(1, a)
        parts = np.stack([differ, same - differ], a)
    parts = np.asarray(np.maximum(parts, 0.0))
    parts[(0,) * k] = max(parts[(0,) * k] - flat.average**2, 0.0)
    lead = () if count is None else (count,)
    x = np.zeros((*lead, *table.factors))
    for varies in np.ndindex(*parts.shape):
        if parts[varies] > 0:
            shape = [n if v else 1 for n, v in zip(table.factors, varies, strict=True)]
            x = x + np.sqrt(parts[varies]) * generator.standard_normal((*lead, *shape))
    spread = np.maximum(table.same - table.mean**2, 0.0)
    level = float(parts.sum())
    scale = np.sqrt(spread / level) if level > 0 else 0.0
    return np.asarray(table.mean + scale * x).reshape((*lead, *table.shape))


def measured(drawn: Array, profiles: Sequence[int] = ()) -> Table:
    """The table of arrays that stand along a first axis, averaged over them.

    Along the axes of `profiles`, of one array, elements are told apart.
    """
    whole = Table.measured(drawn, (0, *(a + 1 for a in profiles)))
    k = len(whole.factors)
    mean, pairs = whole.mean.mean(0), whole.pairs.take(0, 0).mean(k - 1)
    return Table(whole.dims[1:], np.asarray(mean), np.asarray(pairs))
