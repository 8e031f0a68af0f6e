"""Second moments of pairs of elements, by the axes in which the two elements differ.

A tensor is modelled as an array that is exchangeable along each of its axes. Then all its second
moments are in one small table: for a set S of axes,

    T[S] = E[x_i x_j]   for any two elements i, j that differ in exactly the axes of S.

For an activation with axes (sample, position, channel), T[{}] is the second moment, T[{sample}] the
covariance (about zero) of two samples at one position and channel, T[{position}] that of two
positions of one sample, and T of all axes the squared mean, if nothing is shared.

Everything linear is exact on tables. The product of two independent tensors multiplies their
tables; a sum over an axis of n elements takes n T[same] + n (n - 1) T[differ]; so a matrix product
is a product and a sum, and a weight is a tensor like any other. Along an axis where elements are
not alike (positions near a zero-padded border, rows of causal attention, parts of a
concatenation) the table holds a profile: one number for each index of the first element.

The positions of a causal network, the more alike the earlier they are, can be kept pair by pair
(a resolved axis). An axis is kept as its factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.border import beside
from fanin.signal.factors import boundaries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Above so many numbers a table averages its evenest profile; above so many it folds resolved axes.
_LARGEST, RESOLVED = 1 << 15, 1 << 18


@dataclass(frozen=True, eq=False)
class Table:
    """Mean and second moments of an array, by the axes in which two elements differ.

    Args:
        dims: for each dimension its factors, outer to inner; a dimension of size 1 has none.
        mean: E[x_i], with one axis for each factor, of size 1 or (a profile) of the factor's size.
        pairs: T[S]; first one axis for each factor, of size 2 (0: j has the same index as i, 1:
            another) or, where the axis is resolved, of the factor's size (j's index); then the
            axes of the profile of element i, as in `mean`.

    Example:
        >>> x = Table.iid((8, 100), mean=0.5, second_moment=1.0)
        >>> average = x.sum((1,), keepdim=False) * (1 / 100)
        >>> round(average.second_moment, 6)  # 0.25 + 0.75 / 100
        0.2575
    """

    dims: tuple[tuple[int, ...], ...]
    mean: Array
    pairs: Array

    # --- making ------------------------------------------------------------------------------

    @classmethod
    def iid(cls, shape: Sequence[int], mean: float = 0.0, second_moment: float = 1.0) -> Table:
        """The table of independent elements of one distribution."""
        dims = tuple((n,) if n != 1 else () for n in shape)
        k = sum(map(len, dims))
        pairs = np.full((2,) * k + (1,) * k, float(mean) ** 2)
        pairs[(0,) * k] = second_moment
        return cls(dims, np.full((1,) * k, float(mean)), pairs)

    @classmethod
    def constant(cls, shape: Sequence[int], value: float) -> Table:
        """The table of an array whose elements are all one known number."""
        return cls.iid(shape, value, value**2)

    @classmethod
    def measured(cls, array: Array, profiles: Sequence[int] = ()) -> Table:
        """The table of an actual array: averages over all its pairs of elements.

        *Definition.* With P[U] the mean of the product of the averages over the axes U, one axis at
        a time T[differ] = (n P[averaged] - P[kept]) / (n - 1). Along the axes of `profiles` one
        number is kept for each index of the first element.
        """
        x = np.asarray(array, dtype=np.float64)
        shape = x.shape
        wide = [a for a, n in enumerate(shape) if n != 1]
        x = x.reshape([shape[a] for a in wide])
        k, kept_axes = x.ndim, [i for i, a in enumerate(wide) if a in profiles]
        rest = tuple(i for i in range(k) if i not in kept_axes)
        lead = tuple(n if i in kept_axes else 1 for i, n in enumerate(x.shape))
        pairs = np.empty((2,) * k + lead)
        for mask in np.ndindex(*(2,) * k):
            axes = tuple(a for a in range(k) if mask[a])
            first = x.mean(axis=tuple(a for a in axes if a in rest), keepdims=True)
            both = first * x.mean(axis=axes, keepdims=True)
            pairs[mask] = both.mean(axis=rest, keepdims=True)
        for a, n in enumerate(x.shape):
            kept, averaged = pairs.take(0, a), pairs.take(1, a)
            pairs = np.stack([kept, (n * averaged - kept) / (n - 1)], a)
        dims = tuple((n,) if n != 1 else () for n in shape)
        mean = x.mean(axis=rest, keepdims=True) if x.size else np.zeros((1,) * k)
        return cls(dims, mean, pairs)

    # --- reading -----------------------------------------------------------------------------

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """Sizes of all factors, outer to inner."""
        return tuple(n for dim in self.dims for n in dim)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(prod(dim) for dim in self.dims)

    @cached_property
    def second_moment(self) -> float:
        """E[x^2], averaged over the elements."""
        return float(self.same.mean())

    @cached_property
    def average(self) -> float:
        """E[x], averaged over the elements."""
        return float(self.mean.mean())

    @property
    def variance(self) -> float:
        """E[x^2] - E[x]^2, averaged over the elements."""
        return float(np.mean(self.same - self.mean**2))

    @property
    def same(self) -> Array:
        """T[{}] with its profile."""
        pairs, k = self.pairs, len(self.factors)
        for a in self.resolved:
            diagonal = np.diagonal(pairs, axis1=a, axis2=k + a)[..., None]
            pairs = np.expand_dims(np.moveaxis(diagonal[..., 0], -1, k - 1 + a), a)
        return np.asarray(pairs[(0,) * k])

    @property
    def resolved(self) -> tuple[int, ...]:
        """The axes whose pairs are kept one by one."""
        k = len(self.factors)
        return tuple(a for a in range(k) if self.pairs.shape[a] != 2)

    def folded(self, axes: Sequence[int] | None = None) -> Table:
        """Resolved axes as two numbers again: the same index, and the average over the others."""
        pairs, k = self.pairs, len(self.factors)
        for a in self.resolved:
            if axes is None or a in axes:
                n = self.factors[a]
                same = np.moveaxis(np.diagonal(pairs, axis1=a, axis2=k + a), -1, k - 1 + a)
                pairs = np.stack([same, (pairs.sum(a) - same) / (n - 1)], a)
        return self if pairs is self.pairs else Table(self.dims, self.mean, pairs)

    def unfolded(self, axes: Sequence[int]) -> Table:
        """These axes resolved; a pair gets the average of what its two elements' profiles say."""
        pairs, k = self.pairs, len(self.factors)
        for a in axes:
            if pairs.shape[a] == 2:
                n = self.factors[a]
                same, differ = (np.moveaxis(pairs.take(i, a), k - 1 + a, -1) for i in (0, 1))
                differ = (differ[..., None, :] + differ[..., :, None]) / 2
                whole = np.where(np.eye(n, dtype=bool), same[..., None, :], differ)
                pairs = np.moveaxis(np.moveaxis(whole, -1, k - 1 + a), -1, a)
        return Table(self.dims, self.mean, pairs)

    def covariance(self, *dims: int) -> float:
        """E[x_i x_j] for two elements that differ in these dimensions and in no other."""
        whole = self.folded().coarse(tuple(range(len(self.dims))))
        mask: list[int] = []
        for d, dim in enumerate(whole.dims):
            mask += [int(d in dims or d - len(self.dims) in dims)] * len(dim)
        return float(whole.pairs[tuple(mask)].mean())

    def axes(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The factors' axes that belong to these dimensions."""
        n = len(self.dims)
        wanted = {d % n for d in dims} if n else set()
        starts = list(accumulate((len(d) for d in self.dims), initial=0))
        return tuple(a for d in sorted(wanted) for a in range(starts[d], starts[d + 1]))

    # --- the layout of the axes --------------------------------------------------------------

    def _split(self, axis: int, sizes: Sequence[int]) -> tuple[Array, Array]:
        """Mean and pairs with one factor written as several: two elements differ in any of them."""
        k, r = len(self.factors), len(sizes)
        differ, same = self.pairs.take(1, axis), self.pairs.take(0, axis)
        parts = np.stack([same] + [differ] * (2**r - 1), axis)
        shape = parts.shape
        split = sizes if self.mean.shape[axis] > 1 else (1,) * r
        pairs_split = sizes if shape[k + axis] > 1 else (1,) * r
        pairs = parts.reshape(
            *shape[:axis],
            *(2,) * r,
            *shape[axis + 1 : k + axis],
            *pairs_split,
            *shape[k + axis + 1 :],
        )
        mean = self.mean.reshape(*self.mean.shape[:axis], *split, *self.mean.shape[axis + 1 :])
        return mean, pairs

    def _merge(self, axis: int, count: int) -> tuple[Array, Array]:
        """Mean and pairs with neighbouring factors as one: unequal pairs are averaged."""
        k, sizes = len(self.factors), self.factors[axis : axis + count]
        n = prod(sizes)
        weights = np.ones(())
        for size in sizes:
            weights = np.multiply.outer(weights, np.array([1.0, size - 1.0]))
        weights = weights.reshape(-1) / (n - 1)

        def joined(x: Array, first: int) -> Array:
            profile = x.shape[first : first + count]
            if any(s > 1 for s in profile):
                x = np.broadcast_to(x, x.shape[:first] + sizes + x.shape[first + count :])
                profile = (n,)
            return x.reshape(*x.shape[:first], prod(profile), *x.shape[first + count :])

        pairs = joined(self.pairs, k + axis)
        pairs = pairs.reshape(*pairs.shape[:axis], 2**count, *pairs.shape[axis + count :])
        same = pairs.take(0, axis)
        rest = np.delete(pairs, 0, axis)
        differ = np.tensordot(weights[1:], np.moveaxis(rest, axis, 0), axes=1)
        return joined(self.mean, axis), np.stack([same, differ], axis)

    def refactored(self, dims: Sequence[Sequence[int]]) -> Table:
        """The same array with other factors; a boundary that does not stay is averaged away."""
        wanted = tuple(tuple(int(n) for n in d) for d in dims)
        if wanted == self.dims:
            return self
        old, new = boundaries(self.factors), boundaries([n for d in wanted for n in d])
        changed = [*old, 1]
        table = self.folded(
            [
                a
                for a in self.resolved
                if changed[a] not in new
                or (changed[a + 1] not in new and changed[a + 1] > 1)
                or any(changed[a + 1] < b < changed[a] for b in new)
            ]
        )
        factors = list(self.factors)
        for axis in range(len(old) - 1, 0, -1):  # bounds that must go: between axis-1 and axis
            if old[axis] not in new:
                mean, pairs = table._merge(axis - 1, 2)
                factors[axis - 1 : axis + 1] = [factors[axis - 1] * factors[axis]]
                table = Table((tuple(factors),), mean, pairs)
        for axis in range(len(factors) - 1, -1, -1):
            low = boundaries(factors)[axis + 1] if axis + 1 < len(factors) else 1
            high = low * factors[axis]
            inside = [b for b in new if low < b < high]
            if inside:
                edges = [high, *inside, low]
                sizes = [a // b for a, b in pairwise(edges)]
                mean, pairs = table._split(axis, sizes)
                factors[axis : axis + 1] = sizes
                table = Table((tuple(factors),), mean, pairs)
        return Table(wanted, table.mean, table.pairs)

    def coarse(self, dims: Sequence[int]) -> Table:
        """The same array with these dimensions as one factor each."""
        wanted = {d % len(self.dims) for d in dims}
        if all(len(self.dims[d]) <= 1 for d in wanted):
            return self
        return self.refactored(
            [(prod(dim),) if d in wanted and dim else dim for d, dim in enumerate(self.dims)]
        )

    def reshape(self, shape: Sequence[int]) -> Table:
        """A view with another shape; factors that the shape allows are kept."""
        bounds = sorted(set(boundaries(shape)), reverse=True)
        for b in boundaries(self.factors):
            if all(b % c == 0 or c % b == 0 for c in bounds):
                bounds.append(b)
        bounds = sorted({*bounds, 1} - {0}, reverse=True)
        dims, high = [], prod(shape)
        for n in shape:
            low = high // n
            edges = [b for b in bounds if low <= b <= high]
            dims.append(tuple(a // b for a, b in pairwise(edges)) if n > 1 else ())
            high = low
        return self.refactored(dims)

    def permute(self, order: Sequence[int]) -> Table:
        """The dimensions in another order."""
        k = len(self.factors)
        axes = [a for d in order for a in self.axes((d,))]
        pairs = self.pairs.transpose(axes + [k + a for a in axes])
        n = len(self.dims)
        return Table(tuple(self.dims[d % n] for d in order), self.mean.transpose(axes), pairs)

    def unsqueeze(self, dim: int) -> Table:
        """One more dimension of size 1 at this place."""
        dims = list(self.dims)
        dims.insert(dim % (len(dims) + 1), ())
        return Table(tuple(dims), self.mean, self.pairs)

    def squeeze(self, dim: int) -> Table:
        """A dimension of size 1 left out."""
        dim %= len(self.dims)
        return Table((*self.dims[:dim], *self.dims[dim + 1 :]), self.mean, self.pairs)

    def expand(self, shape: Sequence[int]) -> Table:
        """Dimensions of size 1 (and new ones in front) repeated: the copies are the same number."""
        missing = len(shape) - len(self.dims)
        dims: list[Sequence[int]] = [()] * missing + list(self.dims)
        return self._expanded(
            [dim or ((n,) if n > 1 else ()) for dim, n in zip(dims, shape, strict=True)]
        )

    def _expanded(self, dims: Sequence[Sequence[int]]) -> Table:
        """Repeated along dimensions that have no factors here, up to the factors given."""
        own: list[tuple[int, ...]] = [()] * (len(dims) - len(self.dims)) + list(self.dims)
        mean, pairs, axis, k = self.mean, self.pairs, 0, len(self.factors)
        for mine, wanted in zip(own, dims, strict=True):
            if not mine:
                for _ in wanted:
                    pairs = np.expand_dims(
                        np.repeat(np.expand_dims(pairs, axis), 2, axis), k + 1 + axis
                    )
                    mean = np.expand_dims(mean, axis)
                    axis, k = axis + 1, k + 1
            else:
                axis += len(mine)
        laid = [tuple(mine or wanted) for mine, wanted in zip(own, dims, strict=True)]
        return Table(tuple(laid), mean, pairs)

    # --- arithmetic --------------------------------------------------------------------------

    def __mul__(self, factor: float) -> Table:
        """Every element times a number."""
        return Table(self.dims, self.mean * factor, self.pairs * factor**2)

    def __add__(self, number: float) -> Table:
        """A number added to every element."""
        shift = 2 * number * self._paired_mean() + number**2
        return Table(self.dims, self.mean + number, self.pairs + shift)

    def _paired_mean(self) -> Array:
        """(E[x_i] + E[x_j]) / 2 for the pairs of each entry."""
        one, other = paired(self.mean, self)
        return (one + other) / 2

    def sum(self, dims: Sequence[int], keepdim: bool = False) -> Table:
        """Sums over dimensions.

        *Definition.* n T[same] + n (n - 1) T[differ] for each factor of n elements.
        """
        mean, pairs, k = self.mean, self.pairs, len(self.factors)
        for a in sorted(self.axes(dims), reverse=True):
            n = self.factors[a]
            if pairs.shape[a] != 2:
                pairs = pairs.sum(axis=(a, k + a))
            else:
                average = pairs.mean(axis=k + a)
                pairs = n * average.take(0, a) + n * (n - 1) * average.take(1, a)
            mean = n * mean.mean(axis=a)
            k -= 1
        summed = {d % len(self.dims) for d in dims} if self.dims else set()
        left = [() if d in summed else dim for d, dim in enumerate(self.dims)]
        if not keepdim:
            left = [dim for d, dim in enumerate(left) if d not in summed]
        return Table(tuple(left), mean, pairs)

    def average_over(self, dims: Sequence[int], keepdim: bool = False) -> Table:
        """Means over dimensions."""
        return self.sum(dims, keepdim) * (1 / prod(self.factors[a] for a in self.axes(dims)))

    def centred(self, dims: Sequence[int]) -> Table:
        """x minus its own average over dimensions.

        *Definition.* T[S] - R_i - R_j + R, with R_i = E[x_i average] and R its average.
        """
        k, over = len(self.factors), self.axes(dims)
        if set(over) & set(self.resolved):
            return self.folded(over).centred(dims)
        shared, mean = self.pairs, self.mean
        for a in over:
            n = self.factors[a]
            shared = (shared.take([0], a) + (n - 1) * shared.take([1], a)) / n
        mean = mean - mean.mean(axis=over, keepdims=True)
        other, level = shared, shared
        for a in over:
            averaged = np.broadcast_to(other.mean(axis=k + a, keepdims=True), other.shape)
            other = np.concatenate([other, averaged], a)
            level = level.mean(axis=k + a, keepdims=True)
        return Table(self.dims, mean, self.pairs - shared - other + level)._compact()

    def flat(self, dims: Sequence[int] | None = None) -> Table:
        """The same table without profiles (along these dimensions)."""
        over = self.axes(range(len(self.dims)) if dims is None else dims)
        axes = tuple(len(self.factors) + a for a in over)
        mean = self.mean.mean(axis=over, keepdims=True)
        return Table(self.dims, mean, self.folded(over).pairs.mean(axis=axes, keepdims=True))

    def _compact(self) -> Table:
        """Without profiles that say nothing, and without those that would not fit."""
        k = len(self.factors)
        mean, pairs = self.mean, self.pairs
        for a in range(k):
            if pairs.shape[a] == 2 and pairs.shape[k + a] > 1 and _constant(pairs, k + a):
                pairs = pairs.mean(axis=k + a, keepdims=True)
            if mean.shape[a] > 1 and _constant(mean, a):
                mean = mean.mean(axis=a, keepdims=True)
        if self.resolved and pairs.size > RESOLVED:
            return Table(self.dims, mean, pairs).folded()._compact()
        while not self.resolved and pairs.size > _LARGEST:
            level = pairs[(0,) * k]
            wide = [a for a in range(k) if level.shape[a] > 1]
            a = min(wide, key=lambda a: level.var(axis=a).mean())
            pairs, mean = pairs.mean(axis=k + a, keepdims=True), mean.mean(axis=a, keepdims=True)
        return Table(self.dims, mean, pairs)._joined()

    def _joined(self) -> Table:
        """Neighbouring factors of a dimension as one where nothing is lost by it."""
        axis, dims, table = 0, list(self.dims), self
        for d, dim in enumerate(self.dims):
            for at in range(len(dim) - 1, 0, -1):
                if table._alike(axis + at - 1):
                    mean, pairs = table._merge(axis + at - 1, 2)
                    mine = dims[d]
                    dims[d] = (*mine[: at - 1], mine[at - 1] * mine[at], *mine[at + 1 :])
                    table = Table(tuple(dims), mean, pairs)
            axis += len(dims[d])
        return table

    def _alike(self, a: int) -> bool:
        """Whether it does not matter in which of the factors a and a + 1 two elements differ."""
        k, shape = len(self.factors), self.pairs.shape
        if shape[a] != 2 or shape[a + 1] != 2 or shape[k + a] > 1 or shape[k + a + 1] > 1:
            return False
        if self.mean.shape[a] > 1 or self.mean.shape[a + 1] > 1:
            return False
        one = self.pairs.take(0, a)
        two = self.pairs.take(1, a)
        first, second, both = one.take(1, a), two.take(0, a), two.take(1, a)
        scale = 1e-12 * np.abs(self.pairs).max()
        return bool(
            (np.abs(first - both) <= scale).all() and (np.abs(second - both) <= scale).all()
        )

    # --- picking -----------------------------------------------------------------------------

    def gather(self, dim: int, index: Array, fill: float = 0.0) -> Table:
        """Elements of a dimension by index; -1 stands for the number `fill`.

        Slices, padding of every kind, rolls, repeats, nearest upsampling and tables of rows are
        all this.
        """
        index = np.asarray(index)
        table = self.own(dim % len(self.dims))
        mean, same, differ, _, a = table._parts(dim)
        n, size, inside = table.factors[a], len(index), index >= 0
        counts = np.bincount(index[inside], minlength=n)
        kept, repeats = int(inside.sum()), np.where(inside, counts[index] - 1.0, 0.0)
        level = table.average * fill
        if kept == size > 0 and (repeats == repeats[0]).all():  # one number for all of them
            inside, repeats = inside[:1], repeats[:1]

        def picked(x: Array) -> Array:
            return x[..., np.maximum(index, 0)] if x.shape[-1] > 1 else x

        equal, other = picked(same), picked(differ)
        beside = repeats * equal + (kept - 1 - repeats) * other + (size - kept) * level
        beyond = kept * level + (size - kept - 1) * fill**2
        here = np.where(inside, equal, fill**2)
        there = np.where(inside, beside, beyond) / max(size - 1, 1)
        return table._with(dim, size, np.where(inside, picked(mean), fill), here, there)

    def _parts(self, dim: int) -> tuple[Array, Array, Array, int, int]:
        """Mean, equal and other pairs of a dimension's one factor, its profile as last axis."""
        (a,) = self.axes((dim,))
        k = len(self.factors)
        same, differ = (np.moveaxis(self.pairs.take(i, a), k - 1 + a, -1) for i in (0, 1))
        return np.moveaxis(self.mean, a, -1), same, differ, k, a

    def own(self, dim: int) -> Table:
        """The same array with exactly one factor for this dimension, even if its size is 1."""
        dim %= len(self.dims)
        if dim not in self._opened:  # every slice of a tensor asks for it
            self._opened[dim] = self._with_own(dim)
        return self._opened[dim]

    @cached_property
    def _opened(self) -> dict[int, Table]:
        """What `own` gave."""
        return {}

    def _with_own(self, dim: int) -> Table:
        """See `own`."""
        table = self.coarse((dim,))
        if table.dims[dim]:
            return table.folded(table.axes((dim,)))
        (a,) = Table((*self.dims[:dim], (1,), *self.dims[dim + 1 :]), self.mean, self.pairs).axes(
            (dim,)
        )
        k = len(table.factors)
        pairs = np.expand_dims(np.repeat(np.expand_dims(table.pairs, a), 2, a), k + 1 + a)
        dims = (*table.dims[:dim], (1,), *table.dims[dim + 1 :])
        return Table(dims, np.expand_dims(table.mean, a), pairs)

    def _with(self, dim: int, size: int, mean: Array, same: Array, differ: Array) -> Table:
        """The factor of `dim` replaced: mean, equal and other pairs, its profile as last axis."""
        (a,) = self.axes((dim,))
        k, dim = len(self.factors), dim % len(self.dims)
        if size == 1:
            dims = (*self.dims[:dim], (), *self.dims[dim + 1 :])
            return Table(dims, mean.mean(-1), same.mean(-1))
        long = np.broadcast_shapes(same.shape, differ.shape)
        same, differ = (
            np.moveaxis(np.broadcast_to(x, long), -1, k - 1 + a) for x in (same, differ)
        )
        dims = (*self.dims[:dim], (size,), *self.dims[dim + 1 :])
        return Table(dims, np.moveaxis(mean, -1, a), np.stack([same, differ], a))._compact()

    def mixed(self, dim: int, matrix: Array) -> Table:
        """A known linear map along a dimension, y_o = sum_i M_oi x_i: pooling, upsampling, padding.

        *Definition.* E[y_o y_p] = sum_ij M_oi M_pj T, with T[same] where i = j.
        """
        table = self.own(dim % len(self.dims))
        mean, same, differ, _, _ = table._parts(dim)
        size = matrix.shape[0]
        rows, columns = matrix.sum(1, keepdims=True), matrix.sum(0)
        here = _weighed(same, matrix**2) + _weighed(differ, matrix * (rows - matrix))
        equal, other = columns - matrix, columns.sum() - rows - columns + matrix
        there = _weighed(same, matrix * equal) + _weighed(differ, matrix * other)
        return table._with(dim, size, _weighed(mean, matrix), here, there / max(size - 1, 1))

    def tapped(self, dim: int, taps: Array) -> Table:
        """The sum over the taps t of a sliding window of x[t] x'[t]: pairs of equal taps alone.

        This is what the variance of independent weights multiplies.

        Args:
            dim: the dimension that the window slides along.
            taps: index [output, tap] into the dimension; -1 where the tap falls outside (zero).
        """
        table = self.own(dim % len(self.dims))
        mean, same, differ, _, a = table._parts(dim)
        size, within, n = taps.shape[0], (taps >= 0).astype(float), table.factors[a]
        level = np.moveaxis(table.same, a, -1).reshape(-1, table.same.shape[a]).mean(0)
        partners = beside(taps, np.broadcast_to(np.maximum(level, 0.0), (n,)))

        def over(x: Array, weight: Array) -> Array:
            long = x[..., np.maximum(taps, 0)] if x.shape[-1] > 1 else x[..., None]
            return np.asarray((long * weight).sum(-1))

        return table._with(
            dim, size, over(mean, within), over(same, within), over(differ, partners)
        )


def paired(profile: Array, like: Table, lead: int = 0) -> tuple[Array, Array]:
    """A number of each element for both elements of a pair, laid out as the pairs of a table.

    The second is the same, another one's average, or, on a resolved axis, the other one's own.
    The first `lead` axes of the profile are carried along.
    """
    k = profile.ndim - lead
    one = profile.reshape(profile.shape[:lead] + (1,) * k + profile.shape[lead:])
    other = one
    for a in range(lead, lead + k):
        if profile.shape[a] == 1:
            continue
        if like.pairs.shape[a - lead] != 2:
            other = np.swapaxes(other, a, k + a)
        else:
            averaged = np.broadcast_to(other.mean(k + a, keepdims=True), other.shape)
            other = np.concatenate([other, averaged], a)
    return one, other


def _weighed(x: Array, weights: Array) -> Array:
    """Sums over the last axis of x (a profile, or one number for all) with rows of weights."""
    return np.asarray(x @ weights.T if x.shape[-1] > 1 else x * weights.sum(1))


def _constant(x: Array, axis: int) -> bool:
    """Whether an array does not change along an axis, to rounding."""
    along = np.moveaxis(x, axis, 0)
    size = 1e-9 * (max(-x.min(), x.max()) + 1e-300)
    if (np.abs(along[-1] - along[0]) > size).any():
        return False
    return bool((np.abs(along - along[0]) <= size).all())
