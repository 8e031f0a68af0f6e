"""Panels fitted to one activation under one normal distribution, and inner products on them.

With z ~ N(0, 1), x = mean + sigma z and the density phi, every expectation is an inner product of
amplitudes such as f(x) sqrt(phi(z)), which neither overflow nor underflow where they count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from fanin.errors import ArgumentError, DivergentError
from fanin.theory.quadrature import (
    EPS,
    TO_SLOPES,
    WEIGHTS,
    Panels,
    distinct,
    fitted,
    is_noise,
    tail,
)

if TYPE_CHECKING:
    from numpy import ndarray

    from fanin.theory.activation import Activation
    from fanin.theory.quadrature import Mask, PerPanel, Values

_REACH = 54  # sqrt(phi(54)) is about the smallest float
_LEAST_REACH = 9.0
_NEGLIGIBLE = 1e-20  # mass of one standard deviation relative to the whole
_GOAL = 1e-15  # error of one panel relative to the whole integral
_ROUNDING = 8 * EPS  # of the values that an activation computes, and of their sum
_ABOVE_ROUNDING = 16 * EPS  # the tail of a resolved panel is about 5 EPS of its largest value
_MOST_PANELS = 1 << 18
_LEVELS = 60
_SINGULAR = 1e-9  # a panel that no halving resolves may not count more than this


class Estimate(float):
    """A number that knows its error.

    Args:
        value: the number.
        error: a bound on its absolute error.
        how: "closed form", "quadrature" or "Hermite series".

    Example:
        >>> half = Estimate(0.5, 1e-15, "quadrature")
        >>> half + 1, half.error, half.how
        (1.5, 1e-15, 'quadrature')
    """

    error: float
    how: str

    def __new__(cls, value: float, error: float = 0.0, how: str = "closed form") -> Self:
        made = super().__new__(cls, value)
        made.error, made.how = float(error), how
        return made

    def __getnewargs__(self) -> tuple[float, float, str]:  # type: ignore[override]
        return float(self), self.error, self.how


def root_density(z: Values) -> Values:
    """sqrt(phi(z))."""
    result: Values = np.exp(-z * z / 4) * (2 * math.pi) ** -0.25
    return result


@dataclass(frozen=True, eq=False)
class Grid:
    """Panels in z on which f, and its derivative if wanted, are resolved.

    Args:
        mean, sigma: of x = mean + sigma z.
        panels: intervals of z, from left to right.
        f: f(x) at the nodes.
        slope: f'(x) at the nodes, or zeros if it was not wanted.
        slope_error: a bound on the error of the slope at the nodes.
    """

    mean: float
    sigma: float
    panels: Panels
    z: Values
    root: Values
    f: Values
    slope: Values
    slope_error: Values

    def inner(
        self,
        a: Values,
        b: Values | float = 1.0,
        weight: Values | float = 1.0,
        doubt: Values | float = 0.0,
    ) -> Estimate:
        """E[a b weight] for functions a and b of x and a polynomial weight in z.

        The error adds up what the panels leave unresolved, the rounding of the values and of their
        sum, the rounding of x, to which a b responds by its variation, and the doubt about a b.
        """
        left, right = a * self.root, b * self.root * weight
        half, product = self.panels.half, left * right
        value = math.fsum(half * (product @ WEIGHTS))
        unresolved = 2 * (tail(left) * _largest(right) + tail(right) * _largest(left))
        around = np.abs(self.root * self.root * weight)
        rounding = _ROUNDING * np.abs(product) + np.abs(doubt) * around
        # sigma z is rounded twice, by sigma and by the product, and x = mean + sigma z once more.
        reach = (np.abs(self.z) + np.abs(self.mean / self.sigma + self.z) / 2) * around
        variation = np.abs(np.diff((a * b).ravel())) @ np.maximum(
            reach.ravel()[1:], reach.ravel()[:-1]
        )
        error = half @ (unresolved + rounding @ WEIGHTS) + EPS * variation
        return Estimate(value, float(error) + np.finfo(np.float64).tiny, "quadrature")


def _largest(values: Values) -> PerPanel:
    result: PerPanel = np.abs(values).max(axis=1)
    return result


def fit(
    f: Activation,
    mean: float,
    sigma: float,
    *,
    square: bool,
    derivative: bool,
    step: float = 1.0,
) -> Grid:
    """Panels that resolve f, and f' if wanted, for E[f] and, if `square`, for E[f^2].

    Raises:
        DivergentError: the integrand does not fall.
        ArgumentError: f is not a number somewhere in the range of integration.
    """
    with np.errstate(all="ignore"):
        low, high = _window(f, mean, sigma, square=square, derivative=derivative)
        steps = np.arange(math.ceil(low / step), math.floor(high / step) + 1.0) * step
        cuts = np.concatenate([steps, (f.landscape.ends - mean) / sigma])
        panels = Panels.between(distinct(cuts, low, high))
        return _refined(f, mean, sigma, panels, square=square, derivative=derivative)


def _window(
    f: Activation, mean: float, sigma: float, *, square: bool, derivative: bool
) -> tuple[float, float]:
    """How far out f, its distance from f(mean) and f' count, in standard deviations."""
    steps = np.arange(-_REACH + 0.125, _REACH, 0.25)
    marks = (f.landscape.centres - mean) / sigma
    z = np.sort(np.concatenate([steps, marks[np.abs(marks) < _REACH]]))
    x, root = mean + sigma * z, root_density(z)
    values = f(x)
    heights = [values, values - f(mean)]
    if derivative:  # its size is all that counts
        heights.append(f.derivative(x) if f.exact_derivative else f.landscape.interpolated(x))
    mass = np.stack([(h * root) ** 2 if square else np.abs(h * root) * root for h in heights])
    usable = np.isfinite(mass)
    largest = np.where(usable, mass, 0.0).max(axis=1, keepdims=True)
    counts = z[(usable & (mass > _NEGLIGIBLE * largest)).any(axis=0)]
    low, high = (
        min(counts.min(initial=0) - 1, -_LEAST_REACH),
        max(counts.max(initial=0) + 1, _LEAST_REACH),
    )
    inside = (z > low) & (z < high)
    where = f"E[{'f^2' if square else 'f'}] of {f.name} at mean {mean:g}, variance {sigma**2:g}"
    if np.isnan(values[inside]).any():
        bad = x[inside][np.isnan(values[inside])][0]
        raise ArgumentError(where, expected="numbers", got=f"f({bad:g}) = nan")
    furthest = max(counts, key=abs, default=0.0)
    if low <= -_REACH or high >= _REACH or not usable[:, inside].all():
        raise DivergentError(
            where,
            expected="an integrand that falls to zero on both sides",
            got=f"one that does not, towards x = {mean + sigma * float(furthest):g}",
            fix="the expectation does not exist, or needs values beyond float64; "
            "use a smaller variance",
        )
    return low, high


