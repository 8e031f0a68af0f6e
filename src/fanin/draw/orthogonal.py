"""Orthogonal tensors: which matrices they consist of, and which parts of those are asked for."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.draw import householder
from fanin.draw.blocks import Block
from fanin.draw.distributions import DeltaOrthogonal, Orthogonal
from fanin.draw.fill import in_threads, kernels_for, normals, rounded
from fanin.draw.householder import PANEL, STRIPE, Panel
from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.draw.philox import Stream
    from fanin.draw.rounding import Format

MEMORY = 56 * 2**20
"""Bytes that all threads together may take, if one stripe of columns in each allows it."""


@dataclass(frozen=True)
class Matrix:
    """One of a tensor's matrices, and where the wanted part of it goes.

    Attributes:
        number: of this matrix in the tensor.
        rows: wanted rows of the matrix.
        columns: wanted columns of the matrix.
        out: where they go, [rows, *trailing dimensions].
    """

    number: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    out: NDArray[Any]


def fill_orthogonal(
    out: NDArray[Any],
    distribution: Orthogonal | DeltaOrthogonal,
    source: Stream,
    part: Block,
    target: Format,
    threads: int,
) -> None:
    """Draw the wanted part of a tensor, computing only the columns that it needs."""
    if isinstance(distribution, DeltaOrthogonal):
        centre = _centre(distribution, part)
        part = Block(part.tensor[:2], part.picked[:2])
        distribution = Orthogonal(distribution.gain, distribution.groups, keep=distribution.keep)
        _matrix_shape(distribution, part.tensor)  # refused before anything is written
        out[...] = np.zeros((), out.dtype)
        if centre is None:
            return
        everything: tuple[slice | int, ...] = (slice(None), slice(None), *centre)
        out = out[everything]
    height, width = _matrix_shape(distribution, part.tensor)
    gain = distribution.gain
    if distribution.keep == "second_moment":
        gain *= math.sqrt(max(1.0, height / width))
    tall = height >= width
    drawing = _Drawing(source, max(height, width), min(height, width), target, out.size)
    each = drawing.columns_at_a_time(threads)
    tasks = (
        (matrix, first)
        for matrix in _matrices(out, distribution, part, height)
        for first in _needed(matrix.columns if tall else matrix.rows, each)
    )
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            matrix, first = task
            last = min(first + each, drawing.short)
            # not kept in a variable: it is freed before the next is made
            _place(
                matrix, drawing.columns(matrix.number, first, last), first, last, gain, tall, target
            )

    in_threads(work, drawing.threads(threads))


def _centre(distribution: DeltaOrthogonal, part: Block) -> tuple[int, ...] | None:
    """Where the centre tap lies in the block, if it does."""
    if len(part.tensor) < 3:
        raise ArgumentError(
            "DeltaOrthogonal",
            expected="a kernel [out, in, taps...] of three dimensions or more",
            got=f"shape {part.tensor}",
            fix="use Orthogonal for a matrix",
        )
    wanted = [n // 2 for n in part.tensor[2:]]
    if not all(c in r for c, r in zip(wanted, part.picked[2:], strict=True)):
        return None
    return tuple(r.index(c) for c, r in zip(wanted, part.picked[2:], strict=True))


def _matrix_shape(distribution: Orthogonal, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of each matrix."""
    batch, groups = distribution.batch_dims, distribution.groups
    if len(shape) < batch + 2 or 0 in shape or shape[batch] % groups:
        raise ArgumentError(
            f"{distribution}",
            expected=f"{batch + 2} or more dimensions, dimension {batch} a multiple of {groups}",
            got=f"shape {shape}",
        )
    return shape[batch] // groups, math.prod(shape[batch + 1 :])


