"""Tables together: products, sums and concatenations of arrays that are modelled by tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.factors import boundaries
from fanin.signal.pairs import RESOLVED, Table, paired

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Table", "add", "align", "concatenate", "paired", "product", "total"]


def align(first: Table, second: Table) -> tuple[Table, Table]:
    """Two tables broadcast to one shape with the same factors, resolved alike."""
    n = max(len(first.dims), len(second.dims))
    a = [()] * (n - len(first.dims)) + list(first.dims)
    b = [()] * (n - len(second.dims)) + list(second.dims)
    one, two, both = [], [], []
    for p, q in zip(a, b, strict=True):
        common = _common(p, q) if p and q else (p or q)
        one.append(common if p else ())
        two.append(common if q else ())
        both.append(common)
    x = first.refactored(one[n - len(first.dims) :])._expanded(both)
    y = second.refactored(two[n - len(second.dims) :])._expanded(both)
    axes = sorted({*x.resolved, *y.resolved})
    size = prod(map(max, x.pairs.shape, y.pairs.shape))
    if axes and size > RESOLVED:
        return x.folded(), y.folded()
    return (x.unfolded(axes), y.unfolded(axes)) if axes else (x, y)


def product(first: Table, second: Table) -> Table:
    """The elementwise product of two independent arrays, with broadcasting."""
    x, y = align(first, second)
    return Table(x.dims, x.mean * y.mean, x.pairs * y.pairs)._compact()


def add(first: Table, second: Table, scale: float = 1.0, cross: Array | None = None) -> Table:
    """first + scale * second, with broadcasting; `cross` is E[x_i y_j] (independent if None)."""
    x, y = align(first, second)
    if cross is None:
        x_one, x_other = paired(x.mean, x)
        y_one, y_other = paired(y.mean, y)
        cross = (x_one * y_other + x_other * y_one) / 2
    pairs = x.pairs + 2 * scale * cross + scale**2 * y.pairs
    return Table(x.dims, x.mean + scale * y.mean, pairs)._compact()


def total(tables: Sequence[Table]) -> Table:
    """The sum of independent arrays of one shape."""
    whole, *rest = tables
    if all(t.dims == whole.dims and not t.resolved and not t.mean.any() for t in tables):
        pairs = sum((t.pairs for t in rest), whole.pairs)
        return Table(whole.dims, whole.mean, pairs)._compact() if rest else whole
    for table in rest:
        whole = add(whole, table)
    return whole


def concatenate(
    tables: Sequence[Table], dim: int, cross: Callable[[int, int], Array | None] | None = None
) -> Table:
    """Arrays side by side along a dimension: sizes weigh, and the parts stay a profile.

    `cross(i, j)` is E[x y] of parts i and j with the axis of `dim` left out, None if independent.
    """
    n = len(tables[0].dims)
    dim %= n
    sizes = [t.shape[dim] for t in tables]
    total = sum(sizes)
    opened = [t.own(dim) for t in tables]
    factors = []
    for d in range(n):
        common = opened[0].dims[d]
        for t in opened[1:]:
            common = _common(common, t.dims[d]) if d != dim else common
        factors.append(common)
    laid = [t.refactored([factors[d] if d != dim else t.dims[d] for d in range(n)]) for t in opened]
    (a,) = laid[0].axes((dim,))
    axes = sorted({i for t in laid for i in t.resolved} - {a})
    laid, k = [t.unfolded(axes) for t in laid], len(laid[0].factors)
    if axes and total * max(t.pairs.size for t in laid) > RESOLVED and not _equal(laid):
        laid = [t.folded() for t in laid]  # as the whole would be, once it had been filled
    profile = np.broadcast_shapes(*[np.delete(t.pairs.shape[k:], a) for t in laid])
    lead = np.broadcast_shapes(*[np.delete(t.pairs.shape[:k], a) for t in laid])

    def wide(x: Array, size: int, lead: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, (*lead, *profile, size))

    means, sames, differs = [], [], []
    others = [size * _other(t, laid[0], a) for t, size in zip(laid, sizes, strict=True)]
    everything = sum(others)
    for i, (t, size) in enumerate(zip(laid, sizes, strict=True)):
        mean, same, differ, _, _ = t._parts(dim)
        one, _ = paired(t.mean.mean(a), _without(t, a))
        known = {j: met for j in range(len(laid)) if cross and j != i
                 if (met := cross(i, j)) is not None}  # fmt: skip
        rest = everything - others[i] - sum(others[j] for j in known)
        apart = (size - 1) * differ + np.asarray(one * rest)[..., None]
        for j, met in known.items():
            apart = apart + sizes[j] * met
        means.append(wide(mean, size, ()))
        sames.append(wide(same, size, lead))
        differs.append(wide(apart / max(total - 1, 1), size, lead))
    dims = tuple((total,) if d == dim else f for d, f in enumerate(factors))
    shell = Table(dims, laid[0].mean, laid[0].pairs)
    mean, same, differ = (np.concatenate(x, -1) for x in (means, sames, differs))
    return shell._with(dim, total, mean, same, differ)


def _equal(tables: Sequence[Table]) -> bool:
    """Whether all hold the same numbers."""
    return all(
        np.array_equal(t.pairs, tables[0].pairs) and np.array_equal(t.mean, tables[0].mean)
        for t in tables[1:]
    )


def _without(table: Table, axis: int) -> Table:
    """The table of one entry of an axis."""
    k = len(table.factors) - 1
    return Table((), table.mean.mean(axis), table.pairs.take(0, axis).mean(k + axis))


def _other(table: Table, like: Table, axis: int) -> Array:
    """E[y] of a part for the second element of every pair, the axis of the parts averaged."""
    return paired(table.mean.mean(axis), _without(like, axis))[1]


def _common(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Factors that are as fine as both allow together, else as coarse as both need."""
    if tuple(first) == tuple(second):
        return tuple(first)
    a, b = set(boundaries(first)), set(boundaries(second))
    union = sorted(a | b, reverse=True)
    chain = all(x % y == 0 for x, y in pairwise(union))
    edges = [*(union if chain else sorted(a & b, reverse=True)), 1]
    return tuple(x // y for x, y in pairwise(edges))
