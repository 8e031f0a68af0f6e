"""Figures of the page: one network from many starts, trained depth, and the phase picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.activations import ACTIVATIONS
from benchmarks.trainability.cells import (
    DEPTHS,
    PHASE_BIAS,
    PHASE_DEPTHS,
    PHASE_VARIANCES,
    SHOWN,
)
from benchmarks.trainability.starts import STARTS
from benchmarks.trainability.table import BAR, Reach, Results, pick, reach, score

from fanin.errors import FaninError
from fanin.reproduce.claim import Picture
from fanin.reproduce.figures import Palette, figure, heading, level, spread
from fanin.theory.depth import depth_scales

_NAMES = {
    "torch default": "PyTorch's default",
    "xavier": "Xavier",
    "he": "He",
    "lsuv": "LSUV",
    "anyinit": "AnyInit",
    "anyinit, centred": "AnyInit, centred",
}


def pictures(results: Results) -> Iterator[Picture]:
    """The figures whose cells are there."""
    curves = _curves(results)
    if "fanin" in curves and len(curves) > 1:
        yield _one_network(curves)
    if phase := _phase(results):
        yield _phases(phase)
    if reached := _reached(results):
        yield _trained(reached)


# --- one network of 100 layers ------------------------------------------------------------------


def _curves(results: Results) -> dict[str, list[float]]:
    """Test accuracy of the first seed, after each epoch, by start."""
    curves = {}
    for name in SHOWN:
        found = pick(
            results, family="plain", activation="sigmoid", depth=100, start=name, optimiser="sgd",
            data="mnist",
        )  # fmt: skip
        if found is not None and "curves" in found[1]:
            curves[name] = found[1]["curves"][0]
    return curves


def _one_network(curves: dict[str, list[float]]) -> Picture:
    ours = curves["fanin"]
    others = {_NAMES.get(name, name): c for name, c in curves.items() if name != "fanin"}
    end = len(ours)

    def draw(palette: Palette) -> Any:
        canvas, (ax,) = figure(palette, width=7.6, height=3.5)
        for curve in others.values():
            ax.plot(range(1, end + 1), curve, color=palette.series[4], linewidth=1.6)
        ax.plot(range(1, end + 1), ours, color=palette.series[0], linewidth=3)
        ax.set(xlim=(1, end + 4.2), ylim=(0, 1.02), xlabel="epoch")
        ax.set_xticks(range(1, end + 1))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        where: dict[str, Any] = {"va": "center", "fontsize": 10, "backgroundcolor": palette.paper}
        text = f"fanin.init_  {ours[-1]:.0%}"
        ax.text(end + 0.25, ours[-1], text, color=palette.series[0], weight="bold", **where)
        learned = {name: c[-1] for name, c in others.items() if c[-1] >= 0.5}
        for name, y in zip(learned, spread(list(learned.values()), 0.07), strict=True):
            ax.text(end + 0.25, y, f"{name}  {learned[name]:.0%}", color=palette.soft, **where)
        stuck = "\n".join(
            f"{name}  {c[-1]:.0%}" for name, c in others.items() if name not in learned
        )
        bottom = {**where, "va": "bottom"}
        ax.text(end + 0.25, 0.06, stuck, color=palette.soft, linespacing=1.25, **bottom)
        level(ax, palette, 0.1, end)
        heading(ax, palette, "Test accuracy on MNIST: a plain sigmoid network of 100 layers, SGD")
        return canvas

    return Picture(
        "trainability-sigmoid",
        "A plain sigmoid network of 100 layers learns from the start that fanin gives it",
        "The learning rate is chosen for each start from the same grid. Dotted line: chance.",
        draw,
    )


# --- phases -------------------------------------------------------------------------------------


def _phase(results: Results) -> dict[tuple[int, float], float]:
    """Final accuracy by depth and weight variance, where the whole grid is there."""
    found = {}
    for depth in PHASE_DEPTHS:
        for v in PHASE_VARIANCES:
            cell = pick(results, depth=depth, start=f"normal({v},{PHASE_BIAS})", activation="tanh")
            if cell is None:
                return {}
            scored = score(*cell)
            found[depth, v] = scored.mean if scored else 0.0
    return found


def _phases(phase: dict[tuple[int, float], float]) -> Picture:
    def draw(palette: Palette) -> Any:
        canvas, (ax,) = figure(palette, width=7.2, height=4.2)
        values = [[phase[depth, v] for v in PHASE_VARIANCES] for depth in PHASE_DEPTHS]
        ax.grid(visible=False)
        mesh = ax.pcolormesh(
            list(PHASE_VARIANCES), list(PHASE_DEPTHS), values,
            cmap="viridis", vmin=0.1, vmax=0.95, shading="nearest",
        )  # fmt: skip
        for name, line in (("6 ξc", 6), ("ξc", 1)):
            points = [(v, line * x) for v in _fine() if (x := _scale(v)) is not None]
            ax.plot(*zip(*points, strict=True), color="white", linewidth=3.6)
            ax.plot(*zip(*points, strict=True), color="#b3261e", linewidth=2)
            at = next((p for p in reversed(points) if p[1] < PHASE_DEPTHS[-1] * 0.9), points[-1])
            ax.annotate(name, at, (6, 4), textcoords="offset points", color="white", weight="bold")
        ax.set(
            xlabel="weight variance × fan_in", ylabel="depth",
            yscale="log", ylim=(PHASE_DEPTHS[0] * 0.85, PHASE_DEPTHS[-1] * 1.15),
        )  # fmt: skip
        ax.set_yticks(list(PHASE_DEPTHS), [str(d) for d in PHASE_DEPTHS])
        ax.minorticks_off()
        bar = canvas.colorbar(mesh, ax=ax)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bar.ax.tick_params(colors=palette.soft, labelsize=9)
        heading(ax, palette, f"Test accuracy of tanh networks, bias variance {PHASE_BIAS}")
        return canvas

    return Picture(
        "trainability-phase",
        "Tanh networks train where the theory's depth scale says that inputs can be told apart",
        "Red: the depth scale of correlation ξc, and six times it.",
        draw,
    )


def _fine() -> list[float]:
    low, high = PHASE_VARIANCES[0], PHASE_VARIANCES[-1]
    return [low + (high - low) * i / 150 for i in range(151)]


def _scale(v: float) -> float | None:
    """The depth scale of correlation, at most twice the deepest network."""
    try:
        found = depth_scales("tanh", v, PHASE_BIAS).correlation
    except FaninError:
        return None
    return min(found, 2.0 * PHASE_DEPTHS[-1])


# --- trained depth ------------------------------------------------------------------------------


def _reached(results: Results) -> dict[tuple[str, str], Reach]:
    """How deep every start that was run trains every activation."""
    pairs = itertools.product(STARTS, ACTIVATIONS)
    return {(s, f): found for s, f in pairs if (found := reach(results, f, s))}


def _trained(reached: dict[tuple[str, str], Reach]) -> Picture:
    starts = [s for s in STARTS if any((s, f) in reached for f in ACTIVATIONS)]
    levels = (0, *DEPTHS)

    def draw(palette: Palette) -> Any:
        canvas, (ax,) = figure(palette, width=8.6, height=0.32 * len(starts) + 1.9)
        ax.grid(visible=False)
        ax.set_facecolor(palette.grid)
        values = [
            [
                levels.index(x.trained) if (x := reached.get((s, f))) and x.run else float("nan")
                for f in ACTIVATIONS
            ]
            for s in starts
        ]
        ax.imshow(values, cmap="viridis", vmin=0, vmax=len(levels) - 1, aspect="auto")
        for (s, f), found in reached.items():
            bright = levels.index(found.trained) >= len(levels) // 2 or not found.run
            ax.text(
                list(ACTIVATIONS).index(f), starts.index(s), _mark(found),
                ha="center", va="center", fontsize=9, color="#1d2330" if bright else "#ffffff",
            )  # fmt: skip
        ax.set_xticks(range(len(ACTIVATIONS)), list(ACTIVATIONS), rotation=35, ha="right")
        ax.set_yticks(range(len(starts)), starts)
        ax.tick_params(length=0, labelsize=9)
        heading(ax, palette, f"Layers of the deepest plain network that reaches {BAR:.0%}, by SGD")
        return canvas

    return Picture(
        "trainability-depth",
        "The deepest plain network that each start trains, by activation",
        f"Depths {', '.join(map(str, DEPTHS))}; 0: not even the shallowest that was run; +: the "
        "deepest that was run; –: the start does not exist for the activation; empty: not run.",
        draw,
    )


def _mark(found: Reach) -> str:
    """What stands in a field: the depth, with a plus where it may be greater."""
    if not found.run:
        return "–"
    more = found.trained == found.run < DEPTHS[-1]
    return f"{found.trained}{'+' if more else ''}"
