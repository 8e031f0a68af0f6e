"""Claim 1: the rule. The paper's variance for 18 activations, and what it does with depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fanin.errors import NotCoveredError
from fanin.reproduce.claim import Arm, Conclusion, Line, Picture, Table, Tick
from fanin.reproduce.figures import Palette, figure, legend
from fanin.reproduce.networks import torch_activation
from fanin.theory import rules
from fanin.theory.gaussian import moments
from fanin.theory.maps import variance_map
from fanin.torch import init

TITLE = "The rule"
STATEMENT = (
    "Weights of variance 1 / (N g'(0)^2 (1 + g(0)^2)) keep the variance of the outputs of a layer "
    "with activation g at 1; for ReLU it is 2 / N."
)
NEEDS_IMAGES = False

COVERED = (
    *("relu", "tanh", "sigmoid", "softplus", "elu", "celu(2)", "gelu", "silu", "mish"),
    *("sin", "erf", "softsign", "arctan", "asinh", "hardtanh", "hardswish", "hardsigmoid"),
    "logsigmoid",
)
BEYOND = ("leaky_relu(0.1)", "selu", "tanhshrink")
PRINTED = {"tanh": 1.0, "sigmoid": 12.8, "relu": 2.0}


def arms(config: Mapping[str, Any], seed: int) -> list[Arm]:
    """One arm a network."""
    shared = {name: config[name] for name in ("width", "inputs", "depth")}
    cost = 1.6e-8 * config["width"] ** 2 * config["depth"]
    return [
        Arm(f"network {i + 1}", {**shared, "seed": seed + i}, cost)
        for i in range(config["networks"])
    ]


@torch.no_grad()
def measure(config: Mapping[str, Any], images: object, tick: Tick) -> dict[str, Any]:
    """Second moments of the pre-activations of every layer, for every activation.

    All activations read the same weights, drawn with variance 1/N and scaled to each one's rule.
    """
    del images
    width, depth = config["width"], config["depth"]
    generator = torch.Generator().manual_seed(config["seed"])
    layer = nn.utils.skip_init(nn.Linear, width, width, bias=False)
    y = torch.randn(config["inputs"], width, generator=generator).expand(len(COVERED), -1, -1)
    scale = torch.tensor([_weight(f) for f in COVERED]).sqrt()[:, None, None]
    q: list[list[float]] = []
    for i in range(depth):
        init.lecun_normal_(layer, generator=generator)
        y = layer(_outputs(y)) * scale
        q.append(y.double().square().mean((1, 2)).tolist())
        tick((i + 1) / depth)
    spread = _outputs(y).double().var((1, 2)).tolist()
    by_name = zip(*q, strict=True)
    return {
        "second_moment": dict(zip(COVERED, map(list, by_name), strict=True)),
        "output_variance": dict(zip(COVERED, spread, strict=True)),
    }


def _outputs(y: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch_activation(f)(each) for f, each in zip(COVERED, y, strict=True)])


def _weight(f: str) -> float:
    return rules.kumar(f).weight_variance_times_fan_in


def predicted(f: str, depth: int) -> list[float]:
    """The second moment after each of `depth` layers, from 1, at infinite width."""
    q, found = 1.0, []
    for _ in range(depth):
        q = variance_map(f, q, _weight(f))
        found.append(q)
    return found


def conclude(config: Mapping[str, Any], results: Mapping[str, dict[str, Any]]) -> Conclusion:
    """Theory beside measurement, for each activation."""
    depth, runs = config["depth"], list(results.values())
    marks = [d for d in (1, 10, 50) if d <= depth]
    values: dict[str, Any] = {"marks": marks, "activations": {}, "not_covered": _not_covered()}
    for f in COVERED:
        q = np.log([run["second_moment"][f] for run in runs])
        spread = np.array([run["output_variance"][f] for run in runs])
        values["activations"][f] = _entry(f, q, spread, predicted(f, depth), marks)
    return Conclusion(_lines(values), values, _tables(values), (_picture(values),))


def _entry(
    f: str, logs: np.ndarray, spread: np.ndarray, theory: list[float], marks: list[int]
) -> dict[str, Any]:
    """All numbers of one activation; measured values are geometric means over the networks."""
    m, root = moments(f), math.sqrt(len(logs))
    after = {}
    for d in marks:
        log, error = float(logs[:, d - 1].mean()), float(logs[:, d - 1].std(ddof=1) / root)
        after[str(d)] = {
            "theory": theory[d - 1],
            "measured": math.exp(log),
            "relative_error": error,
            "z": (log - math.log(theory[d - 1])) / error,
        }
    return {
        "paper": _weight(f),
        "second_moment": 1 / float(m.second_moment),
        "backward": 1 / float(m.derivative_second_moment),
        "centred": 1 / float(m.variance),
        "after": after,
        "fate": _fate(theory),
        "output_variance": {
            "theory": float(moments(f, 0.0, theory[-1]).variance),
            "measured": float(spread.mean()),
            "error": float(spread.std(ddof=1) / root),
        },
    }


def _fate(theory: list[float]) -> str:
    """What becomes of the second moment with depth."""
    last, growth = theory[-1], theory[-1] / theory[-2]
    if abs(last - 1) < 1e-9:
        return "kept"
    if growth > 1.001:
        return "explodes"
    return "decays" if growth < 0.9999 else f"settles at {last:.4g}"


def _not_covered() -> dict[str, str]:
    """What the paper's rule says of activations that it does not cover."""
    said = {}
    for f in BEYOND:
        try:
            rules.kumar(f)
        except NotCoveredError as error:
            said[f] = str(error)
    return said


