"""What `fanin reproduce` says in a terminal: bars while it works, then the verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fanin.reproduce.work import Watch, Work

if TYPE_CHECKING:
    from fanin.reproduce.run import Outcome

_STYLES = {"PASS": "bold green", "FAIL": "bold red", "REPORT": "bold blue"}


@contextlib.contextmanager
def watching(console: Console, titles: dict[int, str]) -> Iterator[Watch]:
    """A bar a claim on a terminal; elsewhere a line a claim, once it is finished.

    Args:
        console: where.
        titles: of the claims, by number.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    said: set[int] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {n: progress.add_task(f"{n}  {title}", total=1.0) for n, title in titles.items()}

        def watch(work: Work) -> None:
            for number, bar in bars.items():
                progress.update(bar, completed=work.done(number))
                if work.finished(number) and number not in said:
                    said.add(number)
                    if not console.is_terminal:
                        console.print(f"claim {number} measured: {titles[number]}", highlight=False)

        yield watch


def table(outcome: Outcome) -> Table:
    """The verdict table, for 80 columns.

    Args:
        outcome: of the run.
    """
    shown = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, padding=(0, 1))
    shown.add_column("verdict", no_wrap=True, width=7)
    shown.add_column("claim", ratio=10)
    shown.add_column("found, and what was expected", ratio=11)
    for claim, conclusion in zip(outcome.claims, outcome.conclusions, strict=True):
        shown.add_row(Text(f"{claim.number}", "bold"), Text(claim.experiment.TITLE, "bold"), "")
        for i, line in enumerate(conclusion.lines):
            found = Text.assemble(line.found, "\n", (line.expected, "dim"))
            shown.add_row(
                Text(line.verdict, _STYLES[line.verdict]),
                Text(line.statement),
                found,
                end_section=i == len(conclusion.lines) - 1,
            )
    return shown
