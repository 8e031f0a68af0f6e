"""Parameters whose content is fixed: what they hold differs along an axis, and is known there.

The time steps and decays of a state-space layer are not drawn anew: what stands in channel c stays
there at every position. Their table keeps one number for each element of the axis along which they
vary, so that everything made of them is conditional on them. A long axis is kept in groups: its
elements are put in order of size first, a renaming, since all else is exchangeable along it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.nodes import Once
from fanin.signal.state import QUADRATURE, State, Varied, integrate, law
from fanin.signal.table import Table, align

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    Array = NDArray[Any]

_LONGEST, _GROUPS = 32, 8  # axes up to this length are kept whole, longer ones in so many groups
_EXACT, _SLIGHT = 1e-9, 0.1  # shares of a variance that are nothing, or leave a Gaussian one


def ordered(array: Array) -> Array:
    """The content of a long vector in order of size; other arrays as they are."""
    axes = _varying(array)
    return np.sort(array, axes[0]) if len(axes) == 1 and array.shape[axes[0]] > _LONGEST else array


def profiled(array: Array) -> Table:
    """The table of fixed content: conditional on the axis along which it varies, if it is one."""
    axes = _varying(array)
    if len(axes) != 1:
        return Table.measured(array)
    (a,) = axes
    n = array.shape[a]
    if n <= _LONGEST:
        return Table.measured(array, (a,))
    groups = next((g for g in range(_GROUPS, 1, -1) if n % g == 0), 1)
    if groups == 1:
        return Table.measured(array)
    split = array.reshape((*array.shape[:a], groups, n // groups, *array.shape[a + 1 :]))
    table = Table.measured(split, (a,))
    dims = (*table.dims[:a], table.dims[a] + table.dims[a + 1], *table.dims[a + 2 :])
    return Table(dims, table.mean, table.pairs)


def _varying(array: Array) -> list[int]:
    """The axes along which an array is not constant."""
    return [a for a, n in enumerate(array.shape) if n > 1 and np.ptp(array, axis=a).any()]


def is_fixed(state: State, beside: State) -> bool:
    """Whether a tensor has a profile and next to nothing else, beside another one's variance."""
    table = state.table
    if table.mean.size == 1:
        return False
    within = table.variance
    if beside.gaussian and beside.function is None and within <= _SLIGHT * beside.table.variance:
        return True
    return within <= _EXACT * table.second_moment


def with_fixed(
    x: State, fixed: State, step: Callable[[Array, Array], Array], token: Hashable
) -> State:
    """step(x, fixed), element by element: the law of x, which changes along the profile."""
    latent, inner, source, exact = law(x)
    z, content = align(latent, fixed.table)
    differ = tuple(a for a, n in enumerate(content.mean.shape) if n > 1)
    sizes = [n if a in differ else 1 for a, n in enumerate(content.factors)]
    mean = np.broadcast_to(z.mean, np.broadcast_shapes(z.mean.shape, tuple(sizes)))
    level = content.mean[..., None]

    function = Once(lambda z: step(z if inner is None else inner(z), level), [inner])
    varied = Varied(z.dims, mean, z.pairs, differ)
    table, total = integrate(function, varied)
    how = QUADRATURE if exact and total else x.how
    return State(
        table, how, token, varied, function, ("fixed", source, fixed.token), exact,
        roots=x.roots | fixed.roots,
    )  # fmt: skip
