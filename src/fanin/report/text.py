"""The report for a terminal or a log: plain text, one screen."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fanin.torch.probing.measurement import Layer

if TYPE_CHECKING:
    from fanin.report.findings import Finding
    from fanin.report.report import Report
    from fanin.report.tensors import Tensor

WIDTH = 100
"""Of logs; a terminal has its own."""
NARROWEST, WIDEST = 72, 120
MOST_ROWS = 40
"""Longer tables are cut in the middle, around the rows that findings name."""


def text(report: Report, width: int = WIDTH) -> str:
    """The whole report as plain text."""
    parts = [headline(report), *facts(report)]
    for finding in report.findings:
        parts += ["", *lines_of(finding, width)]
    parts.append("")
    parts += table(report, width)
    notes = (*report.notes, *(report.measured.notes if report.measured else ()))
    parts += [line for note in notes for line in _wrapped(f"note: {note}", width, "")]
    return "\n".join(parts).rstrip()


def lines_of(finding: Finding, width: int = WIDTH) -> list[str]:
    """One finding: rule and place, cause, number, fix."""
    lines = [f"{finding.severity} {finding.rule} {finding.name}" + _at(finding.where)]
    lines += _wrapped(finding.cause, width)
    lines += _wrapped(finding.number, width)
    fix = f"     fix: {printable(finding.fix)}"
    code, mark, comment = fix.partition("  # ")
    if mark and len(fix) > width:
        lines += [code, f"          # {comment}"]
    elif finding.fix:
        lines.append(fix)
    return lines


def terminal_width() -> int:
    """The width of the terminal that is written to, within reason; that of logs without one."""
    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def headline(report: Report) -> str:
    """Subject and verdict."""
    batch = f" on {report.measured.batch} samples" if report.measured else ""
    return f"fanin {report.kind}: {printable(report.model)}{batch}: {report.verdict}"


def facts(report: Report) -> list[str]:
    """The start loss, where there is one."""
    loss = report.measured.loss if report.measured else None
    if loss is None:
        return []
    expected = (
        f", expected {loss.expected:.4g} ({loss.meaning})" if loss.expected is not None else ""
    )
    return [f"loss at start {loss.value:.4g}{expected}"]


def printable(name: str) -> str:
    """A name without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)


def _at(where: str) -> str:
    return f" at {printable(where)}" if where else ""


def _wrapped(sentence: str, width: int, indent: str = "     ") -> list[str]:
    return textwrap.wrap(
        printable(sentence),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
    )


def number(value: float | None) -> str:
    """Three digits, or a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}"


def share(value: float | None) -> str:
    """A percentage, or a dash."""
    return "-" if value is None else f"{value:.0%}"


Column = tuple[str, Callable[[Layer], str]]

LAYER_COLUMNS: tuple[Column, ...] = (
    ("layer", lambda r: printable(r.name)),
    ("kind", lambda r: r.kind),
    ("shape", lambda r: "x".join(map(str, r.shape))),
    ("q", lambda r: number(r.second_moment)),
    ("predicted", lambda r: number(r.predicted)),
    ("correlation", lambda r: correlation(r)),
    ("dead", lambda r: share(r.dead)),
    ("saturated", lambda r: share(r.saturated)),
    ("gradient", lambda r: number(r.gradient)),
)


def correlation(row: Layer) -> str:
    """The correlation of two inputs, with its distance from 1 where that says more."""
    if row.distance is None or row.correlation is None:
        return "-"
    return f"1 - {row.distance:.1e}" if row.distance < 1e-3 else f"{row.correlation:.3f}"


def columns_of(layers: Sequence[Layer]) -> tuple[Column, ...]:
    """The columns that say something about these rows."""
    return tuple(
        (title, show)
        for title, show in LAYER_COLUMNS
        if title in ("layer", "kind") or any(show(row) != "-" for row in layers)
    )


def table(report: Report, width: int = WIDTH) -> list[str]:
    """The table of layers or tensors, cut where it is long."""
    if report.measured is not None:
        layers = report.measured.layers
        columns = columns_of(layers)
        rows = [[show(row) for _, show in columns] for row in layers]
        named = {
            i for i, row in enumerate(layers) if any(f.where == row.name for f in report.findings)
        }
        return grid([title for title, _ in columns], rows, keep(len(rows), named), width)
    return tensor_table(report.tensors, report, width)


def tensor_table(tensors: Sequence[Tensor], report: Report, width: int) -> list[str]:
    """One row a tensor: what it holds and who wrote it."""
    titles = ["tensor", "shape", "mean", "std", "asked", "written by"]
    shared = _shared_path([t.name for t in tensors])
    if shared:
        titles[0] = f"in {printable(shared)}"
    rows = [
        [
            printable(t.name[len(shared) :]),
            "x".join(map(str, t.shape)),
            number(t.mean),
            number(t.std),
            printable(t.asked),
            printable(t.source),
        ]
        for t in tensors
    ]
    said = [c for c, title in enumerate(titles) if title != "asked" or any(r[c] for r in rows)]
    titles, rows = [titles[c] for c in said], [[row[c] for c in said] for row in rows]
    named = {i for i, t in enumerate(tensors) if any(f.where == t.name for f in report.findings)}
    return grid(titles, rows, keep(len(rows), named), width)


def _shared_path(names: Sequence[str]) -> str:
    """The modules that all names begin with, with the last dot; empty for fewer than three."""
    if len(names) < 3:
        return ""
    paths = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def keep(count: int, named: Iterable[int], most: int = MOST_ROWS) -> list[int | None]:
    """Indices to show: both ends and the neighbours of what findings name; None for a gap."""
    if count <= most:
        return list(range(count))
    shown = set(range(8)) | set(range(count - 8, count))
    for index in sorted(named):
        if len(shown) > most:
            break
        shown |= {i for i in range(index - 3, index + 4) if 0 <= i < count}
    kept: list[int | None] = []
    for index in sorted(shown):
        if kept and kept[-1] is not None and index > kept[-1] + 1:
            kept.append(None)
        kept.append(index)
    return kept


def grid(
    titles: Sequence[str], rows: Sequence[Sequence[str]], shown: Sequence[int | None], width: int
) -> list[str]:
    """Columns of text, numbers to the right, long names cut in the middle."""
    if not rows:
        return []
    visible = [rows[i] for i in shown if i is not None]
    sizes = [max(len(titles[c]), *(len(r[c]) for r in visible)) for c in range(len(titles))]
    wide = max(range(len(sizes)), key=lambda c: sizes[c])
    sizes[wide] = max(min(sizes[wide], width - sum(sizes) + sizes[wide] - 2 * len(sizes)), 12)
    left = {0, 1, *(c for c, t in enumerate(titles) if t in ("asked", "written by"))}

    def line(cells: Sequence[str]) -> str:
        cut = [_cut(cell, sizes[c]) for c, cell in enumerate(cells)]
        padded = [
            cell.ljust(sizes[c]) if c in left else cell.rjust(sizes[c])
            for c, cell in enumerate(cut)
        ]
        return "  ".join(padded).rstrip()

    hidden = len(rows) - len(visible)
    lines = [line(titles)]
    for index in shown:
        lines.append("  ..." if index is None else line(rows[index]))
    return [*lines, f"  {hidden} more rows in the JSON and the page"] if hidden else lines


def _cut(cell: str, size: int) -> str:
    """A cell in its width: the middle of a long path says least."""
    if len(cell) <= size:
        return cell
    head = (size - 1) // 3
    return f"{cell[:head]}…{cell[len(cell) - (size - head - 1) :]}"
