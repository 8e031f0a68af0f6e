"""Where to look for an operating point: coarse moments on a grid, and what makes a point good.

The grid only chooses; every number that `shaped` returns is computed again by `theory.gaussian`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fanin.theory.activation import Activation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Points = Float[np.ndarray, "points"]
    Table = Float[np.ndarray, "beta s"]
    Mask = Bool[np.ndarray, "beta s"]

_POSITIVE = 2.0 ** (np.arange(-24, 17) / 4)
BETAS = np.concatenate([[0.0], *np.stack([_POSITIVE, -_POSITIVE], axis=1)])  # 0, 1/64 ... 16
SCALES = 2.0 ** (np.arange(-48, 9) / 2)  # 6e-8 ... 16

# The trapezoidal rule on the whole line is exact to rounding for smooth f at this step.
_Z = np.arange(-8.0, 8.01, 0.375)
_WEIGHTS = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()

_BALANCED = 1 / 256  # the variance of f at which weights and biases learn alike, see `cost`


class Screened(NamedTuple):
    """Coarse moments of f(beta + s Z), one row for each beta and one column for each s."""

    mean: Table
    variance: Table
    chi: Table
    slope: Table
    valid: Mask


@dataclass(frozen=True)
class Candidate:
    """An operating point on which the budget is met, to the accuracy of the grid.

    Attributes:
        beta: mean of the pre-activation.
        s: standard deviation of the pre-activation.
        low: largest grid value of s below the budget.
        high: smallest grid value of s above it; equal to low where the budget is never used up.
        cost: see `cost`; small is good.
        slope: Q' there.
    """

    beta: float
    s: float
    low: float
    high: float
    cost: float
    slope: float

    @property
    def uses_budget(self) -> bool:
        return self.low < self.high


def cost(
    s: Points, mean: Points, variance: Points, chi: Points, slope: Points, depth: float
) -> Points:
    """How hard a network at this operating point is to train; small is good.

    *Definition*: with V = Var[f], m = E[f] and g = V/s^2, about the squared slope of f,
    `cost = ln(1 + m^2/V)/2 + |ln g| + |ln(256 V)|/2 + 6 depth max(0, ln Q')
    + 4 depth max(0, ln Q' - ln C'(1))`.

    In units of s, a step of gradient descent moves a weight by g, a bias by 1/s^2 and the common
    mode of a unit's weights by N m^2/s^2, against N g for the rest. So the terms are: the mean
    gives the loss one steep direction; a slope far from 1 changes the step of the weights; biases
    and weights learn alike where N V = 1, taken at N = 256; a growing variance; a budget that
    goes to the variance map instead of the distances between inputs.
    """
    with np.errstate(all="ignore"):
        common = np.log1p(mean**2 / variance) / 2
        gain = np.abs(np.log(variance / s**2))
        balance = np.abs(np.log(variance / _BALANCED)) / 2
        growth = 6 * depth * np.maximum(0.0, np.log(slope))
        waste = 4 * depth * np.maximum(0.0, np.log(slope / chi))
    total: Points = common + gain + balance + growth + waste
    return np.where(np.isfinite(total), total, np.inf)


def screen(act: Activation, betas: Points) -> Screened:
    """Coarse moments for every pair of a beta and an s of the grid."""
    s = SCALES
    with np.errstate(all="ignore"):
        x = betas[:, None, None] + s[:, None] * _Z
        y, slope = act(x), act.derivative(x)
        mean = y @ _WEIGHTS
        deviation = y - mean[..., None]
        variance = (deviation**2) @ _WEIGHTS
        size = s * np.sqrt((slope**2) @ _WEIGHTS)
        chi = size**2 / variance
        growth = s * ((deviation * slope * _Z) @ _WEIGHTS) / variance
        # Below this the variance is made of rounding errors.
        seen = size > 1e-6 * np.maximum(np.abs(mean), 1e-200)
        valid = np.isfinite(chi) & np.isfinite(growth) & seen & (chi > 1 - 1e-3)
    return Screened(mean, variance, chi, growth, valid)


def candidates(
    act: Activation, log_budget: float, depth: float, *, chi_alone: bool = False
) -> tuple[list[Candidate], list[Candidate]]:
    """Points where max(C'(1), Q'), or C'(1) alone, meets the budget, and points below it.

    The second kind is there for an f that is affine, or nearly; both lists start with the best.
    """
    betas = np.concatenate([BETAS, _features(act)])
    table = screen(act, betas)
    with np.errstate(all="ignore"):
        log_growth = np.log(table.chi if chi_alone else np.maximum(table.chi, table.slope))
    found: list[Candidate] = []
    for row, beta in enumerate(betas):
        above = table.valid[row] & (log_growth[row] >= log_budget)
        first = int(above.argmax()) if above.any() else len(SCALES)
        if first == len(SCALES):
            found += _unused(table, row, float(beta), depth)
        elif first > 0 and table.valid[row, first - 1]:
            found.append(_crossing(table, log_growth, row, first, float(beta), log_budget, depth))
    found.sort(key=lambda c: round(c.cost, 9))
    return [c for c in found if c.uses_budget], [c for c in found if not c.uses_budget]


def _crossing(
    table: Screened,
    log_growth: Table,
    row: int,
    first: int,
    beta: float,
    log_budget: float,
    depth: float,
) -> Candidate:
    """The point between two columns; log-log interpolation, since growth is a power of s there."""
    low, high = float(SCALES[first - 1]), float(SCALES[first])
    below = max(float(log_growth[row, first - 1]), 1e-12)
    share = math.log(log_budget / below) / math.log(float(log_growth[row, first]) / below)
    share = min(1.0, max(0.0, share))

    def at(values: Table) -> Points:
        return np.array([(1 - share) * values[row, first - 1] + share * values[row, first]])

    s = low * (high / low) ** share
    with np.errstate(all="ignore"):
        variance = np.exp(at(np.log(table.variance)))
    here = (at(table.mean), variance, at(table.chi), at(table.slope))
    price = cost(np.array([s]), *here, depth)
    return Candidate(beta, s, low, high, float(price[0]), float(at(table.slope)[0]))


def _unused(table: Screened, row: int, beta: float, depth: float) -> list[Candidate]:
    """The best point of a row on which the budget is never used up (affine, or nearly)."""
    here = (table.mean[row], table.variance[row], table.chi[row], table.slope[row])
    price = np.where(table.valid[row], cost(SCALES, *here, depth), np.inf)
    best = int(price.argmin())
    if not math.isfinite(price[best]):
        return []
    s = float(SCALES[best])
    return [Candidate(beta, s, s, s, float(price[best]), float(table.slope[row, best]))]


def _features(act: Activation) -> Points:
    """Means that the grid would miss: between breakpoints, and where f is steepest."""
    places = np.array([point.location for point in act.breakpoints])
    between = (places[1:] + places[:-1]) / 2
    x = np.sinh(np.linspace(-8.0, 8.0, 4001)) * 16 / math.sinh(8.0)
    with np.errstate(all="ignore"):
        slopes = np.abs(act.derivative(x))
    steepest = x[np.nanargmax(slopes)] if np.isfinite(slopes).any() else 0.0
    return np.unique(np.concatenate([between, [steepest]]))