def _matrices(
    out: NDArray[Any], distribution: Orthogonal, part: Block, height: int
) -> Iterator[Matrix]:
    """The matrices that the block touches."""
    batch, groups = distribution.batch_dims, distribution.groups
    rows = np.asarray(part.picked[batch], np.int64)
    columns = np.zeros((), np.int64)
    for n, picked in zip(part.tensor[batch + 1 :], part.picked[batch + 1 :], strict=True):
        columns = columns[..., None] * n + np.asarray(picked, np.int64)
    for local in itertools.product(*(range(len(r)) for r in part.picked[:batch])):
        number = 0
        for n, picked, i in zip(part.tensor, part.picked, local, strict=False):
            number = number * n + picked[i]
        for group in range(groups):
            (at,) = np.nonzero(rows // height == group)
            if len(at) and columns.size:
                place: tuple[int | slice, ...] = (*local, slice(at[0], at[-1] + 1))
                yield Matrix(
                    number * groups + group, rows[at] % height, columns.reshape(-1), out[place]
                )


def _needed(indices: NDArray[np.int64], each: int) -> list[int]:
    """The first columns of the groups in which the indices lie, the longest work first."""
    return [int(g) * each for g in np.unique(indices // each)[::-1]]


@dataclass(frozen=True)
class _Drawing:
    """Draws columns of matrices long x short with orthonormal columns."""

    source: Stream
    long: int
    short: int
    target: Format
    size: int

    @property
    def dtype(self) -> type[np.generic]:
        """The type that is computed in."""
        return np.float64 if self.target.name == "float64" else np.float32

    def threads(self, asked: int) -> int:
        """So many threads that a stripe in each stays within the memory."""
        item = np.dtype(self.dtype).itemsize
        return max(1, min(asked, MEMORY // (self.long * (STRIPE + 5 * PANEL) * item)))

    def columns_at_a_time(self, asked: int) -> int:
        """Stripes of columns that share the drawing of the vectors, as many as memory allows."""
        threads, item = self.threads(asked), np.dtype(self.dtype).itemsize
        room = MEMORY // threads - 5 * PANEL * self.long * item
        fair = -(-self.short // (STRIPE * threads))
        return STRIPE * max(1, min(room // (STRIPE * self.long * item), fair))

    def columns(self, number: int, first: int, last: int) -> NDArray[Any]:
        """Columns first to last - 1 of one matrix, in stripes."""
        panels, sweep = self._panels(number, last), _arithmetic(self.size).sweep
        return householder.columns(self.long, first, last, panels, self.dtype, sweep)

    def _panels(self, number: int, last: int) -> Iterator[Panel]:
        """The panels that columns up to last need, the last one first."""
        reflect = _arithmetic(self.size).reflect
        base = number * self.long * self.short
        for first in range((last - 1) // PANEL * PANEL, -1, -PANEL):
            vectors = np.arange(first, min(first + PANEL, self.short))
            x = np.empty((len(vectors), self.long - first), self.dtype)
            normals(x, self.source, base + vectors * self.long + first)
            yield Panel(first, x, *reflect(x))


def _arithmetic(size: int) -> ModuleType:
    """`householder`, or its compiled form where that is worth its import."""
    if kernels_for(size) is None:
        return householder
    from fanin.draw import reflections

    return reflections


def _place(
    matrix: Matrix,
    stripes: NDArray[Any],
    first: int,
    last: int,
    gain: float,
    tall: bool,
    target: Format,
) -> None:
    """Round the wanted elements of some columns, times the gain, into the output."""
    short, long = (matrix.columns, matrix.rows) if tall else (matrix.rows, matrix.columns)
    (at,) = np.nonzero((short >= first) & (short < last))
    trailing = matrix.out.shape[1:]
    for i, stripe in enumerate(stripes):
        inside = at[(short[at] - first) // STRIPE == i]
        if not len(inside):
            continue
        columns = (short[inside] - first) % STRIPE
        whole = len(columns) == STRIPE and len(long) == len(stripe)
        values = stripe if whole else np.ascontiguousarray(stripe[np.ix_(long, columns)])
        values *= stripe.dtype.type(gain)
        values = rounded(values, target, matrix.out.dtype)
        if not tall:
            matrix.out[inside] = values.T.reshape(-1, *trailing)
        elif len(trailing) == 1:
            matrix.out[:, inside[0] : inside[-1] + 1] = values
        else:
            matrix.out[(slice(None), *np.unravel_index(inside, trailing))] = values
