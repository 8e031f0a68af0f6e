"""The size of a sample: what all positions of one sample have in common by it.

The mean square of a sample of n independent normal numbers varies by 2 / n of its square. An
activation with a mean makes of it a shift of all its outputs in that sample, which an average over
positions does not average away.
"""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.state import State, Varied, integrate, law
from fanin.signal.table import Table, align

if TYPE_CHECKING:
    from fanin.signal.state import Function


def sized(x: State, out: State, slope: Function) -> State:
    """f(x) with what its samples' sizes add to pairs of positions.

    *Definition.* With x = (1 + e/2) u in one sample, Var(e) = x.size,
    E[f f'] += (Var(e) / 4) (E[u f'(u) v f'(v)] - E[f'(u) f'(v)] E[u v]) for two positions of one
    sample; the second term is what E[u v] of the table has already, and of Var(e) the share
    (1 + 4 pi x.reach)^(-n/2), n the number of axes, is that of one position alone. The size of
    f(x) is that of x times (E[f u f'] / E[f^2])^2.

    *Accuracy.* Linear in the mean squares: relative, the variance of one position's mean square,
    2 / (channels times taps) behind one convolution, for f that grow no faster than u^2, and 4 over
    the number of positions along an axis for windows at its ends.

    Args:
        slope: f' as a function of x.
    """
    latent, inner, _, _ = law(x)
    if not x.size or len(x.shape) < 3 or isinstance(latent, Varied) or out.table.resolved:
        return out

    def reach(z: np.ndarray) -> np.ndarray:
        u = z if inner is None else inner(z)
        return np.asarray(u * slope(u))

    def growth(z: np.ndarray) -> np.ndarray:
        u = z if inner is None else inner(z)
        return np.asarray(slope(u))

    moved, one = align(integrate(reach, latent)[0], out.table)
    open_, _ = align(integrate(growth, latent)[0], one)
    own, _ = align(x.table, one)
    if not moved.dims == open_.dims == own.dims == one.dims:
        return out
    alone = (1 + 4 * pi * x.reach) ** (-(len(x.shape) - 2) / 2)
    more = x.size * (1 - alone) / 4 * (moved.pairs - open_.pairs * own.pairs)
    table = Table(one.dims, one.mean, one.pairs + _within(one) * more)
    level = integrate(lambda z: reach(z) * _value(out, z), latent)[0].average
    size = x.size * (level / max(out.second_moment, 1e-300)) ** 2
    return replace(out, table=table, size=size, reach=x.reach)


def _value(state: State, z: np.ndarray) -> np.ndarray:
    """The value of an element where the Gaussian behind it is z."""
    function = law(state)[1]
    return z if function is None else np.asarray(function(z))


def _within(table: Table) -> np.ndarray:
    """Which pairs are those of two positions in one sample; the first dimension is the samples."""
    k, rows = len(table.factors), table.axes(range(2, len(table.dims)))
    mask = np.zeros((2,) * k)
    for pair in np.ndindex(*mask.shape):
        apart = any(pair[a] for a in table.axes((0,)))
        mask[pair] = float(not apart and any(pair[a] for a in rows))
    return mask.reshape(mask.shape + (1,) * k)


def size_of_sum(x: State, y: State, a: float, b: float, whole: float) -> float:
    """The size of a x + b y of second moment `whole`: both are large in the same samples."""
    swing = a * a * sqrt(x.size) * x.second_moment + b * b * sqrt(y.size) * y.second_moment
    return (swing / max(whole, 1e-300)) ** 2
