"""A block of a tensor as rows of consecutive elements, found a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """The part of a tensor that slices pick.

    Attributes:
        tensor: the whole tensor's shape.
        picked: for each dimension, the indices that are picked.
    """

    tensor: tuple[int, ...]
    picked: tuple[range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The block's own shape."""
        return tuple(len(r) for r in self.picked)

    @property
    def size(self) -> int:
        """The number of elements in the block."""
        return math.prod(self.shape)

    def rows(self, at_most: int) -> Iterator[tuple[int, NDArray[np.int64], int]]:
        """Runs of consecutive elements, in groups of at most so many elements.

        Yields:
            Where in the block (flattened) the group begins, the position in the tensor
            (flattened) of each row's first element, and the rows' common length.
        """
        outer = len(self.tensor)
        length = 1
        while outer > 0:  # whole dimensions, then one partial one, run on
            outer -= 1
            indices = self.picked[outer]
            if len(indices) > 1 and indices.step != 1:
                outer += 1
                break
            length *= len(indices)
            if len(indices) < self.tensor[outer]:
                break
        count = math.prod(self.shape[:outer])
        inner = sum(r.start * math.prod(self.tensor[d + 1 :]) for d, r in enumerate(self.picked))
        if length > at_most:
            for row in range(count):
                start = inner + int(self._offsets(np.array([row]), outer)[0])
                for done in range(0, length, at_most):
                    run = min(at_most, length - done)
                    yield row * length + done, np.array([start + done], np.int64), run
            return
        together = at_most // length
        for row in range(0, count, together):
            index = np.arange(row, min(row + together, count))
            yield row * length, inner + self._offsets(index, outer), length

    def _offsets(self, row: NDArray[np.int64], outer: int) -> NDArray[np.int64]:
        """How far each row lies behind the block's first element."""
        offsets = np.zeros_like(row)
        for d in reversed(range(outer)):
            row, at = np.divmod(row, len(self.picked[d]))
            offsets += at * (self.picked[d].step * math.prod(self.tensor[d + 1 :]))
        return offsets


def block(shape: tuple[int, ...], index: tuple[slice, ...] | None, out: tuple[int, ...]) -> Block:
    """The block that `fill` was asked for, once it is known to fit the array.

    Raises:
        ArgumentError: a wrong number of slices, or an array of another shape.
    """
    index = (slice(None),) * len(shape) if index is None else tuple(index)
    if len(index) != len(shape) or not all(isinstance(s, slice) for s in index):
        raise ArgumentError(
            "draw.fill(index)",
            expected=f"{len(shape)} slices, one for each dimension of {shape}",
            got=repr(index),
        )
    found = Block(shape, tuple(range(n)[s] for n, s in zip(shape, index, strict=True)))
    if found.shape != out:
        raise ArgumentError(
            "draw.fill(out)", expected=f"an array of the block's shape {found.shape}", got=str(out)
        )
    return found
