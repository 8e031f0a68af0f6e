"""Claim 5: beyond the paper, weights and biases alone train plain networks of depth 50 and 100."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fanin.reproduce.claim import Arm, Conclusion, Line, Picture, Table, Tick
from fanin.reproduce.figures import Palette, figure, heading
from fanin.reproduce.images import CLASSES, Images
from fanin.reproduce.networks import Position, Stack, plain, torch_activation
from fanin.reproduce.training import Flat, Recipe, best_rate
from fanin.theory import rules
from fanin.torch import init

TITLE = "Beyond the paper: depth 50 and 100"
STATEMENT = (
    "Plain networks without skips or normalisation train at depth 50 and 100 with any of these "
    "activations, if weights and biases put them at a well-chosen operating point (rule shaped)."
)
NEEDS_IMAGES = True

ARMS = ("second_moment", "shaped")


def arms(config: Mapping[str, Any], seed: int) -> list[Arm]:
    """One arm for each depth, activation and rule."""
    shared = {name: config[name] for name in ("width", "images", "batch", "clip", "zeta")}
    seeds = [seed + i for i in range(config["seeds"])]
    return [
        Arm(
            f"{activation}, depth {depth}, {arm}",
            {
                **shared,
                "activation": activation,
                "arm": arm,
                "depth": depth,
                "epochs": epochs,
                "rates": rates,
                "seeds": seeds,
            },
            cost=0.0004 * depth * epochs * (len(seeds) + len(rates) - 1) * config["images"] / 64,
        )
        for depth, epochs, rates in zip(
            config["depths"], config["epochs"], config["rates"], strict=True
        )
        for activation in config["activations"]
        for arm in ARMS
    ]


def write(
    config: Mapping[str, Any], layer: nn.Module, position: Position, generator: torch.Generator
) -> None:
    """One layer by the arm's rule; without a rule's own word, variance 1/N at both ends."""
    f = config["activation"]
    if config["arm"] == "shaped":
        depth, zeta = config["depth"], config["zeta"]
        init.shaped_(layer, f, depth=depth, zeta=zeta, generator=generator, position=position)
    elif position == "hidden":
        init.kaiming_normal_(layer, nonlinearity=f, generator=generator)
    else:
        init.lecun_normal_(layer, generator=generator)


def measure(config: Mapping[str, Any], images: Images | None, tick: Tick) -> dict[str, Any]:
    """Train the networks of one arm."""
    assert images is not None
    data = Flat.of(images, config["images"])
    sizes = [data.train.shape[1], *[config["width"]] * config["depth"], CLASSES]

    def build(seeds: Any) -> Stack:
        drawn = {seed: plain(sizes, functools.partial(write, config), seed) for seed in set(seeds)}
        return Stack.of([drawn[seed] for seed in seeds], torch_activation(config["activation"]))

    recipe = Recipe(config["epochs"], config["batch"], clip=config["clip"])
    return best_rate(build, config["rates"], config["seeds"], data, recipe, tick)


def conclude(config: Mapping[str, Any], results: Mapping[str, dict[str, Any]]) -> Conclusion:
    """Accuracy of both rules for every activation and depth, and the operating points."""
    values: dict[str, Any] = {"depths": {}, "points": {}, "chance": 1 / CLASSES}
    for depth in config["depths"]:
        values["depths"][str(depth)] = {
            f: {arm: results[f"{f}, depth {depth}, {arm}"] for arm in ARMS}
            for f in config["activations"]
        }
        values["points"][str(depth)] = {
            f: _point(f, depth, config["zeta"]) for f in config["activations"]
        }
    lines = [line for depth in values["depths"] for line in _judge(values, depth)]
    return Conclusion(tuple(lines), values, _tables(values), (_picture(values),))


def _point(f: str, depth: int, zeta: float) -> dict[str, float]:
    """The numbers of rule shaped."""
    rule = rules.shaped(f, depth=depth, zeta=zeta)
    return {
        "beta": rule.operating_point.mean,
        "s": math.sqrt(rule.operating_point.variance),
        "centre": rule.centre,
        "weight": rule.weight_variance_times_fan_in,
        "used": rule.chi**depth,
        "slope": rule.slope,
    }


def _mean(run: dict[str, Any]) -> float:
    return statistics.mean(run["final"])


def _judge(values: dict[str, Any], depth: str) -> list[Line]:
    """At depth 50 there is a bar; deeper the numbers are told."""
    runs = values["depths"][depth]
    found = {arm: {f: _mean(by_rule[arm]) for f, by_rule in runs.items()} for arm in ARMS}
    least, poorest = min(found["shaped"], key=found["shaped"].__getitem__), found["second_moment"]
    above = sum(x > 0.8 for x in found["shaped"].values())
    ahead = sum(found["shaped"][f] > poorest[f] for f in runs)
    worst, best = found["shaped"][least], max(found["shaped"].values())
    low, high = min(poorest.values()), max(poorest.values())
    barred = depth == "50"
    return [
        Line(
            f"Depth {depth}: shaped trains every activation",
            f"all {len(runs)} above 80%" if barred else "as many as can be above 80%",
            f"{above} of {len(runs)}; least {least} {worst:.0%}, most {best:.0%}",
            ("PASS" if above == len(runs) else "FAIL") if barred else "REPORT",
        ),
        Line(
            f"Depth {depth}: shaped ends ahead of second_moment (he for ReLU)",
            f"for all {len(runs)} activations",
            f"{ahead} of {len(runs)}; second_moment {low:.0%} to {high:.0%}",
            "PASS" if ahead == len(runs) else "FAIL",
        ),
    ]


def _tables(values: dict[str, Any]) -> tuple[Table, ...]:
    tables = []
    for depth, runs in values["depths"].items():
        rows = []
        for f, by_rule in runs.items():
            point = values["points"][depth][f]
            rows.append(
                (
                    f,
                    *(f"{_mean(by_rule[arm]):.1%}" for arm in ARMS),
                    *(by_rule[arm]["rate"] for arm in ARMS),
                    *(point[name] for name in ("beta", "s", "centre", "weight", "used", "slope")),
                )
            )
        heads = (
            "second_moment",
            "shaped",
            "rate",
            "rate, shaped",
            "β",
            "s",
            "m",
            "N v²",
            f"C'(1)^{depth}",
            "Q'",
        )
        tables.append(
            Table(
                f"Depth {depth}: test accuracy, learning rate, and the operating point of shaped",
                ("activation", *heads),
                tuple(rows),
                "For ReLU, second_moment is he. Weights N v²/N, bias β - m times the sum of a row.",
            )
        )
    return tuple(tables)


def _picture(values: dict[str, Any]) -> Picture:
    def draw(palette: Palette) -> Any:
        depths = list(values["depths"])
        first = values["depths"][depths[0]]
        order = sorted(first, key=lambda f: _mean(first[f]["second_moment"]))
        canvas, axes = figure(palette, len(depths), height=0.33 * len(order) + 1.3, sharey=True)
        for ax, depth in zip(axes, depths, strict=True):
            runs = values["depths"][depth]
            before, after = ([_mean(runs[f][arm]) for f in order] for arm in ARMS)
            rows = range(len(order))
            ax.hlines(rows, before, after, color=palette.grid, linewidth=5)
            ax.plot(before, rows, "o", color=palette.series[4], markersize=7, label="second_moment")
            ax.plot(after, rows, "o", color=palette.series[0], markersize=8, label="shaped")
            ax.axvline(values["chance"], color=palette.soft, linewidth=1, linestyle=(0, (2, 3)))
            ax.set(xlim=(0, 1.02), xlabel="test accuracy")
            heading(ax, palette, f"{depth} layers")
            ax.set_yticks(list(rows), order)
            ax.tick_params(axis="y", colors=palette.ink)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.grid(axis="y", visible=False)
        handles, labels = axes[0].get_legend_handles_labels()
        where = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": 9}
        canvas.legend(handles, labels, labelcolor=palette.ink, **where)
        return canvas

    return Picture(
        "beyond",
        "Plain networks of 50 and 100 layers learn with every activation when rule shaped sets "
        "weights and biases",
        "Dotted line: chance.",
        draw,
    )
