"""Claim 5: beyond the paper, weights and biases alone train plain networks of depth 50 and 100."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fanin.reproduce.claim import Arm, Conclusion, Line, Picture, Table, Tick
from fanin.reproduce.figures import Palette, figure
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
