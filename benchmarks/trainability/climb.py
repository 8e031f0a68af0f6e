"""The climb: every start on shallow networks first, on deeper ones where it trained those."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmarks.trainability.cells import DEPTHS, Cell
from benchmarks.trainability.table import Results, score


def stages(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Runs of consecutive cells of one depth, data and optimiser."""
    for _, stage in itertools.groupby(cells, lambda c: (c.data, c.optimiser, c.depth)):
        yield list(stage)


def due(cells: Iterable[Cell], results: Results) -> list[Cell]:
    """The cells that no shallower one has ruled out.

    Assumes that depth never helps: a start that did not bring an activation to the bar at one
    depth is taken not to bring it there at a greater one.
    """
    return [c for c in cells if stopped(c, results) is None]


def stopped(cell: Cell, results: Results) -> int | None:
    """The least depth below a cell's at which the same start failed; None where it has not.

    A start that does not exist at some depth has not failed there.
    """
    for depth in DEPTHS:
        below = replace(cell, depth=depth)
        scored = score(below, results[below]) if depth < cell.depth and below in results else None
        if scored is not None and not scored.trained:
            return depth
    return None
