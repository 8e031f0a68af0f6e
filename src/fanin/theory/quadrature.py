"""Panels of Gauss-Legendre nodes: what is resolved, what is refined, what is noise.

On a panel a function is *resolved* when the last Legendre coefficients of its interpolant vanish.
The rule with n nodes is exact up to degree 2n - 1, so it integrates the product of two resolved
functions exactly, and what they leave unresolved bounds the error:
|integral a b - sum| <= integral |a - p||b| + |p||b - q| for the interpolants p of a and q of b.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import legendre

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

    Points = Float[ndarray, "points"]
    PerPanel = Float[ndarray, "panels"]
    Mask = Bool[ndarray, "panels"]
    Values = Float[ndarray, "panels nodes"]

ORDER = 20
EPS = float(np.finfo(np.float64).eps)
NODES = legendre.leggauss(ORDER)[0]

# From values at the nodes to the coefficients of the interpolant in Legendre polynomials. The
# weights are read off it: those of `leggauss` carry an error of several units in the last place.
TO_COEFFICIENTS = np.linalg.inv(legendre.legvander(NODES, ORDER - 1))
WEIGHTS = TO_COEFFICIENTS[0] + TO_COEFFICIENTS[0, ::-1]

_TAIL_TERMS = 4
_TO_TAIL = TO_COEFFICIENTS[-_TAIL_TERMS:].T.copy()
NOISE = 1e-6


def tail(values: Values) -> PerPanel:
    """How much of a function its interpolant does not hold: the sum of the last coefficients."""
    result: PerPanel = np.abs(values @ _TO_TAIL).sum(axis=-1)
    return result


def fitted(values: Values) -> tuple[Values, PerPanel]:
    """Legendre coefficients of the interpolants, and a bound on the error of their slopes.

    The series ends at its last coefficient above rounding, since a slope multiplies noise by the
    square of the degree. The bound is for panels of half width 1.
    """
    series = values @ TO_COEFFICIENTS.T
    size = np.abs(values).max(axis=-1)
    above = np.abs(series) > 4 * EPS * size[..., None]
    degree = ORDER - 1 - above[..., ::-1].argmax(axis=-1)
    kept: Values = np.where(np.arange(ORDER) <= degree[..., None], series, 0.0)
    return kept, ORDER**2 * tail(values) + 4 * EPS * degree**2 * size


def slopes_at(t: Values, series: Values) -> Values:
    """The slope in t of each panel's interpolant at its points t in [-1, 1]."""
    basis = legendre.legvander(t, ORDER - 2)
    result: Values = np.einsum("...tk,...k->...t", basis, legendre.legder(series, axis=-1))
    return result


# From a series to the slopes of the interpolant at the nodes, for half width 1.
TO_SLOPES = legendre.legvander(NODES, ORDER - 2) @ legendre.legder(np.eye(ORDER))


def is_noise(part: PerPanel, before: PerPanel, size: PerPanel) -> Mask:
    """Both halves of a panel are as unresolved as it was, at a small level: that is rounding.

    Args:
        part: what each panel leaves unresolved; left halves first, then the right ones.
        before: the same for the panel that each was cut from; infinite for the first panels.
        size: the largest value on each panel.
    """
    stays: Mask = (part > before / 4) & (part < NOISE * size)
    middle = len(part) // 2
    both: Mask = stays & np.concatenate([stays[middle:], stays[:middle]])
    return both


@dataclass(frozen=True, eq=False)
class Panels:
    """Intervals from left to right with their nodes."""

    left: PerPanel
    right: PerPanel

    @classmethod
    def between(cls, ends: Points) -> Panels:
        return cls(ends[:-1], ends[1:])

    @classmethod
    def joined(cls, parts: list[Panels]) -> Panels:
        """All panels of several lists, sorted."""
        left = np.concatenate([part.left for part in parts])
        right = np.concatenate([part.right for part in parts])
        return cls(left, right).chosen(np.argsort(left, kind="stable"))

    @cached_property
    def centre(self) -> PerPanel:
        result: PerPanel = (self.left + self.right) / 2
        return result

    @cached_property
    def half(self) -> PerPanel:
        result: PerPanel = (self.right - self.left) / 2
        return result

    @cached_property
    def nodes(self) -> Values:
        result: Values = self.centre[:, None] + self.half[:, None] * NODES
        return result

    @property
    def ends(self) -> Points:
        """The ends of panels that cover an interval."""
        return np.append(self.left, self.right[-1:])

    def chosen(self, which: Mask) -> Panels:
        """Some of the panels, by a mask or by their order."""
        return Panels(self.left[which], self.right[which])

    def halved(self) -> Panels:
        """Each panel cut in two: first all left halves, then all right ones."""
        return Panels(np.append(self.left, self.centre), np.append(self.centre, self.right))


def distinct(points: Points, left: float, right: float) -> Points:
    """The points inside (left, right) with both ends, sorted, without near duplicates."""
    inside = np.unique(points[(points > left) & (points < right)])
    ends = np.concatenate([[left], inside, [right]])
    apart = np.diff(ends) > 8 * EPS * np.maximum(np.abs(ends[1:]), np.abs(ends[:-1]))
    apart[-1] = True
    result: Points = ends[np.concatenate([[True], apart])]
    return result
