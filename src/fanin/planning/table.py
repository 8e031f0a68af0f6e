"""A plan as a table of text that fits the terminal."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from fanin import draw
from fanin.planning.plan import Mirrored, Plan, Row, Stack, Values

_HEADS = ("path", "shape", "role", "fans", "rule", "values", "why")
_NARROWEST = 40
_REASON = 24  # characters of a reason that are left where columns are cut
_LAYER = re.compile(r"(?<![^.])\d+(?![^.])")
_PATH = re.compile(r"\.[A-Za-z_]|[A-Za-z_]\.")
_NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_EXACT = (1, 2, 4)  # columns in which alike rows are equal: shape, role, rule


def table(plan: Plan, width: int | None = None, *, every_row: bool = False) -> str:
    """The plan as text no wider than `width`; rows that differ in numbers alone share a line.

    That are the layers of one kind: their numbers are starred, other numbers become ranges.

    Where a terminal is too narrow for columns, each row is a path with its values, and what there
    is to say of it on the lines below.

    Args:
        plan: the plan.
        width: in characters; the terminal's if not given; at least 40.
        every_row: one line for each row.
    """
    width = max(width or shutil.get_terminal_size((100, 24)).columns, _NARROWEST)
    groups = [[row] for row in plan.rows] if every_row else _alike(plan.rows)
    cells = [_together(members) for members in groups if members[0].values is not None]
    *widths, reasons = _widths([_HEADS, *cells])
    narrow = sum(widths) + 2 * len(widths) + min(reasons, _REASON) > width
    text = _blocks(cells, width) if narrow else _columns([_HEADS, *cells], width)
    kept = [members for members in groups if members[0].values is None]
    if kept:
        total = sum(map(len, kept))
        text += ["", f"left alone: {total} tensor{'s' if total > 1 else ''}"]
        lines = sorted(map(_together, kept), key=itemgetter(-1))
        for reason, members in groupby(lines, key=itemgetter(-1)):
            text += _wrapped(reason, width, "  ")
            text += _columns([(f"    {path}", shape) for path, shape, *_ in members], width)
    if plan.stretches:
        text += ["", "stretches"]
        for s in plan.stretches:
            text += _wrapped(_span(s.weights), width, "  ")
            text += _wrapped(f"{s.kind}, {s.rule}: {s.reason}", width, "    ")
    if plan.notes:
        text += ["", *(line for note in plan.notes for line in _wrapped(f"note: {note}", width))]
    return "\n".join(map(_printable, text))


def _printable(line: str) -> str:
    """A line without what would steer the terminal; a plan may come from anywhere."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _blocks(lines: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows under each other: path and values, then the rest."""
    text = []
    for path, shape, role, fans, rule, values, reason in lines:
        shown = _cut(values, width * 2 // 3)
        room = width - len(shown) - 2
        text.append(f"{_cut(path, room).ljust(room)}  {shown}")
        facts = ", ".join(fact for fact in (shape, role, fans and f"fans {fans}", rule) if fact)
        text += _wrapped(f"{facts}: {reason}", width, "    ")
    return text


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Text in lines; those after the first stand further in."""
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that read the same but for their numbers together."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        cells = _cells(row)
        key = [cell if i in _EXACT else _masked(cell) for i, cell in enumerate(cells)]
        found.setdefault((str(row.values is None), *key), []).append(row)
    return list(found.values())


def _masked(text: str) -> str:
    """A text without its numbers."""
    words = text.split(" ")
    return " ".join((_LAYER if _PATH.search(w) else _NUMBER).sub("*", w) for w in words)


def _together(rows: Sequence[Row]) -> tuple[str, ...]:
    """The cells of alike rows: layers starred, and ranges where other numbers differ."""
    path, *facts = (_merged(cells) for cells in zip(*map(_cells, rows), strict=True))
    return (path if len(rows) == 1 else f"{path} x{len(rows)}", *facts)


def _merged(texts: Sequence[str]) -> str:
    """Texts that differ in numbers as one."""
    words = zip(*(text.split(" ") for text in texts), strict=True)
    return " ".join(_merged_word(list(dict.fromkeys(w))) for w in words)


def _merged_word(words: Sequence[str]) -> str:
    """The different forms of one word as one."""
    if len(words) == 1:
        return words[0]
    if _PATH.search(words[0]):
        return _LAYER.sub("*", words[0])
    merged = []
    for part in zip(*map(_NUMBER.split, words), strict=True):
        forms = set(part)
        numbers = sorted(forms, key=float) if len(forms) > 1 else part
        merged.append(numbers[0] if len(forms) == 1 else f"{numbers[0]}..{numbers[-1]}")
    return "".join(merged)


def _cells(row: Row) -> tuple[str, ...]:
    """The cells of one row."""
    fans = "" if row.fan_in is None else f"{_count(row.fan_in)} > {_count(row.fan_out or 0)}"
    values = "" if row.values is None else describe(row.values)
    if row.centre is not None and row.centre.weight == row.path:
        values += ", zero sums" + (" of each part" if row.centre.parts else "")
    elif row.centre is not None:
        means = row.centre.means or (row.centre.mean,)
        values += "".join(f" - {mean:.4g} sum W" for mean in means)
    rule = row.rule if row.lr == 1 else f"{row.rule}, lr x{row.lr:.3g}"
    shape = "x".join(map(str, row.shape)) or "()"
    return (row.path, shape, row.role, fans, rule, values, row.reason)


def _span(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} .. {paths[-1]}"


def _count(n: float) -> str:
    """A fan: whole, unless padding takes a part of it away."""
    return f"{n:.0f}" if n == round(n) else f"{n:.4g}"


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
        case Mirrored(inner):
            return f"±{describe(inner)}"
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


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """The longest cell of each column."""
    return [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]


def _columns(lines: Sequence[Sequence[str]], width: int) -> list[str]:
    """Cells in columns; where they are too wide the widest column gives way, or the last one."""
    widths = _widths(lines)
    over = sum(widths) + 2 * (len(widths) - 1) - width
    if over > 0:
        last = len(widths) - 1
        give = last if widths[last] - over >= _REASON else widths.index(max(widths))
        widths[give] = max(widths[give] - over, 4)
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
