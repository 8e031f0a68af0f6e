"""The climb: every start on shallow networks first, on deeper ones where it trained those."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmarks.trainability.cells import DEPTHS, Cell
from benchmarks.trainability.table import Results, score


def stages(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Runs of consecutive cells that do not rule each other out."""

    def kind(cell: Cell) -> tuple[object, ...]:
        return cell.family, cell.data, cell.optimiser, cell.seeds, cell.depth

    for _, stage in itertools.groupby(cells, kind):
        yield list(stage)


def due(cells: Iterable[Cell], results: Results) -> list[Cell]:
    """The cells that neither a shallower one nor the first seed has ruled out.

    Assumes that depth never helps: a start that did not bring an activation to the bar at one
    depth is taken not to bring it there at a greater one. Where the first seed stayed below the
    bar, not all seeds reach it, whatever the others do.
    """
    return [c for c in cells if _led(c, results) and stopped(c, results) is None]


def _led(cell: Cell, results: Results) -> bool:
    """Whether the first seed reached the bar, or may do so."""
    if len(cell.seeds) == 1:
        return True
    if (known := results.get(cell.first)) is None:
        return stopped(cell.first, results) is None
    scored = score(cell.first, known)
    return scored is not None and scored.trained


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
