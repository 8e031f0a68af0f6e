"""Claim 2: why Xavier is a poor choice for ReLU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fanin.reproduce.claim import Arm, Conclusion, Line, Picture, Table, Tick
from fanin.reproduce.figures import Palette, figure
from fanin.theory.maps import chi, variance_map
from fanin.torch import init

TITLE = "Why Xavier is poor with ReLU"
STATEMENT = (
    "With ReLU, Xavier's weights halve the variance of the signal, and of the gradient, in every "
    "layer; the paper's 2 / N keeps both."
)
NEEDS_IMAGES = False

F = "relu"
# Name, N times the weight variance in square layers, and the initializer.
ARMS: dict[str, tuple[str, float, Callable[[nn.Module, torch.Generator], object]]] = {
    "xavier": ("Xavier, 1/N", 1.0, lambda layer, g: init.xavier_normal_(layer, generator=g)),
    "kumar": ("paper, 2/N", 2.0, lambda layer, g: init.kumar_normal_(layer, F, generator=g)),
}
PARTS = 4  # of an arm's networks, so that they are measured side by side


def arms(config: Mapping[str, Any], seed: int) -> list[Arm]:
    """The networks of each initialization, in parts."""
    each, shared = config["networks"] // PARTS, {k: config[k] for k in ("width", "inputs", "depth")}
    cost = 1.6e-8 * config["width"] ** 2 * config["depth"] * each
    # The arms share no seed: of the same draws, ReLU would make scaled copies.
    first = {arm: 2 * seed + i * 1_000_000 for i, arm in enumerate(ARMS)}
    return [
        Arm(
            f"{arm}, part {part + 1}",
            {**shared, "arm": arm, "seeds": [first[arm] + part * each + i for i in range(each)]},
            cost,
        )
        for arm in ARMS
        for part in range(PARTS)
    ]


def measure(config: Mapping[str, Any], images: object, tick: Tick) -> dict[str, Any]:
    """Mean squares of pre-activations and of their gradients, in every layer of every network."""
    del images
    signal, gradient = [], []
    for i, seed in enumerate(config["seeds"]):
        forward, backward = _network(config, seed)
        signal.append(forward)
        gradient.append(backward)
        tick((i + 1) / len(config["seeds"]))
    return {"signal": signal, "gradient": gradient}


def _network(config: Mapping[str, Any], seed: int) -> tuple[list[float], list[float]]:
    """One forward pass of Gaussian inputs, one backward pass of Gaussian errors."""
    width, write = config["width"], ARMS[config["arm"]][2]
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(config["inputs"], width, generator=generator).requires_grad_()
    kept = []
    for _ in range(config["depth"]):
        layer = nn.utils.skip_init(nn.Linear, width, width)
        init.zeros_(layer.bias)
        write(layer, generator)
        y = layer(torch.relu(y))
        kept.append(y)
    error = torch.randn(y.shape, generator=generator)
    gradients = torch.autograd.grad(y, kept, error)
    return _mean_squares(kept), _mean_squares(list(gradients))


def _mean_squares(layers: list[torch.Tensor]) -> list[float]:
    return [layer.detach().double().square().mean().item() for layer in layers]


def conclude(config: Mapping[str, Any], results: Mapping[str, dict[str, Any]]) -> Conclusion:
    """Means over networks beside the theory, for each initialization."""
    values: dict[str, Any] = {}
    for arm, (label, weight, _) in ARMS.items():
        parts = [result for name, result in results.items() if name.startswith(f"{arm},")]
        signal = np.array([row for part in parts for row in part["signal"]])
        gradient = np.array([row for part in parts for row in part["gradient"]])
        theory = [variance_map(F, 1.0, weight) ** (layer + 1) for layer in range(config["depth"])]
        values[arm] = {
            "label": label,
            "signal": _compare(signal, theory),
            "factor": _factor(signal, variance_map(F, 1.0, weight)),
            "gradient_factor": _factor(gradient[:, ::-1], chi(F, 1.0, weight)),
        }
    return Conclusion(_lines(values, config), values, (_table(values),), (_picture(values),))


def _compare(rows: np.ndarray, theory: list[float]) -> dict[str, list[float]]:
    """Mean over networks in each layer, its standard error, and how far theory is in these."""
    mean, error = rows.mean(0), rows.std(0, ddof=1) / math.sqrt(len(rows))
    return {
        "theory": theory,
        "measured": mean.tolist(),
        "error": error.tolist(),
        "z": ((mean - theory) / error).tolist(),
    }


def _factor(rows: np.ndarray, theory: float) -> dict[str, float]:
    """The factor from layer to layer, averaged over layers and networks."""
    each = (rows[:, 1:] / rows[:, :-1]).mean(1)
    error = each.std(ddof=1) / math.sqrt(len(each))
    mean = each.mean()
    return {
        "theory": theory,
        "measured": float(mean),
        "error": float(error),
        "z": float((mean - theory) / error),
    }


def _lines(values: dict[str, Any], config: Mapping[str, Any]) -> tuple[Line, ...]:
    lines = []
    for arm, verb in (("xavier", "Xavier halves"), ("kumar", "2/N keeps")):
        found = values[arm]["factor"]
        lines.append(
            Line(
                f"{verb} ReLU's variance in a layer",
                f"× {found['theory']:g}, within 3 standard errors",
                f"× {found['measured']:.4f} ± {found['error']:.4f}",
                "PASS" if abs(found["z"]) <= 3 else "FAIL",
            )
        )
        found = values[arm]["gradient_factor"]
        # Weights meet twice, forwards and backwards: at finite width it is off by about 2/N.
        bound = 4 / config["width"]
        off = found["measured"] / found["theory"] - 1
        lines.append(
            Line(
                f"{verb} ReLU's squared gradient",
                f"× {found['theory']:g}, within {bound:.1%} at width {config['width']}",
                f"× {found['measured']:.4f} ± {found['error']:.4f}, off by {off:+.2%}",
                "PASS" if abs(off) <= bound else "FAIL",
            )
        )
    far = max(abs(z) for arm in values.values() for z in arm["signal"]["z"])
    depth, at = config["depth"], values["xavier"]["signal"]
    lines.append(
        Line(
            f"Every one of {depth} layers follows theory, both arms",
            "within 3 standard errors",
            f"the farthest at {far:.1f}; Xavier ends at {at['measured'][-1]:.2g}, "
            f"theory {at['theory'][-1]:.2g}",
            "PASS" if far <= 3 else "FAIL",
        )
    )
    return tuple(lines)


def _table(values: dict[str, Any]) -> Table:
    heads = [
        f"{each['label']}: {what}" for each in values.values() for what in ("theory", "measured")
    ]
    depth = len(values["xavier"]["signal"]["theory"])
    rows = []
    for layer in range(depth):
        cells: list[str | int] = [layer + 1]
        for arm in values.values():
            at = arm["signal"]
            cells += [
                f"{at['theory'][layer]:.4g}",
                f"{at['measured'][layer]:.4g} ± {at['error'][layer]:.2g}",
            ]
        rows.append(tuple(cells))
    return Table("Variance of the pre-activations, layer by layer", ("layer", *heads), tuple(rows))


def _picture(values: dict[str, Any]) -> Picture:
    def draw(palette: Palette) -> Any:
        canvas, (left, right) = figure(palette, 2, height=3.4)
        for shade, arm, side in ((0, "kumar", "bottom"), (1, "xavier", "top")):
            at, colour = values[arm]["signal"], palette.series[shade]
            theory, measured = np.array(at["theory"]), np.array(at["measured"])
            error, layers = 3 * np.array(at["error"]), np.arange(1, len(theory) + 1)
            left.plot(layers, theory, color=colour, linewidth=1.5)
            left.plot(layers, measured, "o", color=colour, markersize=3.5)
            middle = len(layers) // 2
            left.annotate(
                values[arm]["label"],
                (layers[middle], theory[middle]),
                xytext=(0, 6 if side == "bottom" else -10),
                textcoords="offset points",
                color=colour,
                ha="left" if side == "bottom" else "right",
                va=side,
            )
            right.errorbar(
                layers + 0.15 * (1 - 2 * shade),
                measured / theory,
                yerr=error / theory,
                fmt="o",
                color=colour,
                markersize=3,
                linewidth=1,
            )
        right.axhline(1, color=palette.ink, linewidth=1)
        left.set(yscale="log", xlabel="layer", ylabel="variance of the pre-activations")
        right.set(xlabel="layer", ylabel="measured / theory, ± 3 standard errors")
        return canvas

    return Picture(
        "xavier-relu",
        "With Xavier the signal of a ReLU network halves in every layer; with 2/N it stays",
        "Left: lines are theory, dots the mean over networks. Right: their ratio, with 3 standard "
        "errors; the layers of a network are not independent.",
        draw,
    )
