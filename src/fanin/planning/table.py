"""A plan as a table of text that fits the terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from fanin import draw
from fanin.planning.plan import Plan, Row, Stack, Values

_HEADS = ("path", "shape", "role", "fans", "rule", "values", "why")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def table(plan: Plan, width: int | None = None, *, every_row: bool = False) -> str:
    """The plan as text no wider than `width`; rows that differ in layer numbers share a line.

    Args:
        plan: the plan.
        width: in characters; the terminal's if not given.
        every_row: one line for each row.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    lines = [(row, 1) for row in plan.rows] if every_row else _alike(plan.rows)
    written = [(row, n) for row, n in lines if row.values is not None]
    kept = [(row, n) for row, n in lines if row.values is None]
    text = _columns([_HEADS, *(_cells(row, n) for row, n in written)], width)
    if kept:
        total = sum(n for _, n in kept)
        text += ["", f"left alone: {total} tensor{'s' if total > 1 else ''}"]
        text += _columns([(_path(row, n), _shape(row), row.reason) for row, n in kept], width)
    if plan.stretches:
        text += ["", "stretches"]
        cells = [(_span(s.weights), s.kind, s.rule, s.reason) for s in plan.stretches]
        text += _columns(cells, width)
    if plan.notes:
        text += ["", *(_cut(f"note: {note}", width) for note in plan.notes)]
    return "\n".join(text)


def _alike(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Rows that say the same of different layers together, each with their number."""

    def key(row: Row) -> Row:
        names = tuple(_NUMBER.sub("*", name) for name in row.names)
        centre = row.centre and replace(row.centre, weight=_NUMBER.sub("*", row.centre.weight))
        path, reason = _NUMBER.sub("*", row.path), re.sub(r"\d+", "*", row.reason)
        return replace(row, path=path, names=names, centre=centre, reason=reason)

    found: dict[Row, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return [
        (members[0] if len(members) == 1 else replace(like, reason=members[0].reason), len(members))
        for like, members in found.items()
    ]


def _cells(row: Row, count: int) -> tuple[str, ...]:
    """The cells of one written row."""
    fans = "" if row.fan_in is None else f"{row.fan_in:.4g} > {row.fan_out or 0:.4g}"
    values = "" if row.values is None else describe(row.values)
    if row.centre is not None and row.centre.weight == row.path:
        values += ", zero sums"
    elif row.centre is not None:
        values += f" - {row.centre.mean:.4g} sum W"
    rule = row.rule if row.lr == 1 else f"{row.rule}, lr x{row.lr:.3g}"
    return (_path(row, count), _shape(row), row.role, fans, rule, values, row.reason)


def _path(row: Row, count: int) -> str:
    return row.path if count == 1 else f"{row.path} x{count}"


def _shape(row: Row) -> str:
    return "x".join(map(str, row.shape)) or "()"


def _span(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} .. {paths[-1]}"


def describe(values: Values) -> str:
    """A distribution in a few characters; the number after a mean is a standard deviation.

    Example:
        >>> describe(draw.Uniform(-0.5, 0.5))
        'U(-0.5, 0.5)'
    """
    match values:
        case Stack(blocks):
            alike = [(d, len(list(g))) for d, g in groupby(d for _, d in blocks)]
            return " | ".join(describe(d) + (f" x{n}" if n > 1 else "") for d, n in alike)
        case draw.Normal(mean, std):
            return f"N({mean:.4g}, {std:.4g})"
        case draw.Uniform(low, high):
            return f"U({low:.4g}, {high:.4g})"
        case draw.TruncatedNormal(mean, std, bound):
            return f"TN({mean:.4g}, {std:.4g}; {bound:g}σ)"
        case draw.Rademacher(scale):
            return f"±{scale:.4g}"
        case draw.Constant(value):
            return f"{value:.4g}"
        case draw.DeltaOrthogonal(gain=gain):
            return f"delta-orthogonal {gain:.4g}"
        case draw.Orthogonal(gain=gain):
            return f"orthogonal {gain:.4g}"


def _columns(lines: Sequence[Sequence[str]], width: int) -> list[str]:
    """Cells in columns; where they are too wide the widest columns give way, the last one first."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    room = width - 2 * (len(widths) - 1)
    floor = 12
    while sum(widths) > room:
        wide = [i for i, w in enumerate(widths) if w > floor]
        if not wide:
            if floor == 4:
                break
            floor = 4
            continue
        last = len(widths) - 1
        give = last if last in wide else max(wide, key=widths.__getitem__)
        widths[give] -= 1
    return [
        "  ".join(_cut(cell, w).ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cut(text: str, width: int) -> str:
    """The text, its middle left out where it is longer than the column."""
    if len(text) <= width:
        return text
    head = (width - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]
