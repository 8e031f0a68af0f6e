"""Runs cells over processes or a cluster; each finished one is a file, so that a run goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
from benchmarks.trainability.cells import Cell
from benchmarks.trainability.measure import fingerprint, measure
from benchmarks.trainability.starts import KNOWN, STARTS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fanin.reproduce.store import Store

Backend = Literal["loky", "dask"]


@dataclass(frozen=True)
class Finished:
    """Results on disk: a folder of cell files, and tables that were committed before.

    Args:
        folder: where cells are kept as they are finished.
        tables: folders with a `cells.json` each.
    """

    folder: Path
    tables: tuple[Path, ...] = ()

    def all(self) -> dict[Cell, dict[str, Any]]:
        """Every result; the folder's own win."""
        found = self.committed()
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(ValueError):  # not a cell, or not a whole one: run it again
                entry = json.loads(path.read_text())
                found[Cell.of(entry["facts"])] = entry["result"]
        return found

    def committed(self) -> dict[Cell, dict[str, Any]]:
        """The results of the tables; later ones win."""
        return {
            Cell.of(entry["facts"]): entry["result"]
            for table in self.tables
            for entry in json.loads((table / "cells.json").read_text())["cells"]
        }

    def stale(self, results: dict[Cell, dict[str, Any]]) -> list[Cell]:
        """Cells whose networks would start from other weights today than they did."""
        return [c for c, r in results.items() if r.get("start") != fingerprint(c)]


def total(cells: Collection[Cell], known: Container[Cell] = ()) -> float:
    """Seconds of one core that cells take, where some are known."""
    first = set(cells)
    return sum(cost(c, len(c.seeds) > 1 and (c.first in known or c.first in first)) for c in first)


def cost(cell: Cell, goes_on: bool = False) -> float:
    """Seconds of one core that a cell takes, by a count of its multiplications.

    Fitted to the committed cells, from one of two busy cores of a virtual EPYC; elsewhere a
    guess, enough for a plan. A cell that ends early takes less.

    Args:
        cell: what is trained.
        goes_on: whether its first seed is trained already.
    """
    how = STARTS.get(cell.start)
    found = 12.0 if how and how.transform else 0.3  # for the constants of a changed activation
    if how and how.transform and cell.activation not in KNOWN:
        return 0.0
    networks, passes = len(cell.seeds) - 1, int(len(cell.seeds) > 1)
    if not goes_on:
        networks, passes = networks + len(cell.rates), passes + 1
    if cell.family.startswith("gpt"):
        return networks * cell.epochs * 0.001 * cell.batch * cell.depth
    steps = cell.epochs * (cell.images * 9 // 10) // cell.batch
    product = {"plain": 1.6e-10, "conv": 6.5e-8, "residual": 8e-8}[cell.family]
    layer = networks * (cell.batch * product * cell.width**2 + 2e-5) + passes * 1e-4
    more = (1.4 if how and how.norm else 1.0) * (1.15 if cell.optimiser == "adam" else 1.0)
    return found + steps * cell.depth * layer * more


def run(
    cells: Sequence[Cell],
    finished: Finished,
    *,
    workers: int,
    backend: Backend = "loky",
    address: str | None = None,
    end: float = math.inf,
    console: Console | None = None,
) -> None:
    """Train cells in the order given.

    A cell is written when it is done, by one replacement of a file: an interruption loses the
    cells in flight and nothing else. A cell of several seeds goes on from the same cell of the
    first seed, where that is finished.

    Args:
        cells: by importance.
        finished: what is known; each result goes into its folder.
        workers: processes side by side, each with one thread; -1 for one a core.
        backend: `loky` for processes here, `dask` for a cluster.
        address: of the cluster's scheduler, or None for a cluster on this machine.
        end: time of `time.monotonic` after which no further cell is started.
        console: where progress is shown.
    """
    store, known = Store(finished.folder), finished.all()
    with _backend(backend, address, workers), _bar(cells, known, console) as advance:
        jobs = (
            joblib.delayed(_one)(cell, known.get(cell.first))
            for cell in itertools.takewhile(lambda _: time.monotonic() < end, cells)
        )
        parallel = joblib.Parallel(
            n_jobs=workers if backend == "loky" else -1,  # all that the cluster has
            pre_dispatch="n_jobs",
            batch_size=1,
            return_as="generator_unordered",
        )
        for facts, result in parallel(jobs):
            store.put(facts, result)
            advance(Cell.of(facts))


def _one(cell: Cell, first: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """One cell, in a worker: its facts and its result."""
    began = time.process_time()
    result = measure(cell, first if len(cell.seeds) > 1 else None)
    return cell.facts, {**result, "seconds": round(time.process_time() - began, 1)}


@contextlib.contextmanager
def _backend(name: Backend, address: str | None, workers: int) -> Iterator[None]:
    """Sets joblib's back-end, connected to the cluster where one is asked for."""
    if name == "loky":
        with joblib.parallel_config(backend="loky"):
            yield
        return
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        where: Any = address
        if address is None:
            size = joblib.cpu_count() if workers == -1 else workers
            where = stack.enter_context(LocalCluster(n_workers=size, threads_per_worker=1))
        stack.enter_context(Client(where))
        stack.enter_context(joblib.parallel_config(backend="dask"))
        yield


@contextlib.contextmanager
def _bar(todo: Sequence[Cell], known: Container[Cell], console: Console | None) -> Iterator[Any]:
    """A bar over the work, with the time that is left by the work done so far."""
    console = console or Console(stderr=True)
    whole, spent, began = total(todo, known), 0.0, time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("cells", total=len(todo), left="")

        def advance(cell: Cell) -> None:
            nonlocal spent
            spent += total([cell], known)
            left = (time.monotonic() - began) * (whole / spent - 1)
            progress.update(bar, advance=1, left=f"{duration(left)} left")
            if not console.is_terminal:
                console.print(f"{cell}; {duration(left)} left", highlight=False)

        yield advance


def duration(seconds: float) -> str:
    """Seconds in words: `3 h 20 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
