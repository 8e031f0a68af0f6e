"""Every root of a function of a positive number, in a stated range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq, minimize_scalar

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Points = Float[np.ndarray, "points"]
    Flags = Bool[np.ndarray, "points"]

ZERO = 1e-13  # values below this, over a decade, are a whole interval of roots
TOUCH = 1e-10  # an extremum this close to 0 is a double root
NEAR = 1e-3  # where values are this small, roots hide between grid points: look closer
_DIP = 1e-12  # an extremum less deep is rounding
_CLIP = 50.0  # infinite values only say a sign


@dataclass(frozen=True)
class Root:
    """A root `x`, with the signs of the function just below and just above it."""

    x: float
    below: int
    above: int


@dataclass(frozen=True)
class Roots:
    """What a search found: isolated roots, intervals of roots, and the values at both ends."""

    points: tuple[Root, ...]
    intervals: tuple[tuple[float, float], ...]
    at_low: float
    at_high: float


def log_roots(g: Callable[[float], float], low: float, high: float, per_decade: int = 8) -> Roots:
    """Find the roots of g in [low, high]: sign changes, double roots and intervals of roots.

    Two roots inside one grid cell can be missed; a cell is a factor `10**(1/per_decade)`, and a
    quarter of that (in the logarithm) where g is small.
    """

    def at(t: float) -> float:
        return float(np.clip(g(math.exp(t)), -_CLIP, _CLIP))

    grid, values, runs = _scan(at, math.log(low), math.log(high), per_decade)
    cells = len(grid) - 1
    inside = np.zeros(cells + 1, dtype=bool)
    for first, last in runs:
        inside[first : last + 1] = True
    found: list[Root] = []
    for i in range(cells):
        if inside[i] or inside[i + 1]:
            continue
        if values[i] * values[i + 1] < 0:
            found.append(_crossing(at, grid[i], grid[i + 1], values[i]))
        if i and not inside[i - 1]:
            found += _touching(at, grid[i - 1 : i + 2], values[i - 1 : i + 2])
    intervals = tuple((math.exp(grid[a]), math.exp(grid[b])) for a, b in runs)
    return Roots(
        tuple(sorted(found, key=lambda root: root.x)),
        intervals,
        float(values[0]),
        float(values[-1]),
    )


def _scan(
    at: Callable[[float], float], low: float, high: float, per_decade: int
) -> tuple[Points, Points, list[tuple[int, int]]]:
    """A grid, finer where the function is small, its values, and where it is flat at 0."""
    cells = max(4, math.ceil(per_decade * (high - low) / math.log(10)))
    grid = np.linspace(low, high, cells + 1)
    values = np.array([at(t) for t in grid])
    runs = _runs(np.abs(values) <= ZERO, per_decade)
    flat = np.zeros(cells + 1, dtype=bool)
    for first, last in runs:
        flat[first : last + 1] = True
    small = np.abs(values) < NEAR
    closer = np.flatnonzero(small[:-1] & small[1:] & ~(flat[:-1] & flat[1:]))
    extra = (grid[closer, None] + np.diff(grid)[closer, None] * np.array([0.25, 0.5, 0.75])).ravel()
    if not len(extra):
        return grid, values, runs
    order = np.argsort(np.concatenate([grid, extra]))
    grid = np.concatenate([grid, extra])[order]
    values = np.concatenate([values, [at(t) for t in extra]])[order]
    return grid, values, _runs(np.abs(values) <= ZERO, per_decade)


def _runs(flat: Flags, shortest: int) -> list[tuple[int, int]]:
    """First and last index of every stretch of more than `shortest` true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(int(a), int(b) - 1) for a, b in pairs if b - a > shortest]


def _crossing(at: Callable[[float], float], a: float, b: float, value: float) -> Root:
    """The root between a and b, where the signs differ."""
    t = brentq(at, a, b, xtol=1e-14, rtol=1e-14)
    sign = 1 if value > 0 else -1
    return Root(math.exp(t), sign, -sign)


def _touching(at: Callable[[float], float], t: Points, values: Points) -> list[Root]:
    """The double root, or the two near roots, at an extremum that points to 0."""
    if values[1] == 0.0:
        return [Root(math.exp(t[1]), int(np.sign(values[0])), int(np.sign(values[2])))]
    sign = 1 if values[1] > 0 else -1
    size = sign * values
    if min(size) <= 0 or min(size[0], size[2]) - size[1] < _DIP:
        return []
    best = minimize_scalar(
        lambda u: sign * at(u), bounds=(t[0], t[2]), method="bounded", options={"xatol": 1e-10}
    )
    if abs(best.fun) <= TOUCH:
        return [Root(math.exp(best.x), sign, sign)]
    if best.fun > 0:
        return []
    return [_crossing(at, t[0], best.x, sign), _crossing(at, best.x, t[2], -sign)]
