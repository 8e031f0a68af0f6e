"""The size of a sample: what the positions of one sample have in common."""

from __future__ import annotations

import pytest
import torch
from tests.signal.simulation import simulate
from torch import Tensor, nn


class _Shift(nn.Module):
    """What an activation's mean leaves in the average over positions, after the batch's is gone."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 64, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.act = getattr(torch, act)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("act", ["relu", "abs"])
def test_a_large_sample_shifts_all_that_an_activation_makes_of_it(act: str) -> None:
    result = simulate(_Shift(act), (16, 1, 10, 10), draws=100)
    assert result.forward("mean").agrees()
