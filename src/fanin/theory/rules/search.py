"""Where to look for an operating point: coarse moments on a grid, and what makes a point good.

The grid only chooses; every number that `shaped` returns is computed again by `theory.gaussian`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fanin.theory.activation import Activation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Points = Float[np.ndarray, "points"]
    Table = Float[np.ndarray, "..."]
    Mask = Bool[np.ndarray, "..."]

_POSITIVE = 2.0 ** (np.arange(-24, 17) / 4)
BETAS = np.concatenate([[0.0], *np.stack([_POSITIVE, -_POSITIVE], axis=1)])  # 0, 1/64 ... 16
SCALES = 2.0 ** (np.arange(-48, 9) / 2)  # 6e-8 ... 16

# The trapezoidal rule on the whole line is exact to rounding for smooth f at this step.
_Z = np.arange(-8.0, 8.01, 0.5)
_WEIGHTS = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()

_SMALL = 24  # so many scales, up to 1.7e-4, are looked at only where they may be needed

_BETWEEN = 16  # so many means between breakpoints are looked at

ROUNDING = 1 / 4  # the share of noise that bfloat16 may add, see `rounding`
_BALANCED = 1 / 256  # the variance of f at which weights and biases learn alike, see `cost`


class Coarse(NamedTuple):
    """Moments of f(beta + s Z), roughly, at any number of operating points."""

    beta: Table
    s: Table
    mean: Table
    variance: Table
    chi: Table
    slope: Table

    def at(self, index: Any) -> Coarse:
        """The same at some of the points."""
        return Coarse(*(values[index] for values in self))


@dataclass(frozen=True)
class Candidate:
    """An operating point on which the budget is met, to the accuracy of the grid.

    Attributes:
        beta: mean of the pre-activation.
        s: standard deviation of the pre-activation.
        chi: C'(1) there.
        slope: Q' there.
        cost: see `cost`; small is good.
    """

    beta: float
    s: float
    chi: float
    slope: float
    cost: float


def cost(point: Coarse, depth: float, log_budget: float) -> Table:
    """How hard a network at an operating point is to train; small is good.

    *Definition*: with V = Var[f], m = E[f] and g = V/s^2, about the squared slope of f,
    `cost = ln(1 + m^2/V)/2 + |ln g| + |ln(256 V)|/2 + 6 depth max(0, ln Q')
    + 8 depth max(0, b - ln C'(1))`, b the budget of ln C'(1) for one layer.

    In units of s, a step of gradient descent moves a weight by g, a bias by 1/s^2 and the common
    mode of a unit's weights by N m^2/s^2, against N g for the rest. So the terms are: the mean
    gives the loss one steep direction; a slope far from 1 changes the step of the weights; biases
    and weights learn alike where N V = 1, taken at N = 256; a growing variance; a budget for the
    distances between inputs that is left because the variance map binds first. A point at which
    bfloat16 would lose the signal comes behind all others, see `rounding`.
    """
    with np.errstate(all="ignore"):
        common = np.log1p(point.mean**2 / point.variance) / 2
        gain = np.abs(np.log(point.variance / point.s**2))
        balance = np.abs(np.log(point.variance / _BALANCED)) / 2
        growth = 6 * depth * np.maximum(0.0, np.log(point.slope))
        waste = 8 * depth * np.maximum(0.0, log_budget - np.log(point.chi))
        lost = 100.0 * (rounding(point.mean, point.variance, depth) > ROUNDING)
    total: Table = common + gain + balance + growth + waste + lost
    return np.where(np.isfinite(total), total, np.inf)


def rounding(mean: Any, variance: Any, depth: float) -> Any:
    """Share of the last layer's variance that bfloat16 makes by rounding.

    *Definition*: `(2/3) depth u^2 E[f]^2 / Var[f]` with the unit roundoff u = 2^-8: each layer
    rounds the large mean along with the signal, and the mean is then taken out. The factor was
    measured: 0.13 for a sigmoid network of depth 50 with E[f]^2/Var[f] = 257.
    """
    return depth * (2 / 3) * 2.0**-16 * mean**2 / variance


def candidates(
    act: Activation, log_budget: float, depth: float, weight: float
) -> tuple[list[Candidate], list[Candidate]]:
    """Points where max(ln C'(1), weight * ln Q') meets the budget, and points below it.

    The second kind is there for an f that is affine, or nearly; both lists start with the best.
    With weight 0 the variance map is not looked at.
    """
    betas = np.concatenate([BETAS, _features(act)])
    table, valid = screen(act, betas, log_budget, weight)
    growth = _growth(table, weight)
    above = valid & (growth >= log_budget)
    rows, low = np.nonzero(valid[:, :-1] & ~above[:, :-1] & above[:, 1:])
    left, right = (rows, low), (rows, low + 1)
    meeting = _between(table.at(left), table.at(right), growth[left], growth[right], log_budget)
    never = ~above.any(axis=1)
    price = np.where(valid, cost(table, depth, log_budget), np.inf)[never]
    below = table.at(never).at((np.arange(len(price)), price.argmin(axis=1)))
    return (
        _best_first(meeting, depth, log_budget),
        _best_first(below, depth, log_budget),
    )


def _growth(point: Coarse, weight: float) -> Table:
    """ln C'(1), or what the variance map uses of the budget if that is more."""
    with np.errstate(all="ignore"):
        growth: Table = np.log(point.chi)
        return np.maximum(growth, weight * np.log(point.slope)) if weight else growth


