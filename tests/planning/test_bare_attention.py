"""Attention outside of residual streams: what the plan says, and that it is so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin


class Bare(nn.Module):
    """Attentions one after another, with or without a skip around each."""

    def __init__(self, depth: int, *, skip: bool, width: int = 32) -> None:
        super().__init__()
        self.skip = skip
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width) for name in "qkvo"}) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = (layer[n](x).unflatten(-1, (4, 8)).transpose(1, 2) for n in "qkv")
            y = layer["o"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + y if self.skip else y
        return x


def test_the_plan_says_what_no_start_can_give() -> None:
    plan = fanin.plan(Bare(3, skip=False), fanin.spec((4, 16, 32)))
    (found,) = [s for s in plan.stretches if s.kind == "attention"]
    assert found.weights == ("layers.0.o.weight", "layers.1.o.weight", "layers.2.o.weight")
    assert found.rule == "second_moment"
    assert found.reason == (
        "3 attentions without a skip: outputs count as one of the values; averages over positions "
        "make these alike, which no weights and biases undo"
    )
    assert plan["layers.1.o.weight"].std == pytest.approx(32**-0.5)  # E[x^2] = 1 of a value


def test_with_a_skip_there_is_nothing_to_say() -> None:
    plan = fanin.plan(Bare(3, skip=True), fanin.spec((4, 16, 32)))
    assert [s.kind for s in plan.stretches] == ["residual"]


def test_positions_become_alike_without_a_skip() -> None:
    """The share of the variance that is between positions, after 6 attentions."""
    shares = []
    for skip in (False, True):
        model, x = Bare(6, skip=skip), torch.randn(16, 16, 32, generator=torch.manual_seed(0))
        fanin.init_(model, x, seed=0)
        with torch.no_grad():
            y = model(x)
        shares.append(float(y.var(1).mean() / y.square().mean()))
    assert shares[0] < 1e-3
    assert shares[1] > 0.5
