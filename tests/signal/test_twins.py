"""Two runs of one function against formulas, and what must not be taken for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fanin


class Siamese(nn.Module):
    """A head on the distance of what one encoder says of two inputs."""

    def __init__(self, shared: bool = True) -> None:
        super().__init__()

        def encoder() -> nn.Sequential:
            return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))

        self.one = encoder()
        self.two = self.one if shared else encoder()
        self.head = nn.Linear(256, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.one(a) - self.two(b)).abs())


def read_by_head(model: nn.Module, inputs: object) -> float:
    """E[x^2] in front of the head, which is drawn for outputs of variance 1."""
    std = fanin.plan(model, inputs, "second_moment")["head.weight"].std
    assert std is not None
    return 1 / (256 * std**2)


TWO = fanin.spec((64, 256)), fanin.spec((64, 256))


def test_runs_of_shared_layers_have_in_common_what_two_samples_have() -> None:
    """E[(y - y')^2] = 2 (1 - c), c = E[r]^2 / E[r^2] = 1/pi with r the ReLU of N(0, 1)."""
    assert read_by_head(Siamese(), TWO) == pytest.approx(2 * (1 - 1 / math.pi), rel=1e-3)
    assert read_by_head(Siamese(shared=False), TWO) == pytest.approx(2.0, rel=1e-3)


def test_as_measured() -> None:
    torch.manual_seed(0)
    model, found = Siamese(), []
    for seed in range(5):
        fanin.init_(model, TWO, "second_moment", seed=seed)
        a, b = torch.randn(2, 256, 256)
        with torch.no_grad():
            found.append((model.one(a) - model.two(b)).pow(2).mean().item())
    assert sum(found) / 5 == pytest.approx(2 * (1 - 1 / math.pi), rel=0.03)


class Twice(Siamese):
    """Runs on inputs that are made of the same tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.one(a - b) + self.one(b - a))


def test_inputs_that_are_not_disjoint_are_no_two_samples() -> None:
    """Their variances add; two samples would have 1/pi of them in common."""
    plan = fanin.plan(Twice(), TWO, {"*": "second_moment"})
    assert plan["head.weight"].std is not None
    assert 1 / (256 * plan["head.weight"].std ** 2) == pytest.approx(
        2 * 2 * (256 * 0.5 * plan["one.0.weight"].std ** 2) * (256 * plan["one.2.weight"].std ** 2),
        rel=1e-3,
    )