def _lines(values: dict[str, Any]) -> tuple[Line, ...]:
    of, last = values["activations"], str(values["marks"][-1])
    near = str(values["marks"][min(1, len(values["marks"]) - 1)])
    exact = all(math.isclose(of[f]["paper"], v, rel_tol=1e-12) for f, v in PRINTED.items())
    z = {d: [abs(each["after"][d]["z"]) for each in of.values()] for d in (near, last)}
    inside = {d: sum(x <= 3 for x in z[d]) for d in z}
    off = max(of.values(), key=lambda each: abs(math.log(_ratio(each, last))))
    kept = [f for f, each in of.items() if 0.5 <= each["after"][last]["theory"] <= 2]
    fates = [each["fate"].split()[0] for each in of.values()]
    sigmoid = of["sigmoid"]["output_variance"]
    return (
        Line(
            "The paper's constants follow from its formula",
            "tanh 1, sigmoid 12.8, ReLU 2, over N",
            ", ".join(f"{f} {of[f]['paper']:g}" for f in PRINTED),
            "PASS" if exact else "FAIL",
        ),
        Line(
            f"Theory predicts real layers, {near} deep",
            f"{len(of)} of {len(of)} within 3 standard errors",
            f"{inside[near]} of {len(of)}, the farthest at {max(z[near]):.1f}",
            "PASS" if inside[near] == len(of) else "FAIL",
        ),
        Line(
            f"Theory predicts real layers, {last} deep",
            "close; width 1000 is not infinite",
            f"{inside[last]} of {len(of)} within 3 standard errors, "
            f"the farthest off by {abs(_ratio(off, last) - 1):.0%}",
            "REPORT",
        ),
        Line(
            "The rule holds the variance with depth",
            f"near 1 after {last} layers",
            f"only {', '.join(kept)} of {len(of)}; {fates.count('decays')} decay, "
            f"{fates.count('explodes')} explode, {fates.count('settles')} settle elsewhere",
            "REPORT",
            contradicts=True,
        ),
        Line(
            "The paper's target for sigmoid can be met",
            "outputs of variance 1",
            f"no: at most 1/4; {sigmoid['theory']:.4f} by theory, "
            f"{sigmoid['measured']:.4f} ± {sigmoid['error']:.4f} measured",
            "REPORT",
            contradicts=True,
        ),
    )


def _ratio(entry: dict[str, Any], mark: str) -> float:
    return float(entry["after"][mark]["measured"] / entry["after"][mark]["theory"])


def _tables(values: dict[str, Any]) -> tuple[Table, ...]:
    marks = values["marks"][1:] or values["marks"]
    heads = [text for d in marks for text in (f"theory, {d}", f"measured, {d}")]
    rows = []
    for f, each in values["activations"].items():
        exact = (each[name] for name in ("paper", "second_moment", "backward", "centred"))
        cells: list[str | float] = [f, *exact]
        for d in marks:
            at = each["after"][str(d)]
            error = f"{at['relative_error']:.1%}"
            cells += [f"{at['theory']:.4g}", f"{at['measured']:.4g} ± {error}"]
        rows.append((*cells, each["fate"]))
    return (
        Table(
            "N v², and the second moment of the pre-activations",
            ("activation", "paper", "1/E[g²]", "1/E[g'²]", "1/Var[g]", *heads, "fate"),
            tuple(rows),
            "From 1. Measured: geometric mean over networks, with its standard error.",
        ),
        Table(
            "Activations that the paper does not cover",
            ("activation", "what fanin says"),
            tuple(values["not_covered"].items()),
        ),
    )


def _picture(values: dict[str, Any]) -> Picture:
    last = str(values["marks"][-1])

    def draw(palette: Palette) -> Any:
        order = sorted(COVERED, key=lambda f: values["activations"][f]["after"][last]["theory"])
        rows = range(len(order))
        canvas, (ax,) = figure(palette, height=4.8)
        ax.axvline(1, color=palette.ink, linewidth=1)
        for shade, mark in ((4, values["marks"][0]), (0, values["marks"][-1])):
            at = [values["activations"][f]["after"][str(mark)] for f in order]
            colour, name = palette.series[shade], "1 layer" if mark == 1 else f"{mark} layers"
            theory, measured = [a["theory"] for a in at], [a["measured"] for a in at]
            error = [3 * a["measured"] * a["relative_error"] for a in at]
            ax.plot(theory, rows, "|", color=colour, markersize=13, markeredgewidth=2)
            ax.errorbar(
                measured,
                rows,
                xerr=error,
                fmt="o",
                color=colour,
                markersize=5,
                label=f"after {name}",
            )
        ax.set(xscale="log", xlabel="second moment of the pre-activations; it should stay at 1")
        ax.set_yticks(list(rows), order)
        ax.tick_params(axis="y", colors=palette.ink)
        legend(ax, palette, loc="lower right")
        return canvas

    return Picture(
        "rule",
        "The paper's rule keeps the variance with ReLU; with others it drifts, by up to 10¹⁵",
        "Bars: theory. Dots: networks of width 1000, with 3 standard errors. All start at 1.",
        draw,
    )
