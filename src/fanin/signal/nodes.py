"""Functions of Gaussians on nodes: Hermite coefficients for each mean and variance of a profile.

A chain of elementwise operations is a chain of functions of one Gaussian, and each of them is
integrated: what a function gave on one array of nodes is kept, and the next one starts from there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import chebyshev

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Function = Callable[[Array], Array]

_REACH, _NODES, _ORDER = 9.0, 1201, 40
_COARSE = (10, 7)  # every so many nodes are enough where both give the same
_AGREE = 1e-9  # relative to the root of the second moment
_LAWS, _MANY = 48, 2048  # different means (laws) of a profile above which they are rounded
_BETWEEN, _NEAR = 12, 3.0  # so many scales stand for more of them within this factor


class Once:
    """A function that is run once on an array, however often it is asked.

    Args:
        function: from an array to an array.
        parts: functions that it calls on the same array. They are run before it, one after the
            other, so that a long chain needs no deep stack.
    """

    def __init__(self, function: Function, parts: Iterable[Function | None] = ()) -> None:
        self._function = function
        self._parts = tuple(p for p in parts if isinstance(p, Once))
        self._kept: dict[int, tuple[weakref.ref[Array], Array]] = {}

    def __call__(self, x: Array) -> Array:
        if not isinstance(x, np.ndarray):
            return self._function(x)
        waiting = [self]
        while waiting:
            missing = [p for p in waiting[-1]._parts if id(x) not in p._kept]
            if missing and id(x) not in waiting[-1]._kept:
                waiting += missing
            else:
                waiting.pop()._run(x)
        return self._run(x)

    def _run(self, x: Array) -> Array:
        """The values, from memory if this very array was seen before and still is there."""
        key = id(x)
        if key not in self._kept:
            value = self._function(x)
            self._kept[key] = weakref.ref(x, lambda _: self._kept.pop(key, None)), value
        return self._kept[key][1]


@cache
def nodes(step: int = 1) -> tuple[Array, Array]:
    """Nodes and the weighted normalised Hermite polynomials on them: row k gives E[f(z) h_k(z)].

    The trapezoidal rule: spectrally exact for smooth f, error O(step^2) at a kink.
    """
    middle = _NODES // 2
    half = middle // step * step
    z = np.linspace(-_REACH, _REACH, _NODES)[middle - half : middle + half + 1 : step]
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    rows = [np.ones_like(z), z]
    for k in range(2, _ORDER):
        rows.append((z * rows[-1] - np.sqrt(k - 1) * rows[-2]) / np.sqrt(k))
    return z, np.stack(rows) * weight


@cache
def _coarse() -> tuple[Array, list[Array]]:
    """The nodes of two coarse rules together, and the rows of each with zeros at the others."""
    both = [nodes(step) for step in _COARSE]
    z = np.unique(np.round(np.concatenate([x for x, _ in both]), 9))
    found = []
    for x, rows in both:
        laid = np.zeros((len(rows), len(z)))
        laid[:, np.searchsorted(z, np.round(x, 9))] = rows
        found.append(laid)
    return z, found


@lru_cache(maxsize=4)
def _laid(content: bytes, shape: tuple[int, ...], coarse: bool) -> Array:
    """The nodes of each law: one array as long as the same laws are asked for."""
    laws = np.frombuffer(content).reshape(shape)
    z = _coarse()[0] if coarse else nodes()[0]
    return np.asarray(laws[..., :1] + laws[..., 1:] * z)


def on_nodes(mean: float, std: float) -> Array:
    """The nodes of one law; one array as long as it is asked for."""
    return _laid(np.array([mean, std]).tobytes(), (2,), False)


def coefficients(
    function: Function, mean: Array, variance: Array, differ: tuple[int, ...] = ()
) -> tuple[Array, Array, bool]:
    """E[f(z) h_k(z)] and E[f^2] for each (mean, variance) of a profile; whether f was defined.

    Args:
        function: of an array with the nodes last. Before them stand the laws, and, where `differ`
            says that it is not the same for all elements, one axis for each axis of the profile.
        mean, variance: the profile.
        differ: the axes along which the function changes.
    """
    k = mean.ndim
    like = [a for a in range(k) if a not in differ]
    whole = np.stack([mean, np.sqrt(variance)], -1).transpose(*like, *differ, k)
    lead, own = whole.shape[: len(like)], whole.shape[len(like) : -1]
    laws, back = _few(whole.reshape(int(np.prod(lead)), -1, 2))
    laid = laws.reshape(-1, *(mean.shape[a] if a in differ else 1 for a in range(k)), 2)
    found, total = _moments(function, laid if differ else laws[:, 0])
    found = back(found.reshape(_ORDER + 1, len(laws), -1)).reshape(-1, *lead, *own)
    found = found.transpose(0, *(1 + np.argsort([*like, *differ])))
    return found[:-1], found[-1], total


def _moments(function: Function, laws: Array) -> tuple[Array, bool]:
    """E[f h_k] and, last, E[f^2] for each law, on few nodes where these are enough."""
    content, shape = np.ascontiguousarray(laws).tobytes(), laws.shape
    z = _laid(content, shape, True)
    values = np.broadcast_to(np.asarray(function(z), dtype=np.float64), z.shape)
    if np.isfinite(values).all():
        one, two = (_sums(values, rows) for rows in _coarse()[1])
        apart, power = np.abs(one - two), two[-1]
        if (apart[:-1] <= _AGREE * np.sqrt(power)).all() and (apart[-1] <= _AGREE * power).all():
            return two, True
    z, rows = _laid(content, shape, False), nodes()[1]
    values = np.broadcast_to(np.asarray(function(z), dtype=np.float64), z.shape)
    defined = np.isfinite(values)
    if defined.all():
        return _sums(values, rows), True
    share = (defined * rows[0]).sum(-1, keepdims=True)
    values = np.where(defined, values, 0.0) / np.maximum(share, 1e-12) ** 0.5
    return _sums(values, rows), False


def _sums(values: Array, rows: Array) -> Array:
    """Sums of values over the nodes with each row, and of their squares with the first."""
    flat = values.reshape(-1, values.shape[-1])
    found = np.concatenate([rows @ flat.T, ((flat * flat) @ rows[0])[None]])
    return np.asarray(found.reshape(-1, *values.shape[:-1]))


def _few(whole: Array) -> tuple[Array, Function]:
    """The laws to integrate, and what takes their integrals, [order, law, element], to all."""
    flat = whole.reshape(len(whole), -1)
    if len(flat) == 1:
        return whole, lambda found: found
    different, places = np.unique(flat, axis=0, return_inverse=True)
    means = len(np.unique(flat[:, 0]))
    if flat.shape[1] == 2 and (means > _LAWS or (len(different) > _MANY and means > 1)):
        step = np.maximum(np.ptp(different, axis=0) / _LAWS, 1e-300)
        different, places = np.unique(np.rint(flat / step), axis=0, return_inverse=True)
        different = different * step
    places, laws = places.ravel(), different.reshape(len(different), -1, 2)
    if len(laws) <= _BETWEEN:
        return laws, lambda found: found[:, places]
    top = np.maximum(laws[:, 0, 1], laws[:, 0, 1].max() * 1e-9 + 1e-300)
    kinds = np.concatenate([laws[..., 0], np.floor(np.log(top) / np.log(_NEAR))[:, None]], 1)
    _, groups = np.unique(kinds, axis=0, return_inverse=True)
    members = [np.flatnonzero(groups.ravel() == g) for g in range(groups.max() + 1)]
    chosen, shares = zip(*(_between(laws[mine]) for mine in members), strict=True)
    weights, start = np.zeros((len(laws), sum(map(len, chosen)))), 0
    for mine, share in zip(members, shares, strict=True):
        weights[mine, start : start + share.shape[1]] = share
        start += share.shape[1]
    return np.concatenate(chosen), lambda found: (weights @ found)[:, places]


def _between(laws: Array) -> tuple[Array, Array]:
    """Laws of one mean whose scales are near each other by few of them, and the weights of these.

    The integrals are polynomials in the logarithm of the scale.
    """
    scale, count = laws[:, 0, 1] / max(laws[-1, 0, 1], 1e-300), len(laws)
    if count <= _BETWEEN:
        return laws, np.eye(count)
    low, high = scale.min(), scale.max()
    alike = np.allclose(laws[..., 1], scale[:, None] * laws[-1, :, 1], rtol=1e-9, atol=0)
    if not alike or low * _NEAR < high:
        return laws, np.eye(count)
    middle, half = np.log(high * low) / 2, np.log(high / low) / 2
    points = chebyshev.chebpts1(_BETWEEN)
    basis = np.linalg.inv(chebyshev.chebvander(points, _BETWEEN - 1))
    weights = chebyshev.chebvander((np.log(scale) - middle) / half, _BETWEEN - 1) @ basis
    made = np.repeat(laws[-1:], _BETWEEN, 0)
    made[..., 1] *= np.exp(middle + half * points)[:, None]
    return made, weights
