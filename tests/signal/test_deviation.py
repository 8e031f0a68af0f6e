"""Deviations of two positions' kernel from its mean, which gradients and inputs have in common."""

from __future__ import annotations

import pytest
import torch
from tests.signal.simulation import simulate
from torch import Tensor, nn


class _Averaged(nn.Module):
    """A linear filter, a layer with an activation, and an average over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("size", [8, 12])
def test_gradients_and_inputs_of_few_directions_deviate_alike(size: int) -> None:
    result = simulate(_Averaged(48), (2, 3, size, size), draws=100)
    for name in ("first.weight", "second.weight"):
        assert result.gradient(name).agrees()
