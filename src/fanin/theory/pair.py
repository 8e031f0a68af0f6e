"""E[f(u) f(v)] for a correlated normal pair: by the Hermite series, or by panels both ways.

The series is sum a_k^2 c^k. All a_k^2 are positive and add up to E[f^2], so what a truncation at K
leaves out is at most |c|^(K+1) (E[f^2] - sum of a_k^2 up to K), for every f. Where that is too
much, at |c| near 1, the pair is turned into its sum and its difference,

    u = mean + wide t + narrow w,   v = mean +- (wide t - narrow w),
    wide = sigma sqrt((1 + |c|)/2), narrow = sigma sqrt((1 - |c|)/2),

with independent standard normal t and w. For each w the breaks of f(u) f(v) in t are known, so the
inner integral has panels that end there; the outer one has panels that end where two breaks meet.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fanin.theory.grid import Estimate, fit, root_density
from fanin.theory.quadrature import EPS, WEIGHTS, Panels, distinct, tail

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from fanin.theory.activation import Activation
    from fanin.theory.grid import Grid

    Points = Float[ndarray, "points"]
    Values = Float[ndarray, "panels nodes"]

SERIES_ORDERS = (128, 1024)
_GOAL = 1e-14
_INNER_GOAL = 1e-16
_LEVELS = 40
_NODES_AT_ONCE = 400


def coefficients(f: Activation, order: int, mean: float, sigma: float) -> Points:
    """E[f h_k] for the orthonormal Hermite polynomials h_k up to an order."""
    # h_k oscillates with frequency sqrt(k); a panel holds half a dozen of its radians.
    step = min(1.0, 6 / math.sqrt(max(order, 1)))
    grid = fit(f, mean, sigma, square=True, derivative=False, step=step)
    z = grid.z.ravel()
    weighted = (grid.panels.half[:, None] * WEIGHTS * grid.root * grid.f).ravel()
    before, now = np.zeros_like(z), grid.root.ravel()
    result = np.empty(order + 1)
    for k in range(order + 1):
        result[k] = weighted @ now
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return result


@functools.lru_cache(maxsize=512)
def _power(f: Activation, order: int, mean: float, sigma: float) -> Points:
    result: Points = coefficients(f, order, mean, sigma) ** 2
    result.flags.writeable = False
    return result


def by_series(
    f: Activation, c: float, mean: float, sigma: float, order: int, second: Estimate
) -> Estimate:
    """The Hermite series up to an order, with the bound on the rest."""
    power = _power(f, order, mean, sigma)
    terms = power * c ** np.arange(order + 1)
    rest = abs(c) ** (order + 1) * max(second - power.sum() + second.error, 0.0)
    # A coefficient has an absolute error of rounding size relative to the norm of f.
    doubt = 8 * EPS + second.error / second
    amplitude = np.sqrt(power * second) * np.abs(c) ** np.arange(order + 1)
    rounding = doubt * (2 * amplitude.max() + np.abs(terms).sum()) + doubt**2 * second
    return Estimate(math.fsum(terms), rest + rounding, "Hermite series")


class _Turned(NamedTuple):
    """The pair as functions of its sum t (times wide) and its difference w (times narrow)."""

    f: Activation
    mean: float
    sign: float
    wide: float
    narrow: float

    def values(self, t: Values, w: Values) -> tuple[Values, Values]:
        """f(u) and f(v)."""
        along, across = self.wide * t, self.narrow * w
        return self.f(self.mean + along + across), self.f(self.mean + self.sign * (along - across))

    def breaks(self, ends: Points, w: Points) -> Values:
        """The t at which u or v passes an end, for each w."""
        shift = self.narrow * w[:, None]
        return (
            np.concatenate(
                [ends - self.mean - shift, self.sign * (ends - self.mean) + shift],
                axis=1,
            )
            / self.wide
        )

    def meetings(self, breaks: Points) -> Points:
        """The w at which u and v pass a break at the same t."""
        if not self.narrow:
            return np.zeros(0)
        left, right = breaks[:, None] - self.mean, self.sign * (breaks - self.mean)
        return ((left - right) / (2 * self.narrow)).ravel()


def by_panels(f: Activation, c: float, grid: Grid) -> Estimate:
    """The double integral over sum and difference, within the range of z that counts for f."""
    sigma = grid.sigma
    ends = grid.panels.ends
    pair = _Turned(
        f,
        grid.mean,
        math.copysign(1.0, c),
        sigma * math.sqrt((1 + abs(c)) / 2),
        sigma * math.sqrt((1 - abs(c)) / 2),
    )
    reach = max(-ends[0], ends[-1])
    marks = f.landscape.ends
    marks = marks[np.abs(marks - grid.mean) < 2 * reach * sigma]
    breaks = np.array([point.location for point in f.breakpoints])
    graded = 2.0 ** -np.arange(1, 31)
    graded = graded[graded * pair.narrow > np.diff(marks).min(initial=np.inf) / 4]
    steps = np.arange(-math.ceil(reach) + 1.0, math.ceil(reach))
    # Kinks of f meet where u = v, so the outer panels are fine around w = 0.
    outer = np.concatenate([steps, graded, -graded, pair.meetings(breaks)])
    # f(u) f(v) is even in w for a common sum, and in t for a common difference.
    panels = Panels.between(distinct(outer, 0.0 if c >= 0 else -reach, reach))
    scale = float(grid.inner(grid.f, grid.f))
    value = error = 0.0
    for _ in range(_LEVELS):
        inner, doubt = _inner(pair, panels, marks, reach, scale)
        root = root_density(panels.nodes)
        part = panels.half * tail(inner * root) * root.max(axis=1) * 2
        weights = panels.half[:, None] * WEIGHTS * root * root
        rough = (part > _GOAL * scale) & (
            tail(inner * root) > 64 * EPS * np.abs(inner * root).max(axis=1)
        )
        value += math.fsum((weights * inner)[~rough].ravel())
        error += float(part[~rough].sum() + (weights * doubt)[~rough].sum())
        if not rough.any():
            break
        panels = panels.chosen(rough).halved()
    return Estimate(2 * value, 2 * error, "quadrature")


def _inner(
    pair: _Turned, panels: Panels, marks: Points, reach: float, scale: float
) -> tuple[Values, Values]:
    """For every outer node w: E over t of f(u) f(v), and a bound on its error."""
    w = panels.nodes.ravel()
    parts = [
        _inner_block(pair, w[i : i + _NODES_AT_ONCE], marks, reach, scale)
        for i in range(0, len(w), _NODES_AT_ONCE)
    ]
    value, error = (
        np.concatenate(rows).reshape(panels.nodes.shape) for rows in zip(*parts, strict=True)
    )
    return value, error


def _inner_block(
    pair: _Turned, w: Points, marks: Points, reach: float, scale: float
) -> tuple[Points, Points]:
    steps = np.linspace(-reach, reach, 2 * math.ceil(reach) + 1)
    cuts = np.concatenate(
        [np.broadcast_to(steps, (len(w), len(steps))), pair.breaks(marks, w)], axis=1
    )
    cuts = np.sort(np.clip(cuts, -reach if pair.sign > 0 else 0.0, reach), axis=1)
    owner = np.broadcast_to(np.arange(len(w))[:, None], (len(w), cuts.shape[1] - 1))
    wanted = np.diff(cuts) > 0
    owner, left, right = owner[wanted], cuts[:, :-1][wanted], cuts[:, 1:][wanted]
    panels = Panels(left, right)
    value, error = np.zeros(len(w)), np.zeros(len(w))
    for level in range(_LEVELS):
        t = panels.nodes
        root = root_density(t)
        a, b = (values * root for values in pair.values(t, w[owner][:, None]))
        product, largest_a, largest_b = (
            a * b,
            np.abs(a).max(axis=1),
            np.abs(b).max(axis=1),
        )
        tail_a, tail_b = tail(a), tail(b)
        part = 2 * panels.half * (tail_a * largest_b + tail_b * largest_a)
        importance = np.exp(-(w[owner] ** 2) / 2)
        rough = importance * part > _INNER_GOAL * scale
        rough &= (tail_a > 64 * EPS * largest_a) | (tail_b > 64 * EPS * largest_b)
        rough &= level < _LEVELS - 1
        rounding = 8 * EPS * panels.half * (np.abs(product) @ WEIGHTS)
        integral = panels.half * (product @ WEIGHTS)
        value += np.bincount(owner[~rough], integral[~rough], len(w))
        error += np.bincount(owner[~rough], (part + rounding)[~rough], len(w))
        if not rough.any():
            break
        owner, panels = np.tile(owner[rough], 2), panels.chosen(rough).halved()
    return value, error
