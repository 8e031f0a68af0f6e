"""Panels fitted to one activation under one normal distribution, and inner products on them.

With z ~ N(0, 1), x = mean + sigma z and the density phi, every expectation is an inner product of
amplitudes such as f(x) sqrt(phi(z)), which neither overflow nor underflow where they matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fanin.errors import ArgumentError, DivergentError
from fanin.theory.quadrature import EPS, WEIGHTS, Panels, distinct, tail

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from fanin.theory.activation import Activation

    Edges = Float[ndarray, "edges"]
    Values = Float[ndarray, "panels nodes"]

_REACH = 54  # sqrt(phi) is about the smallest float here
_NEGLIGIBLE = 1e-20
_GOAL = 1e-15  # error of one panel relative to the whole integral
_MOST_PANELS = 1 << 17


def root_density(z: Values) -> Values:
    """sqrt(phi(z))."""
    result: Values = np.exp(-z * z / 4) * (2 * math.pi) ** -0.25
    return result


class Estimate(float):
    """A number that knows its error.

    Args:
        value: the number.
        error: a bound on its absolute error.
        how: "closed form", "quadrature", ...

    Example:
        >>> Estimate(0.5, 1e-15, "quadrature") + 1
        1.5
    """

    error: float
    how: str

    def __new__(cls, value: float, error: float = 0.0, how: str = "closed form") -> Estimate:
        made = super().__new__(cls, value)
        made.error, made.how = float(error), how
        return made

    def __getnewargs__(self) -> tuple[float, float, str]:
        return float(self), self.error, self.how


@dataclass(frozen=True, eq=False)
class Grid:
    """Panels in z on which f, and its derivative if wanted, are resolved."""

    panels: Panels
    z: Values
    x: Values
    root: Values
    f: Values
    slope: Values | None

    def inner(self, a: Values, b: Values) -> Estimate:
        """The integral of a b phi for functions a and b given at the nodes."""
        scaled_a, scaled_b = a * self.root, b * self.root
        half = self.panels.half
        product = scaled_a * scaled_b
        value = math.fsum(half * (product @ WEIGHTS))
        size = float(half @ (np.abs(product) @ WEIGHTS))
        unresolved = tail(scaled_a) * np.abs(scaled_b).max(axis=1)
        unresolved += tail(scaled_b) * np.abs(scaled_a).max(axis=1)
        error = 2 * float(half @ unresolved) + 8 * EPS * size
        return Estimate(value, error, "quadrature")


def fit(f: Activation, mean: float, sigma: float, *, derivative: bool, square: bool) -> Grid:
    """Panels that resolve f (and f') for E[f], and for E[f^2] if `square`."""
    with np.errstate(all="ignore"):
        low, high = _window(f, mean, sigma, square=square)
        steps = np.arange(math.ceil(low), math.floor(high) + 1.0)
        edges = np.concatenate([steps, (f.landscape.ends - mean) / sigma])
        ends = distinct(edges, low, high)
        return _refined(f, mean, sigma, Panels.between(ends[:-1], ends[1:]), derivative, square)


def _at(f: Activation, mean: float, sigma: float, panels: Panels, derivative: bool) -> Grid:
    z = panels.nodes
    x = mean + sigma * z
    return Grid(panels, z, x, root_density(z), f(x), f.derivative(x) if derivative else None)


def _window(f: Activation, mean: float, sigma: float, *, square: bool) -> tuple[float, float]:
    """How far out f counts, in standard deviations to the left and right."""
    z = np.arange(0.125, _REACH, 0.25)
    root = root_density(z)
    ends = []
    for side in (-1.0, 1.0):
        x = mean + sigma * side * z
        values = np.abs(f(x)) * root
        mass = (values**2 if square else values * root).reshape(-1, 4).max(axis=1)
        broken = ~np.isfinite(mass)
        first_bad = int(broken.argmax()) if broken.any() else len(mass)
        if first_bad == 0 or np.isnan(f(x[: 4 * first_bad + 4])).any():
            bad = x[~np.isfinite(f(x))][0]
            raise ArgumentError(
                f"expectation of {f.name} at mean {mean:g}, variance {sigma**2:g}",
                expected="finite values where the normal distribution has its mass",
                got=f"{float(f(bad))} at x = {bad:g}",
            )
        good = mass[:first_bad]
        total = good.sum()
        matters = np.flatnonzero(good > _NEGLIGIBLE * total)
        last = int(matters[-1]) if len(matters) else 0
        if last >= min(len(good) - 1, _REACH - 2):
            what = "f^2" if square else "f"
            raise DivergentError(
                f"E[{what}] of {f.name} at mean {mean:g}, variance {sigma**2:g}",
                expected="a function that grows slower than the normal density falls",
                got=f"an integrand that is not small yet at x = {x[4 * last]:g}",
                fix="the expectation does not exist or is beyond float64; use a smaller variance",
            )
        ends.append(side * max(last + 1.0, 9.0))
    return ends[0], ends[1]


def _refined(
    f: Activation, mean: float, sigma: float, panels: Panels, derivative: bool, square: bool
) -> Grid:
    """Halves panels until what they leave unresolved does not count."""
    done: list[Grid] = []
    count = 0
    totals = np.zeros(4)
    for _ in range(60):
        grid = _at(f, mean, sigma, panels, derivative)
        worst = np.zeros(len(panels.half), dtype=bool)
        for i, values in enumerate([grid.f] if grid.slope is None else [grid.f, grid.slope]):
            amplitude = values * grid.root
            size, part = np.abs(amplitude).max(axis=1), tail(amplitude)
            above = part > 64 * EPS * size
            for j, partner in enumerate((size, grid.root.max(axis=1))):
                if j == 0 and not square:
                    continue
                mass = np.abs(amplitude) * (np.abs(amplitude) if j == 0 else grid.root)
                total = totals[2 * i + j] + float(panels.half @ (mass @ WEIGHTS))
                worst |= above & (panels.half * part * partner > _GOAL * total)
                keep = ~worst
                totals[2 * i + j] += float(panels.half[keep] @ (mass[keep] @ WEIGHTS))
        worst &= panels.half > 1e-14 * np.maximum(np.abs(panels.centre), 1e-100)
        count += len(worst)
        if count > _MOST_PANELS:
            worst[:] = False
        done.append(_rows(grid, ~worst))
        if not worst.any():
            break
        panels = panels.halved(worst)
    return _merged(done)


def _rows(grid: Grid, which: ndarray) -> Grid:
    slope = None if grid.slope is None else grid.slope[which]
    panels = Panels(grid.panels.centre[which], grid.panels.half[which])
    return Grid(panels, grid.z[which], grid.x[which], grid.root[which], grid.f[which], slope)


def _merged(grids: list[Grid]) -> Grid:
    if len(grids) == 1:
        return grids[0]

    def all_of(rows: list[Values]) -> Values:
        return np.concatenate(rows)

    panels = Panels(
        np.concatenate([grid.panels.centre for grid in grids]),
        np.concatenate([grid.panels.half for grid in grids]),
    )
    slopes = [grid.slope for grid in grids if grid.slope is not None]
    return Grid(
        panels,
        all_of([grid.z for grid in grids]),
        all_of([grid.x for grid in grids]),
        all_of([grid.root for grid in grids]),
        all_of([grid.f for grid in grids]),
        all_of(slopes) if slopes else None,
    )
