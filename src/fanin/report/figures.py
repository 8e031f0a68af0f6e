"""The report as a Matplotlib figure: signal and gradient over depth, or stds by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fanin.errors import MissingDependencyError

if TYPE_CHECKING:
    from fanin.report.report import Report

SIGNAL, GRADIENT, DISTANCE, PREDICTED = "#1f6feb", "#d1242f", "#2da44e", "#8c959f"


def plot(report: Report, ax: Any = None) -> Any:
    """Draw the report; returns the axes.

    Args:
        report: of a check or an audit.
        ax: where to draw; a new figure if not given.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError(
            "report.plot()",
            expected="matplotlib",
            got="no such package",
            fix="pip install 'fanin[report]'",
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    draw = _layers if report.measured is not None else _tensors
    draw(report, ax)
    ax.set_title(f"fanin {report.kind}: {report.model}: {report.verdict}", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", alpha=0.25)
    return ax


def _layers(report: Report, ax: Any) -> None:
    """Second moment, distance of inputs and gradient of every row, on a log scale."""
    assert report.measured is not None
    rows = report.measured.layers
    where = [row.index + 1 for row in rows]
    ax.set_yscale("log")
    _curve(ax, where, [r.second_moment for r in rows], SIGNAL, "second moment")
    _curve(ax, where, [r.distance for r in rows], DISTANCE, "distance of inputs")
    _curve(ax, where, [r.gradient for r in rows], GRADIENT, "gradient")
    _curve(ax, where, [r.predicted for r in rows], PREDICTED, "second moment, predicted", "--")
    _curve(ax, where, [r.predicted_gradient for r in rows], PREDICTED, "gradient, predicted", ":")
    named = {f.where: f for f in reversed(report.findings) if f.where}
    for row in rows:
        if row.name in named and named[row.name].severity == "FAIL":
            ax.axvline(row.index + 1, color=GRADIENT, alpha=0.35, linewidth=1)
            ax.annotate(
                named[row.name].name,
                (row.index + 1, 1),
                xycoords=("data", "axes fraction"),
                rotation=90,
                va="top",
                ha="right",
                fontsize=8,
                color=GRADIENT,
            )
    ax.set_xlabel("operation, in order of execution")
    ax.set_ylabel("mean square")
    ax.legend(frameon=False, fontsize=8)


def _curve(
    ax: Any,
    where: Sequence[int],
    values: Sequence[float | None],
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """One curve of what is known and positive; nothing if nothing is."""
    points = [(x, v) for x, v in zip(where, values, strict=True) if v is not None and v > 0]
    if points:
        mark = "o" if style == "-" and len(points) < 60 else ""
        ax.plot(*zip(*points, strict=True), style, color=colour, label=label, marker=mark, ms=3)


def _tensors(report: Report, ax: Any) -> None:
    """What each tensor has, beside what was asked."""
    rows = [t for t in report.tensors if t.std and len(t.shape) > 1]
    where = range(1, len(rows) + 1)
    ax.set_yscale("log")
    _curve(ax, list(where), [t.std for t in rows], SIGNAL, "std found")
    _curve(ax, list(where), [t.asked_std for t in rows], PREDICTED, "std asked", "--")
    if rows and len(rows) <= 24:
        ax.set_xticks(list(where), [t.name for t in rows], rotation=90, fontsize=7)
    ax.set_xlabel("weight")
    ax.set_ylabel("standard deviation")
    if rows:
        ax.legend(frameon=False, fontsize=8)
