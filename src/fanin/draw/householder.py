"""Random orthogonal matrices as products of reflections, in arithmetic of a fixed order.

A Gaussian matrix need not be factored: the reflections that its QR factorization would use have
independent Gaussian vectors themselves, so they are drawn, and multiplied out in panels (Stewart
1980). Sums run over one index in order, and columns do not meet, so the bits depend on no BLAS, no
number of threads and no choice of columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Real = NDArray[Any]

PANEL = 32  # reflections multiplied out together
STRIPE = 128  # columns that pass through the first cache together


@dataclass(frozen=True)
class Panel:
    """Consecutive reflections H_j = I - 2 v_j v_jᵀ / |v_j|², whose product is I - Vᵀ T V.

    Attributes:
        first: number of the first reflection, and of the first row that the panel touches.
        v: the vectors as rows, without their `first` leading zeros.
        minus: -V, the vectors as columns.
        t: T, upper triangular.
        signs: of the diagonal that the QR factorization of the Gaussian matrix would have.
    """

    first: int
    v: Real
    minus: Real
    t: Real
    signs: Real

    def untouched(self, start: int) -> int:
        """How many of STRIPE columns of the identity from `start` on the panel leaves alone."""
        return min(STRIPE, max(0, self.first - start))


def reflect(x: Real) -> tuple[Real, Real, Real]:
    """The reflections that take Gaussian rows x_j, from their column j on, to multiples of e_j.

    *Definition.* v_j = x_j + sign(x_jj) |x_j| e_j, T_jj = 2 / |v_j|², and above the diagonal
    T_:j = -T S_:j T_jj with S = V Vᵀ. Turns `x` into V.

    Returns:
        -Vᵀ, T, and the signs of the R that a QR factorization would give.
    """
    width = len(x)
    x[np.tril_indices(width, -1)] = 0
    s = np.zeros((width, width))
    for column in x.T.astype(np.float64):
        s += column[:, None] * column
    corner = x[:, :width].astype(np.float64)
    signs = np.where(np.diagonal(corner) < 0, -1.0, 1.0)
    t = np.zeros((width, width))
    for j in range(width):
        x[j, j] = corner[j, j] + signs[j] * np.sqrt(s[j, j])
        added = np.float64(x[j, j]) - corner[j, j]
        s[j, j] += added * (2 * corner[j, j] + added)
        s[:j, j] += added * corner[:j, j]
        t[j, j] = 2 / s[j, j]
        for i in range(j):
            t[:j, j] -= t[:j, i] * s[i, j]
        t[:j, j] *= t[j, j]
    return -np.ascontiguousarray(x.T), t.astype(x.dtype), -signs.astype(x.dtype)


def columns(
    rows: int,
    first: int,
    last: int,
    panels: Iterator[Panel],
    dtype: type[np.generic],
    sweep: Callable[..., Real],
) -> Real:
    """Columns first to last - 1 of H_0 H_1 ... times the signs.

    Args:
        rows: m, the length of a column.
        first: a multiple of STRIPE.
        last: one beyond the last column.
        panels: from the one with reflection last - 1 down to that with reflection 0: the later
            ones leave these columns of the identity as they are.
        dtype: float32 or float64.
        sweep: `sweep`, or its compiled form.

    Returns:
        An array [stripes, m, STRIPE].
    """
    q = np.zeros((-(-(last - first) // STRIPE), rows, STRIPE), dtype)
    before, products = None, [np.zeros((0, STRIPE), dtype)] * len(q)
    for p in itertools.chain(panels, [None]):
        if p is not None:
            c = np.arange(max(first, p.first), min(last, p.first + len(p.v)))
            q[(c - first) // STRIPE, c, (c - first) % STRIPE] = p.signs[c - p.first]
        for i, stripe in enumerate(q):
            products[i] = sweep(stripe, first + i * STRIPE, before, products[i], p)
        before = p
    return q


def sweep(q: Real, start: int, before: Panel | None, y: Real, p: Panel | None) -> Real:
    """Finish one panel, q := q - Vᵀ Y, and begin the next with Y := T V q, in one pass over q.

    Columns that a panel leaves as they are, those of the identity, are not looked at.

    Args:
        q: some columns of the matrix, in place.
        start: the number of the first.
        before: the panel to finish.
        y: what was returned when it was begun.
        p: the panel to begin.

    Returns:
        Y of p.
    """
    if before is not None and before.untouched(start) < STRIPE:
        some = slice(before.untouched(start), None)
        _multiply_add(q[before.first :, some], before.minus, y[:, some])
    if p is None:
        return y
    w, y = np.zeros((2, len(p.v), STRIPE), q.dtype)
    if p.untouched(start) < STRIPE:
        some = slice(p.untouched(start), None)
        _multiply_add(w[:, some], p.v, q[p.first :, some])
        _multiply_add(y, p.t, w)
    return y


def _multiply_add(c: Real, a: Real, b: Real) -> None:
    """c := c + a b, one column of a after the other."""
    for k in range(len(b)):
        c += a[:, k, None] * b[k]
