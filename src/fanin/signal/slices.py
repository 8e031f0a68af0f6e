"""Sums of slices of one tensor: the steps of a scan, or parts that a program adds up one by one.

Two slices of a tensor are correlated as its table says. A scan s_t = a_t s_(t-1) + b_t, written
out step by step over slices b_t, is a sum of them with factors that are independent of them:

    E[s_(t-1) b_t] = sum over u < t of E[a_(u+1) ... a_(t-1)] E[b_u b_t],

so that the mean of the factors' sum, carried along, is all that its second moments need.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.table import Table, add, align, paired, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Slices:
    """That a tensor is a sum of slices of another, each times something independent of it.

    Args:
        parent: names the tensor and the dimension that is sliced.
        beside: E[x_i y_j] of the last slice x and another one y, as the pairs of a table.
        weight: the mean of the sum of the factors, as the mean of a table.
    """

    parent: Hashable
    beside: Table
    weight: Table


def slice_of(parent: Hashable, table: Table, dim: int, index: int) -> Slices:
    """One slice of a tensor."""
    mean, _, differ, _, _ = table.own(dim)._parts(dim)
    at = index if differ.shape[-1] > 1 else 0
    left = table.own(dim)
    dims = (*left.dims[:dim], *left.dims[dim + 1 :])
    beside = Table(dims, mean.mean(-1), differ[..., at])
    return Slices(parent, beside, Table.constant(beside.shape, 1.0))


def together(first: Slices | None, second: Slices | None, table: Table) -> Array | None:
    """E[x_i y_j] of two sums of slices of one tensor, laid out as a table; None if they are not."""
    if first is None or second is None or first.parent != second.parent:
        return None
    beside, laid = align(second.beside, table)
    weight, _ = align(product(first.weight, second.weight), table)
    if not laid.dims == table.dims == beside.dims == weight.dims or table.resolved:
        return None
    one, other = paired(weight.mean, table)
    return np.asarray(beside.pairs * (one + other) / 2)


def joined(first: Slices | None, second: Slices | None, a: float, b: float) -> Slices | None:
    """a x + b y of two sums of slices of one tensor."""
    if first is None or second is None:
        return None
    return replace(second, weight=add(first.weight * a, second.weight, b))


def scaled(slices: Slices | None, factor: Table) -> Slices | None:
    """A sum of slices times an independent tensor; None where that has no mean."""
    if slices is None or abs(factor.average) <= 1e-9 * factor.second_moment**0.5:
        return None
    return replace(slices, weight=product(slices.weight, factor.folded()))
