"""Products of matrices as tables, and the causal average, whose rows see different pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.table import Table, align, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def matmul(x: Table, y: Table) -> Table:
    """x @ y of independent arrays of at least two dimensions, with broadcasting in front."""
    rows = x.unsqueeze(len(x.dims))
    columns = y.unsqueeze(len(y.dims) - 2)
    return product(rows, columns).sum((-2,))


def transposed(x: Table) -> Table:
    """The last two dimensions swapped."""
    n = len(x.dims)
    return x.permute([*range(n - 2), n - 1, n - 2])


def averaged(weights: Table, values: Table) -> Table:
    """weights @ values where row i of the weights is an average over the columns up to i.

    *Definition.* Rows i and i' meet in sum_j a_ij a_i'j = m of equal columns, which lie before
    both, and in 1 - m of unequal ones, j up to i and j' up to i'; the values' covariance is
    averaged over these. The result is resolved: later rows take up causal averages again.
    """
    n = values.shape[-2]
    if n < 3 or weights.shape[-2:] != (n, n):
        return matmul(weights, values)
    by_row = _by_row(values.coarse((-2,)), n)
    rows = _meeting(weights.own(-1).own(-2), n).unsqueeze(len(weights.dims))
    equal, other = (product(_columns(rows, i), _columns(by_row, i)) for i in (0, 1))
    equal, other = align(equal, other)  # summed before they meet, as resolved rows are large
    return Table(equal.dims, n * equal.mean, n * equal.pairs + n * (n - 1) * other.pairs)


def returned(weights: Table, gradient: Table) -> Table:
    """The transposed weights @ gradient: column j gathers from the rows that see it.

    *Definition.* Columns j and j' gather from i >= j and i' >= j'. What rows i and i' have in
    common in equal columns lies in min(i, i') of them, the rest in the other pairs of columns.
    """
    n = gradient.shape[-2]
    if n < 3 or weights.shape[-2:] != (n, n):
        return matmul(transposed(weights), gradient)
    rows = _meeting(weights.own(-1).own(-2), n).unsqueeze(len(weights.dims))
    gradient = gradient.coarse((-2,))
    equal, other = (product(_columns(rows, i), gradient) for i in (0, 1))
    (a,), k = equal.axes((-2,)), len(equal.factors)
    count = np.arange(1, n + 1.0)
    both = np.minimum.outer(count, count)
    apart = np.multiply.outer(count, count) - both
    pairs = _gathered(other, n * (n - 1) / np.maximum(apart, 1) * (apart > 0))
    own = np.eye(n, dtype=bool)
    pairs = np.where(own, _gathered(equal, n / both), pairs)
    mean = equal.mean * (n / count).reshape([-1 if b == a else 1 for b in range(k)])
    mean = np.flip(np.cumsum(np.flip(mean, a), a), a)
    return Table(equal.dims, mean, np.moveaxis(pairs, (-2, -1), (a, k + a)))


def _gathered(x: Table, scale: Array) -> Array:
    """Pairs of rows [..., i', i] times a scale, summed over all rows from (i', i) on."""
    (a,), k = x.axes((-2,)), len(x.factors)
    pairs = np.moveaxis(x.pairs, (a, k + a), (-2, -1)) * scale
    return np.flip(np.flip(pairs, (-2, -1)).cumsum(-1).cumsum(-2), (-2, -1))


def _columns(x: Table, differ: int) -> Table:
    """The array [..., columns, features] of pairs of the same column (0) or of two (1)."""
    (j,), k = x.axes((-2,)), len(x.factors)
    pairs = x.pairs.mean(k + j).take(differ, j)
    return Table((*x.dims[:-2], x.dims[-1]), x.mean.mean(j), pairs)


def _meeting(rows: Table, n: int) -> Table:
    """Weights whose pairs of rows overlap as flat causal averages do, scaled to their averages."""
    (i,), (j,) = rows.axes((-2,)), rows.axes((-1,))
    k, count = len(rows.factors), np.arange(1, n + 1.0)
    flat = 1 / np.maximum.outer(count, count)
    base = (flat.sum(1) - np.diag(flat)) / (n - 1)
    average = np.moveaxis(rows.pairs.take([0], j).take(1, i), k - 1 + i, -1)
    scale = np.broadcast_to(average * n / base, (*average.shape[:-1], n))
    value = np.minimum(flat * (scale[..., None, :] + scale[..., :, None]) / 2, 1.0) / n
    met = np.concatenate([value, np.maximum(1 / n - value, 0.0) / (n - 1)], j - (i < j))
    met = np.moveaxis(met, (-2, -1), (i, k + i))
    own = np.ones(2 * k, dtype=int)
    own[[i, k + i]] = n
    pairs = np.where(np.eye(n, dtype=bool).reshape(own), rows.unfolded((i,)).pairs, met)
    return Table(rows.dims, rows.mean, pairs)


def _by_row(values: Table, n: int) -> Table:
    """The values [..., keys, features] as each row sees them, [..., rows, keys, features].

    Equal keys of rows i and i': the average of the values' second moments up to the earlier row.
    Unequal keys: the average over j up to i and j' up to i' without the equal ones.
    """
    (a,) = values.axes((-2,))
    k = len(values.factors)
    values = values.unfolded((a,))
    gram = np.moveaxis(values.pairs, (a, k + a), (-2, -1))
    count = np.arange(1, n + 1.0)
    early = np.minimum.outer(np.arange(n), np.arange(n))
    diagonal = np.cumsum(np.diagonal(gram, axis1=-2, axis2=-1), -1)[..., early]
    whole = np.cumsum(np.cumsum(gram, -1), -2)
    size = np.outer(count, count)
    equal = diagonal / (early + 1)
    other = (whole - diagonal) / np.maximum(size - early - 1, 1)
    other[..., 0, 0] = other[..., 0, 1]
    pairs = np.stack([equal, other], a)  # the axis of keys: same, another
    pairs = np.moveaxis(pairs, (-2, -1), (a, k + 1 + a))  # the rows go in front of the keys
    pairs = np.expand_dims(pairs, k + a + 2)
    mean = np.broadcast_to(values.mean, (*values.mean.shape[:a], n, *values.mean.shape[a + 1 :]))
    running = np.cumsum(mean, a) / count.reshape([-1 if b == a else 1 for b in range(k)])
    dims = (*values.dims[:-2], (n,), *values.dims[-2:])
    return Table(dims, np.expand_dims(running, a + 1), pairs)
