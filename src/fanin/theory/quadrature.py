"""Panels of Gauss-Legendre nodes: what is resolved, what is refined, what an integral is worth.

On a panel a function is *resolved* when the last Legendre coefficients of its interpolant vanish.
If two functions a and b are resolved, the rule integrates their product exactly, because n nodes are
exact up to degree 2n - 1; so the error of an inner product is bounded by the unresolved parts,
|integral a b - sum| <= integral |a - p||b| + |p||b - q|, and by the rounding of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.polynomial import legendre

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

    Edges = Float[ndarray, "edges"]
    PerPanel = Float[ndarray, "panels"]
    Values = Float[ndarray, "panels nodes"]

ORDER = 20
NODES, WEIGHTS = legendre.leggauss(ORDER)
EPS = float(np.finfo(np.float64).eps)
_TAIL_TERMS = 4

# From values at the nodes to the coefficients of the interpolant in Legendre polynomials.
TO_COEFFICIENTS = (np.arange(ORDER)[:, None] + 0.5) * (
    legendre.legvander(NODES, ORDER - 1) * WEIGHTS[:, None]
).T
_TO_TAIL = TO_COEFFICIENTS[-_TAIL_TERMS:].T.copy()


def tail(values: Values) -> PerPanel:
    """How much of a function its interpolant does not hold: the sum of the last coefficients."""
    result: PerPanel = np.abs(values @ _TO_TAIL).sum(axis=-1)
    return result


class Panels(NamedTuple):
    """Intervals [centre - half, centre + half] with their nodes."""

    centre: PerPanel
    half: PerPanel

    @classmethod
    def between(cls, left: PerPanel, right: PerPanel) -> Panels:
        return cls((left + right) / 2, (right - left) / 2)

    @property
    def nodes(self) -> Values:
        return self.centre[:, None] + self.half[:, None] * NODES

    def halved(self, which: Bool[ndarray, "panels"]) -> Panels:
        """The chosen panels, each cut in two."""
        quarter = self.half[which] / 2
        centre = np.concatenate([self.centre[which] - quarter, self.centre[which] + quarter])
        return Panels(centre, np.concatenate([quarter, quarter]))


def distinct(points: Edges, left: float, right: float) -> Edges:
    """The points inside (left, right) with both ends, sorted, without near duplicates."""
    inside = np.unique(points[(points > left) & (points < right)])
    edges = np.concatenate([[left], inside, [right]])
    apart = np.diff(edges) > 4 * EPS * np.maximum(np.abs(edges[1:]), np.abs(edges[:-1]))
    return edges[np.concatenate([[True], apart])]


Amplitudes = Callable[["Values"], "list[Values]"]
