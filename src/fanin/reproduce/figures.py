"""One look for all figures: drawn with Matplotlib, in light and in dark, as self-contained SVG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanin.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fanin.reproduce.claim import Picture


@dataclass(frozen=True)
class Palette:
    """Colours of one theme.

    Args:
        ink: text and axes.
        soft: secondary text.
        grid: lines behind the data.
        paper: the ground.
        series: colours that stay apart for the colour-blind, strongest last used by the hero.
    """

    ink: str
    soft: str
    grid: str
    paper: str
    series: tuple[str, ...]


# Blue, orange, green, purple, grey and red of one lightness each; the hero is the first.
LIGHT = Palette(
    ink="#1d2330",
    soft="#5d6675",
    grid="#e3e6ec",
    paper="#ffffff",
    series=("#0f62c5", "#c2560a", "#0b7d5e", "#8a3fa0", "#8b93a1", "#b3261e", "#8a6d00", "#00798c"),
)
DARK = Palette(
    ink="#e8ebf1",
    soft="#a3acbb",
    grid="#2d3440",
    paper="#14181f",
    series=("#6db1ff", "#ffab66", "#4fd1a5", "#d69bea", "#7f8897", "#ff8a80", "#e6c34d", "#5cc8da"),
)


def figure(
    palette: Palette, columns: int = 1, *, width: float = 7.2, height: float = 3.6, **share: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the common look.

    Args:
        palette: its colours.
        columns: panels side by side.
        width: inches.
        height: inches.
        share: `sharey` and the like, as `Figure.subplots` takes them.

    Returns:
        The figure and its axes, from left to right.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingDependencyError(
            "figures", expected="the package matplotlib", fix="pip install 'fanin[experiments]'"
        ) from error
    canvas = Canvas(figsize=(width, height), layout="constrained", facecolor=palette.paper)
    axes = canvas.subplots(1, columns, squeeze=False, **share)[0]
    for ax in axes:
        ax.set_facecolor(palette.paper)
        ax.grid(color=palette.grid, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=palette.soft, labelsize=9, length=0)
        ax.xaxis.label.set(color=palette.ink, size=10)
        ax.yaxis.label.set(color=palette.ink, size=10)
        for side, spine in ax.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(palette.soft)
    return canvas, list(axes)


def heading(ax: Axes, palette: Palette, text: str) -> None:
    """The title of one panel, flush left."""
    ax.set_title(text, loc="left", fontsize=10, color=palette.ink)


def level(ax: Axes, palette: Palette, y: float, end: float) -> None:
    """A dotted line at a height, from the left edge to where the data end."""
    start = ax.get_xlim()[0]
    ax.plot([start, end], [y, y], color=palette.soft, linewidth=1, linestyle=(0, (2, 3)))


def legend(ax: Axes, palette: Palette, **where: Any) -> None:
    """The legend of one panel, without a box."""
    box = ax.legend(frameon=False, fontsize=9, labelcolor=palette.ink, **where)
    box.set_zorder(10)


def spread(positions: list[float], gap: float) -> list[float]:
    """Move labels apart as little as keeps a gap between them, in their order.

    Args:
        positions: where each label would like to be.
        gap: the least distance.

    Returns:
        Where each may be.

    Example:
        >>> spread([0.0, 0.0, 1.0], 0.2)
        [-0.1, 0.1, 1.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[int]] = []
    middles: list[float] = []
    for i in order:
        groups.append([i])
        middles.append(positions[i])
        while len(groups) > 1:
            reach = gap * (len(groups[-1]) + len(groups[-2])) / 2
            if middles[-1] - middles[-2] >= reach - 1e-12:
                break
            merged = groups[-2] + groups[-1]
            groups[-2:] = [merged]
            middles[-2:] = [sum(positions[j] for j in merged) / len(merged)]
    moved = list(positions)
    for group, middle in zip(groups, middles, strict=True):
        for place, i in enumerate(group):
            moved[i] = middle + gap * (place - (len(group) - 1) / 2)
    return moved


def svg(picture: Picture, palette: Palette) -> bytes:
    """A picture as SVG whose text is drawn as shapes, so that it looks the same everywhere.

    Args:
        picture: what to draw.
        palette: in which theme.
    """
    from matplotlib import rc_context

    out = io.BytesIO()
    nothing = {"Date": None, "Creator": None}
    with rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "path"}):
        drawn = picture.draw(palette)
        drawn.savefig(out, format="svg", facecolor=palette.paper, metadata=nothing)
    return out.getvalue()