def _refined(
    f: Activation,
    mean: float,
    sigma: float,
    panels: Panels,
    *,
    square: bool,
    derivative: bool,
) -> Grid:
    """Halves panels until what they leave unresolved does not count."""
    done: list[Grid] = []
    count, masses = 0, np.zeros(4)
    before = np.full((2, len(panels.half)), np.inf)
    for level in range(_LEVELS + 1):
        grid = _evaluated(f, mean, sigma, panels, derivative=derivative)
        error, mass, rough, part = _unresolved(grid, before, square=square)
        totals = masses + mass.sum(axis=1)
        excess = (error > _GOAL * totals[:, None]).reshape(2, 2, -1).any(axis=0)
        rough = (rough & excess).any(axis=0)
        count += len(rough)
        narrow = panels.half < 4 * EPS * np.abs(panels.centre)
        if level == _LEVELS or (rough & narrow).any():
            _check_regular(f, grid, (error / totals[:, None]).max(axis=0) * rough)
            rough &= ~narrow & (level < _LEVELS)
        if count > _MOST_PANELS:
            rough[:] = False
        masses += mass[:, ~rough].sum(axis=1)
        done.append(_selected(grid, ~rough))
        if not rough.any():
            break
        before = np.tile(part[:, rough], 2)
        panels = panels.chosen(rough).halved()
    return _joined(done)