def screen(act: Activation, betas: Points, log_budget: float, weight: float) -> tuple[Coarse, Mask]:
    """Moments for every beta (rows) and every s of the grid (columns), and which are not noise.

    Small s are looked at only where the budget is met before the first larger one; elsewhere they
    are left out as if they were noise.
    """
    table, valid = _moments(act, betas, SCALES[_SMALL:])
    shape = (len(betas), len(SCALES))
    beta, s = np.broadcast_arrays(betas[:, None], SCALES)
    whole = Coarse(beta, s, *(np.full(shape, np.nan) for _ in range(4)))
    seen = np.zeros(shape, dtype=bool)
    met = ~(valid[:, 0] & (_growth(table, weight)[:, 0] < log_budget))
    small, valid_small = _moments(act, betas[met], SCALES[:_SMALL])
    for values, right, left in zip(whole[2:], table[2:], small[2:], strict=True):
        values[:, _SMALL:] = right
        values[met, :_SMALL] = left
    seen[:, _SMALL:] = valid
    seen[met, :_SMALL] = valid_small
    return whole, seen


def _moments(act: Activation, betas: Points, s: Points) -> tuple[Coarse, Mask]:
    """The same for some of the columns."""
    with np.errstate(all="ignore"):
        x = betas[:, None, None] + s[:, None] * _Z
        y, slope = act(x), _differences(act, x, s[:, None])
        mean = y @ _WEIGHTS
        deviation = y - mean[..., None]
        variance = (deviation**2) @ _WEIGHTS
        size = s * np.sqrt((slope**2) @ _WEIGHTS)
        chi = size**2 / variance
        growth = s * ((deviation * slope * _Z) @ _WEIGHTS) / variance
        # Below this the variance is made of rounding errors.
        seen = size > 1e-6 * np.maximum(np.abs(mean), 1e-200)
        valid = np.isfinite(chi) & np.isfinite(growth) & seen & (chi > 1 - 1e-3)
    beta, s = np.broadcast_arrays(betas[:, None], s)
    return Coarse(beta, s, mean, variance, chi, growth), valid


def _differences(act: Activation, x: Table, scale: Table | float) -> Table:
    """The slope by differences: two values cost less than a derivative that has to be found."""
    h = 1e-3 * scale
    slope: Table = (act(x + h) - act(x - h)) / (2 * h)
    return slope


def _between(
    left: Coarse, right: Coarse, growth: Points, growth_right: Points, log_budget: float
) -> Coarse:
    """The points between two columns; log-log, since growth is nearly a power of s."""
    growth = np.maximum(growth, 1e-12)
    share = np.clip(np.log(log_budget / growth) / np.log(growth_right / growth), 0.0, 1.0)
    mixed = Coarse(*((1 - share) * a + share * b for a, b in zip(left, right, strict=True)))
    return mixed._replace(
        s=left.s * (right.s / left.s) ** share,
        variance=left.variance * (right.variance / left.variance) ** share,
    )


def _best_first(points: Coarse, depth: float, log_budget: float) -> list[Candidate]:
    """Candidates by cost; equal ones, such as mirror images, keep the order of the grid."""
    price = cost(points, depth, log_budget)
    order = np.argsort(price.round(9), kind="stable")
    columns = (points.beta, points.s, points.chi, points.slope, price)
    found = [Candidate(*map(float, row)) for row in zip(*columns, strict=True)]
    return [found[i] for i in order if math.isfinite(price[i])]


def _features(act: Activation) -> Points:
    """Means that the grid would miss: between breakpoints near 0, and where f is steepest."""
    places = np.array([point.location for point in act.breakpoints])
    between = (places[1:] + places[:-1]) / 2
    between = between[np.argsort(np.abs(between), kind="stable")[:_BETWEEN]]
    x = np.sinh(np.linspace(-8.0, 8.0, 4001)) * 16 / math.sinh(8.0)
    with np.errstate(all="ignore"):
        slopes = np.abs(_differences(act, x, 1.0))
    steepest = x[np.nanargmax(slopes)] if np.isfinite(slopes).any() else 0.0
    return np.unique(np.concatenate([between, [steepest]]))
