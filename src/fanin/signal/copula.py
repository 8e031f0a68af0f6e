"""The law of a sum of two independent tensors, as a function of one Gaussian."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

from fanin.signal.state import GRID, State, hermite, law, mehler
from fanin.signal.table import Table, paired

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.signal.state import Function

    Array = NDArray[Any]

_REACH, _NODES = 7.0, 201


def summed(first: State, second: State, a: float, b: float, table: Table) -> tuple[Table, Function]:
    """The Gaussian z and the function h of a x + b y = h(z), element by element.

    *Definition.* h is the quantile function of the sum of the two laws after the normal
    distribution function, stretched to each element's mean and variance; two elements of z have
    the correlation that gives h the second moments of `table` (a Gaussian copula).

    *Accuracy.* Of one element: 1e-3 in the moments of functions with kinks, where the elements of
    a tensor are alike. Pairs have their exact second moment; the rest of their law is assumed.
    """
    values = (a * _values(first)[:, None] + b * _values(second)[None, :]).ravel()
    order = np.argsort(values, kind="stable")
    place, size = _places(), float(table.average)
    mass = place[1][order]
    z = ndtri(np.clip(np.cumsum(mass) - mass / 2, 1e-300, 1 - 1e-16))
    values = values[order]
    nodes = place[0]
    shape = np.interp(nodes, z, values)
    weight = np.diff(ndtr(np.concatenate([[-np.inf], (nodes[1:] + nodes[:-1]) / 2, [np.inf]])))
    middle = float(weight @ shape)
    spread = float(np.sqrt(weight @ (shape - middle) ** 2))
    shape = (shape - middle) / spread
    std = max(table.variance, 0.0) ** 0.5

    def function(x: Array) -> Array:
        return np.asarray(size + std * np.interp((x - size) / std, nodes, shape))

    return _latent(table, *hermite(lambda u: np.interp(u, nodes, shape))), function


def _values(state: State) -> Array:
    """The values of one element where the Gaussian behind it has its nodes."""
    latent, function, _, _ = law(state)
    z, _ = _nodes()
    x = _centre(latent) + _width(latent) * z
    return x if function is None else np.asarray(function(x), dtype=np.float64)


def _centre(latent: Table) -> float:
    """Mean of a Gaussian, over all elements."""
    return latent.average


def _width(latent: Table) -> float:
    """Standard deviation of a Gaussian, over all elements."""
    return float(max(latent.variance, 0.0) ** 0.5)


@cache
def _nodes() -> tuple[Array, Array]:
    """Nodes of a standard normal and their probabilities."""
    z = np.linspace(-_REACH, _REACH, _NODES)
    weight = np.exp(-z * z / 2)
    return z, weight / weight.sum()


@cache
def _places() -> tuple[Array, Array]:
    """Where a sum's quantiles are kept, and the probabilities of all pairs of nodes."""
    _, weight = _nodes()
    return np.linspace(-_REACH, _REACH, 1401), np.outer(weight, weight).ravel()


def _latent(table: Table, coefficients: Array, tail: float) -> Table:
    """Means and variances of a table, with the correlations that become its own under h."""
    spread = np.sqrt(np.maximum(table.same - table.mean**2, 0.0))
    one, other = paired(table.mean, table)
    wide, far = paired(spread, table)
    scale = wide * far
    wanted = (table.pairs - one * other) / np.where(scale > 0, scale, 1.0)
    curve = np.maximum.accumulate(mehler(GRID, coefficients, tail))
    rho = np.interp(np.where(scale > 0, wanted, 1.0), curve, GRID)
    return Table(table.dims, table.mean, one * other + scale * rho)


def correlation(table: Table) -> Table:
    """The correlations of a table's pairs, those below 0 as 0."""
    spread = np.sqrt(np.maximum(table.same - table.mean**2, 0.0))
    one, other = paired(table.mean, table)
    wide, far = paired(spread, table)
    rho = (table.pairs - one * other) / np.maximum(wide * far, 1e-300)
    return Table(table.dims, np.zeros_like(table.mean), np.clip(rho, 0.0, 1.0))


def seen_by(
    slope: Function,
    noise: Function | None,
    total: State,
    first: State,
    second: State,
    a: float,
    b: float,
) -> tuple[Function, Function]:
    """Mean and standard deviation of a slope in a x + b y where x is known.

    Functions of x's Gaussian. A gate behind a residual sum is open more often where the stream is
    large: what returns along the stream is no longer independent of it.
    """
    latent, function, _, _ = law(total)
    z, weight = _nodes()
    places = _centre(latent) + _width(latent) * _places()[0]
    reached = np.maximum.accumulate(places if function is None else function(places))
    level = np.asarray(slope(places))
    power = level**2 + (0.0 if noise is None else np.asarray(noise(places)) ** 2)
    values = a * _values(first)[:, None] + b * _values(second)[None, :]
    mean = np.interp(values, reached, level) @ weight
    spread = np.sqrt(np.maximum(np.interp(values, reached, power) @ weight - mean**2, 0.0))
    own = _centre(law(first)[0]) + _width(law(first)[0]) * z

    return (
        lambda x: np.asarray(np.interp(x, own, mean)),
        lambda x: np.asarray(np.interp(x, own, spread)),
    )
