"""Random orthogonal matrices as products of reflections, in arithmetic of a fixed order.

A Gaussian matrix need not be factored: the reflections that its QR factorization would use have
independent Gaussian vectors themselves, so they are drawn, and multiplied out in panels (Stewart
1980). Sums run over one index in order, and columns do not meet, so the bits depend on no BLAS, no
number of threads and no choice of columns.
"""

from __future__ import annotations

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
    rows: int, first: int, last: int, panels: Iterator[Panel], apply: Callable[..., None]
) -> Real:
    """Columns first to last - 1 of H_0 H_1 ... times the signs.

    Args:
        rows: m, the length of a column.
        first: a multiple of STRIPE.
        last: one beyond the last column.
        panels: from the one with reflection last - 1 down to that with reflection 0: the later
            ones leave these columns of the identity as they are.
        apply: `apply_panel`, or its compiled form.

    Returns:
        An array [stripes, m, STRIPE].
    """
    stripes = -(-(last - first) // STRIPE)
    q: Real = np.empty(0)
    for p in panels:
        if q.size == 0:
            q = np.zeros((stripes, rows, STRIPE), p.v.dtype)
            c = np.arange(last - first)
            q[c // STRIPE, first + c, c % STRIPE] = 1
        for stripe in q:
            apply(stripe[p.first :], p.v, p.minus, p.t)
        low, high = max(first, p.first) - first, min(last, p.first + len(p.v)) - first
        if high > low:
            c = np.arange(low, high)
            q[c // STRIPE, :, c % STRIPE] *= p.signs[c + first - p.first, None]
    return q


def apply_panel(q: Real, v: Real, minus: Real, t: Real) -> None:
    """q := q - Vᵀ T V q, in place."""
    w = np.zeros((len(v), q.shape[1]), q.dtype)
    y = np.zeros_like(w)
    _multiply_add(w, v, q)
    _multiply_add(y, t, w)
    _multiply_add(q, minus, y)


def _multiply_add(c: Real, a: Real, b: Real) -> None:
    """c := c + a b, one column of a after the other."""
    for k in range(len(b)):
        c += a[:, k, None] * b[k]
