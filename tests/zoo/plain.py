"""Stretches without normalisation or skip: deep perceptrons and a plain stack of convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from benchmarks.activations import ACTIVATIONS as TWELVE
from benchmarks.activations import BY_HAND
from tests.zoo import Entry
from torch import Tensor, nn

import fanin

ACTIVATIONS = {"mish by hand" if n == BY_HAND else n: f for n, f in TWELVE.items()}


class Perceptron(nn.Module):
    """Layers of one width with an activation after each but the last."""

    def __init__(self, f: Callable[[Tensor], Tensor], depth: int = 30, width: int = 256) -> None:
        super().__init__()
        self.f = f
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.f(layer(x))
        return self.layers[-1](x)


def convolutions(depth: int, channels: int) -> nn.Sequential:
    """3 x 3 convolutions with ReLU, padded with zeros; a linear head on the mean."""
    sizes = [3, *[channels] * depth]
    steps: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        steps += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def _perceptron(f: Callable[[Tensor], Tensor], small: bool) -> nn.Module:
    return Perceptron(f, *((4, 32) if small else (30, 256)))


ENTRIES = (
    *(
        Entry(
            f"MLP {name}",
            partial(_perceptron, f),
            lambda small: fanin.spec((4, 32) if small else (256, 256)),
        )
        for name, f in ACTIVATIONS.items()
    ),
    Entry(
        "plain convolutions",
        lambda small: convolutions(4, 8) if small else convolutions(32, 64),
        lambda small: fanin.spec((2, 3, 8, 8) if small else (8, 3, 16, 16)),
    ),
)
