"""`householder.reflect` and `apply_panel`, compiled: the same sums in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.draw.householder import PANEL
from fanin.draw.kernels import compiled
from fanin.draw.tiles import HEIGHT, WIDTH, place, tile, tile_of_one_row

if TYPE_CHECKING:
    from fanin.draw.householder import Panel

ROWS = 64  # of a matrix that pass through the first cache together
DOUBLES = WIDTH // 8  # in a row of a tile


@compiled
def _multiply_add(c, a, b):  # type: ignore[no-untyped-def]
    """c := c + a b, a tile at a time; each element adds its products in the order of k.

    The columns of c fill tiles, and lie beside each other, as those of a and b do.
    """
    item = c.itemsize
    nc, na, nb = c.strides[0] // item, a.strides[0] // item, b.strides[0] // item
    whole = len(c) // HEIGHT * HEIGHT
    for p in range(0, whole, HEIGHT):
        for j in range(0, c.shape[1], WIDTH // item):
            tile(place(c, p, j), place(a, p, 0), place(b, 0, j), len(b), nc, na, nb)
    for p in range(whole, len(c)):
        for j in range(0, c.shape[1], WIDTH // item):
            tile_of_one_row(place(c, p, j), place(a, p, 0), place(b, 0, j), len(b), nc, na, nb)


@compiled
def _gram(x, minus, s):  # type: ignore[no-untyped-def]
    """The upper triangle of s := X Xᵀ in float64 and minus := -Xᵀ, some columns at a time."""
    width, length = x.shape
    some, turned = np.zeros((PANEL, ROWS), np.float64), np.zeros((ROWS, PANEL), np.float64)
    for start in range(0, length, ROWS):
        columns = min(ROWS, length - start)
        for i in range(width):
            row, source = some[i], x[i]
            for k in range(columns):
                row[k] = source[start + k]
        for k in range(columns):
            row, target = turned[k], minus[start + k]
            for i in range(width):
                row[i] = some[i, k]
                target[i] = -some[i, k]
        for p in range(0, width, HEIGHT):
            j = p // DOUBLES * DOUBLES
            _multiply_add(s[p : p + HEIGHT, j:], some[p : p + HEIGHT], turned[:columns, j:])


@compiled
def _reflect(x, minus, t, signs, s, t64):  # type: ignore[no-untyped-def]
    """`reflect` into given arrays, with float64 room for S and T."""
    width = len(x)
    for i in range(width):
        for j in range(i):
            x[i, j] = 0
    _gram(x, minus, s)
    for j in range(width):
        corner = np.float64(x[j, j])
        sign = -1.0 if corner < 0 else 1.0
        x[j, j] = corner + sign * np.sqrt(s[j, j])
        minus[j, j], signs[j] = -x[j, j], -sign
        added = np.float64(x[j, j]) - corner
        s[j, j] += added * (2 * corner + added)
        t64[j, j] = 2 / s[j, j]
        for i in range(j):
            s[i, j] += added * np.float64(x[i, j])
        for i in range(j):
            for r in range(j):
                t64[r, j] -= t64[r, i] * s[i, j]
        for r in range(j):
            t64[r, j] *= t64[j, j]
        for r in range(j + 1):
            t[r, j] = t64[r, j]


@compiled
def _sweep(q, start, skipped, minus, y, first, skip, v, w):  # type: ignore[no-untyped-def]
    """q := q + minus y from row `start` and column `skipped` on, and w := V q from `first`, `skip`.

    Some rows at a time pass through both while they are in the first cache.
    """
    for r in range(first, len(q), ROWS):
        end, begin = min(r + ROWS, len(q)), max(r, start)
        if begin < end:
            _multiply_add(
                q[begin:end, skipped:], minus[begin - start : end - start], y[:, skipped:]
            )
        _multiply_add(w[:, skip:], v[:, r - first : end - first], q[r:end, skip:])


def reflect(x: Any) -> tuple[Any, Any, Any]:
    """`householder.reflect`, compiled."""
    width, length = x.shape
    minus, t = np.empty((length, width), x.dtype), np.zeros((width, width), x.dtype)
    signs = np.empty(width, x.dtype)
    _reflect(x, minus, t, signs, np.zeros((PANEL, PANEL)), np.zeros((width, width)))
    return minus, t, signs


def sweep(q: Any, start: int, before: Panel | None, y: Any, p: Panel | None) -> Any:
    """`householder.sweep`, compiled."""
    nothing = np.empty((0, 0), q.dtype)
    finished = (len(q), 0, nothing)
    if before is not None:
        finished = before.first, before.untouched(start), before.minus
    begun = (finished[0], 0, nothing) if p is None else (p.first, p.untouched(start), p.v)
    w, following = np.zeros((2, len(begun[2]), q.shape[1]), q.dtype)
    _sweep(q, *finished, y, *begun, w)
    if p is not None:
        _multiply_add(following, p.t, w)
    return following
