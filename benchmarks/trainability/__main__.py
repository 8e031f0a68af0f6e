"""The command: `run` trains cells, `keep` makes a dated table, `report` makes the page."""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.trainability import climb, run, table
from benchmarks.trainability.cells import CLIMBING, SETS, Cell
from benchmarks.trainability.measure import FASHION
from rich.console import Console

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
CELLS = Path("build/trainability")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainability")
    parser.add_argument("--cells", type=Path, default=CELLS, help=f"folder of cells ({CELLS})")
    commands = parser.add_subparsers(dest="command", required=True)
    _run_options(commands.add_parser("run", help="train the cells that are not finished"))
    keep = commands.add_parser("keep", help="write finished cells as a dated table")
    keep.add_argument("--date", default=datetime.date.today().isoformat())
    keep.add_argument("--note", default="", help="how and when the cells were run")
    commands.add_parser("report", help="tables and figures into docs/")
    options = parser.parse_args(arguments)
    tables = tuple(sorted(RESULTS.glob("trainability-*")))
    finished = run.Finished(options.cells, tables)
    return {"run": _run, "keep": _keep, "report": _report}[options.command](options, finished)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", choices=SETS, default="quick")
    parser.add_argument("--workers", type=int, default=-1, help="processes (one a core)")
    parser.add_argument("--backend", choices=("loky", "dask"), default="loky")
    parser.add_argument("--address", help="of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--limit", type=int, help="at most so many of the set's cells")
    parser.add_argument("--minutes", type=float, help="start no cell after so many minutes")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost")
    parser.add_argument("--fresh", action="store_true", help="also what is in committed tables")
    parser.add_argument("--refresh", action="store_true", help="again where starts have changed")


def _run(options: argparse.Namespace, everything: run.Finished) -> int:
    finished = replace(everything, tables=()) if options.fresh else everything
    cells = list(itertools.islice(_readable(SETS[options.set]()), options.limit))
    old = _old(cells, finished) if options.refresh else {}
    todo = _todo(options.set, cells, finished, old)
    for kind, count in Counter(f"{c.family}, {c.data}, {c.optimiser}" for c in todo).items():
        print(f"{count:5d} cells: {kind}")
    climbs = options.set in CLIMBING
    bound = "at most " if climbs else ""
    cost = run.duration(run.total(todo, finished.all()))
    print(
        f"{bound}{len(todo)} of {len(set(cells))} cells to train, {bound}about {cost} on one core"
    )
    if options.dry_run:
        return 0
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    try:
        for stage in climb.stages(cells) if climbs else [cells]:
            run.run(
                _todo(options.set, stage, finished, old),
                finished,
                workers=options.workers,
                backend=options.backend,
                address=options.address,
                end=end,
                console=Console(stderr=True),
            )
            if time.monotonic() >= end:
                break
    except KeyboardInterrupt:
        print(f"stopped; what is finished is in {finished.folder}, the same command goes on")
        return 130
    if options.fresh:
        _show(cells, finished, everything.committed())
    return 0


def _show(cells: Sequence[Cell], finished: run.Finished, committed: table.Results) -> None:
    """What was trained here beside what is committed, and its pictures beside its files."""
    from benchmarks.trainability import report

    results = finished.all()
    print("\n".join(table.compared(cells, results, committed)))
    for path in report.draw(finished.folder, results):
        print(path)


def _old(cells: Sequence[Cell], finished: run.Finished) -> dict[Cell, dict[str, Any]]:
    """Results of networks that would start from other weights today."""
    done = finished.all()
    return {c: done[c] for c in finished.stale({c: done[c] for c in cells if c in done})}


def _todo(
    name: str, cells: Sequence[Cell], finished: run.Finished, old: table.Results
) -> list[Cell]:
    """The cells that are to be trained, by what is finished now."""
    done = {c: result for c, result in finished.all().items() if old.get(c) != result}
    if name in CLIMBING:
        cells = climb.due(cells, done)
    return [c for c in dict.fromkeys(cells) if c not in done]


def _readable(cells: Iterator[Cell]) -> list[Cell]:
    """Cells whose data is on this machine; what is left out is said."""
    found = list(cells)
    absent = [c for c in found if c.data == "fashion-mnist"] if not FASHION.is_dir() else []
    if absent:
        print(
            f"{len(absent)} cells left out: {FASHION} is not there "
            "(Debian: apt-get install dataset-fashion-mnist)"
        )
    return [c for c in found if c not in set(absent)]


def _keep(options: argparse.Namespace, finished: run.Finished) -> int:
    path = RESULTS / f"trainability-{options.date}"
    count = table.write(path, finished.all(), options.note)
    print(f"{count} cells in {path}")
    return 0


def _report(options: argparse.Namespace, finished: run.Finished) -> int:
    from benchmarks.trainability import report

    for path in report.write(HERE.parents[1] / "docs", finished.all()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
