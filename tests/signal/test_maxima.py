"""Max pooling against simulation: unequal channels, pools in a row, and where gradients go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.signal.simulation import simulate
from torch import Tensor, nn


class Unequal(nn.Module):
    """Two groups of channels, one eight times as large, pooled behind ReLU."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.large, self.small = (nn.Conv2d(32, n, 1, bias=False) for n in (24, 40))
        self.last = nn.Conv2d(64, 16, 1, bias=False)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([8 * self.large(x), self.small(x)], 1))
        x = F.max_pool2d(x, 2)
        return self.last(F.max_pool2d(x, 3, 1, 1) if self.twice else x)


def test_channels_of_different_laws_and_pools_in_a_row() -> None:
    found = simulate(Unequal(twice=True), (4, 32, 8, 8), draws=24)
    assert found.forward("max_pool2d").agrees(), found.forward("max_pool2d")
    assert found.gradient("last.weight").agrees(), found.gradient("last.weight")


def test_each_channel_sees_its_own_winners() -> None:
    """The winner of four is positive in 15 of 16 windows, however small the channel."""
    found = simulate(Unequal(twice=False), (4, 32, 8, 8), draws=24)
    signal, graph = found.signal, found.graph
    pooled, joined = found.last("max_pool2d"), found.last("cat")
    sent = signal.gradients[pooled].second_moment / 4 * 15 / 16
    for index in graph.producer(joined).inputs:  # type: ignore[union-attr]
        assert signal.gradients[index].second_moment == pytest.approx(sent, rel=0.01)
        assert found.slopes[index].mean() == pytest.approx(sent, rel=0.03)


class Averaged(nn.Module):
    """The gradient of an average through a pool: every position of a channel gets the same."""

    def __init__(self, *pool: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, 64, 1, bias=False)
        self.last = nn.Linear(64, 8, bias=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(self.first(x), *self.pool).mean((2, 3)))


@pytest.mark.parametrize("pool", [(2,), (3, 1, 1)])
def test_gradients_add_up_to_what_arrived(pool: tuple[int, ...]) -> None:
    """Sums over positions are kept; an element that wins several windows gets all of theirs."""
    found = simulate(Averaged(*pool), (4, 32, 12, 12), draws=24)
    first, pooled = found.last("convolution"), found.last("max_pool2d")
    sent, arrived = (found.signal.gradients[i].sum((2, 3)) for i in (first, pooled))
    assert sent.second_moment == pytest.approx(arrived.second_moment, rel=0.03)
    measured = found.slopes[first].mean()
    assert found.signal.gradients[first].second_moment == pytest.approx(measured, rel=0.12)