def _unresolved(
    grid: Grid, before: Values, *, square: bool
) -> tuple[Values, Values, ndarray, Values]:
    """For each panel: errors and masses of f, f', f^2, f'^2; whether f and f' can be refined."""
    amplitude = np.stack([grid.f * grid.root, grid.slope * grid.root])
    half, root = grid.panels.half, grid.root
    size, part = np.abs(amplitude).max(axis=-1), tail(amplitude)
    error = np.concatenate([half * part * root.max(axis=1), 2 * half * part * size])
    mass = np.concatenate(
        [half * ((np.abs(amplitude) * root) @ WEIGHTS), half * (amplitude**2 @ WEIGHTS)]
    )
    noise = np.stack([is_noise(*rows) for rows in zip(part, before, size, strict=True)])
    if not square:
        error[2:] = 0
    return error, mass, (part > _ABOVE_ROUNDING * size) & ~noise, part


def _check_regular(f: Activation, grid: Grid, share: PerPanel) -> None:
    """An integrand that no halving resolves must be too small to count."""
    worst = int(share.argmax())
    if share[worst] > _SINGULAR:
        x = grid.mean + grid.sigma * float(grid.panels.centre[worst])
        x = 0.0 if abs(x) < EPS * grid.sigma else x
        raise DivergentError(
            f"expectation of {f.name} at mean {grid.mean:g}, variance {grid.sigma**2:g}",
            expected="a function without a pole",
            got=f"one with an integrand that grows without bound near x = {x:.6g}",
        )


def _evaluated(
    f: Activation, mean: float, sigma: float, panels: Panels, *, derivative: bool
) -> Grid:
    z = panels.nodes
    x = mean + sigma * z
    values, nothing = f(x), np.zeros_like(z)
    grid = Grid(mean, sigma, panels, z, root_density(z), values, nothing, nothing)
    if not derivative:
        return grid
    if f.exact_derivative:
        return replace(grid, slope=f.derivative(x))
    slope, error = _numerical_slopes(f, x, values, panels.half * sigma)
    return replace(grid, slope=slope, slope_error=error)


def _numerical_slopes(
    f: Activation, x: Values, values: Values, half: PerPanel
) -> tuple[Values, Values]:
    """The slopes of these panels, or of the landscape where those are sharper; their errors."""
    series, bound = fitted(values)
    slope = series @ TO_SLOPES.T / half[:, None]
    error = np.broadcast_to(bound[:, None] / half[:, None], slope.shape).copy()
    seen = f.landscape.slope_error[f.landscape.panel(x)]
    sharper = seen < error
    slope[sharper], error[sharper] = f.landscape.interpolated(x[sharper]), seen[sharper]
    return slope, error


def _selected(grid: Grid, which: Mask) -> Grid:
    rows = (grid.z, grid.root, grid.f, grid.slope, grid.slope_error)
    return Grid(grid.mean, grid.sigma, grid.panels.chosen(which), *(row[which] for row in rows))


def _joined(grids: list[Grid]) -> Grid:
    """All panels from left to right."""
    if len(grids) == 1:
        return grids[0]
    parts = [
        (g.panels.left, g.panels.right, g.z, g.root, g.f, g.slope, g.slope_error) for g in grids
    ]
    rows = [np.concatenate(row) for row in zip(*parts, strict=True)]
    order = np.argsort(rows[0], kind="stable")
    left, right, *values = (row[order] for row in rows)
    return Grid(grids[0].mean, grids[0].sigma, Panels(left, right), *values)
