"""Finished cells as one dated file, and the questions that the page asks of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import machine, versions
from benchmarks.trainability.cells import DEPTHS, Cell

from fanin.reproduce.store import write_text

Results = Mapping[Cell, dict[str, Any]]

BAR = 0.8
"""Test accuracy at which a network counts as trained."""
_PACKAGES = ("torch", "numpy", "mlxtend", "lsuv", "anyinit", "dks", "joblib")


def write(folder: Path, results: Results, note: str) -> int:
    """Write `cells.json`: where and how it was made, then a cell a line.

    Returns:
        The number of cells.
    """
    about = {
        "machine": machine(),
        "versions": versions(*_PACKAGES),
        "command": "python -m benchmarks.trainability run --set full",
        "note": note,
    }
    lines = [
        json.dumps({"facts": cell.facts, "result": found})
        for cell, found in sorted(results.items(), key=lambda item: str(item[0].facts))
    ]
    head = json.dumps(about, indent=1)
    text = '{"about": ' + head + ',\n"cells": [\n' + ",\n".join(lines) + "\n]}\n"
    write_text(folder / "cells.json", text)
    return len(lines)


@dataclass(frozen=True)
class Score:
    """What the seeds of a cell came to.

    Args:
        final: test accuracy of each seed (for text, held-out loss).
        steps: to `BAR` of each seed, counted in whole epochs; None where it was not reached.
        rate: learning rate.
        seconds: of one core, for all networks of the cell.
    """

    final: tuple[float, ...]
    steps: tuple[int | None, ...]
    rate: float
    seconds: float

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(self.final)

    @property
    def spread(self) -> float:
        """Half the distance from the least seed to the most."""
        return (max(self.final) - min(self.final)) / 2

    @property
    def trained(self) -> bool:
        """Whether all seeds end at `BAR` or above."""
        return min(self.final) >= BAR


def score(cell: Cell, result: Mapping[str, Any]) -> Score | None:
    """The score of a cell; None where the start does not exist."""
    if "unsupported" in result:
        return None
    per_epoch = cell.images * 9 // 10 // cell.batch
    steps = [
        next((per_epoch * (i + 1) for i, x in enumerate(curve) if x is not None and x >= BAR), None)
        for curve in result["curves"]
    ]
    final = tuple(float("inf") if x is None else x for x in result["final"])
    return Score(final, tuple(steps), result["rate"], result.get("seconds", 0.0))


def compared(cells: Iterable[Cell], results: Results, committed: Results) -> list[str]:
    """A line for each finished cell: what it came to here, and in the committed tables."""
    lines = []
    for cell in dict.fromkeys(cells):
        here, there = (score(cell, r[cell]) if cell in r else None for r in (results, committed))
        if here is not None:
            known = f" (committed: {there.mean:.1%})" if there else ""
            lines.append(f"{here.mean:6.1%}{known}  {cell}")
    return lines


def pick(results: Results, **wanted: Any) -> tuple[Cell, dict[str, Any]] | None:
    """The cell with these fields, of several that with most seeds, then most rates."""
    found = [c for c in results if all(getattr(c, k) == v for k, v in wanted.items())]
    if not found:
        return None
    best = max(found, key=lambda c: (len(c.seeds), len(c.rates), c.epochs))
    return best, results[best]


@dataclass(frozen=True)
class Reach:
    """How deep a start trains one activation.

    Args:
        trained: deepest network that all seeds brought to `BAR`; 0 where none.
        run: deepest network that was trained at all; 0 where the start does not exist.
        failed: least depth at which a seed stayed below `BAR`; None where none did.
    """

    trained: int
    run: int
    failed: int | None

    def __str__(self) -> str:
        return f"{self.trained} of {self.run}" if self.run else "–"


def reach(results: Results, activation: str, start: str, **wanted: Any) -> Reach | None:
    """How deep a start trains an activation; None where no plain network of theirs was run."""
    asked = {"family": "plain", "data": "mnist", "optimiser": "sgd", **wanted}
    theirs = {c: r for c, r in results.items() if (c.activation, c.start) == (activation, start)}
    found = {d: pick(theirs, depth=d, **asked) for d in DEPTHS}
    if not any(found.values()):
        return None
    scored = {d: x for d, known in found.items() if known and (x := score(*known))}
    trained = [d for d, x in scored.items() if x.trained]
    failed = [d for d in scored if d not in trained]
    return Reach(max(trained, default=0), max(scored, default=0), min(failed, default=None))


def lead(results: Results, activation: str, depth: int, rivals: Iterable[str]) -> float | None:
    """Accuracy of fanin over that of the best of its rivals, at the seeds that both have.

    None where fanin or all of the rivals were not run.
    """

    def finals(start: str) -> dict[int, float]:
        found = pick(
            results, family="plain", activation=activation, depth=depth, start=start,
            data="mnist", optimiser="sgd",
        )  # fmt: skip
        scored = score(*found) if found else None
        return dict(zip(found[0].seeds, scored.final, strict=True)) if found and scored else {}

    ours, leads = finals("fanin"), []
    for theirs in map(finals, rivals):
        if both := ours.keys() & theirs.keys():
            leads.append(statistics.mean(ours[seed] - theirs[seed] for seed in both))
    return min(leads, default=None)
