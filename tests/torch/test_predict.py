"""Predictions beside measurements: every row has one, and they agree within chance."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fanin

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "gallery"))
from blocks import GPT, BasicBlock, mlp, resnet


def logs(report: fanin.report.report.Report) -> tuple[list[float], list[float]]:
    """Log ratios of measured over predicted second moments and gradients."""
    assert report.measured is not None
    layers = report.measured.layers
    assert all(row.predicted for row in layers)
    assert all(row.predicted_gradient for row in layers if row.gradient)
    signal = [math.log(row.second_moment / row.predicted) for row in layers]
    gradient = [math.log(row.gradient / row.predicted_gradient) for row in layers if row.gradient]
    return signal, gradient


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.GELU])
def test_plain_networks_with_the_weights_as_they_are(act: type[nn.Module]) -> None:
    depth, width = 12, 256
    torch.manual_seed(0)
    report = fanin.check(mlp(width, depth, act), torch.randn(64, 784), predicted=True)
    signal, gradient = logs(report)
    # The log second moment of one draw of the weights varies by 5/width a layer at most.
    allowed = 4 * math.sqrt(5 * depth / width)
    assert max(map(abs, signal)) < allowed
    assert max(map(abs, gradient)) < allowed
    assert len(signal) == 2 * depth - 1


def test_a_plan_with_centred_biases() -> None:
    torch.manual_seed(0)
    model, x = mlp(256, 20, nn.Sigmoid), torch.randn(64, 784)
    plan = fanin.init_(model, x)
    signal, gradient = logs(fanin.check(model, x, plan=plan))
    allowed = 4 * math.sqrt(5 * 20 / 256)
    assert max(map(abs, signal)) < allowed
    assert max(map(abs, gradient)) < allowed


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_every_row_of_real_architectures_has_a_prediction(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = {
        "resnet": lambda: (resnet(BasicBlock, (1, 1, 1, 1), 16), torch.randn(8, 3, 32, 32)),
        "gpt": lambda: (GPT(2, 64, 4, 100, 16), torch.randint(100, (8, 16))),
    }[name]()
    signal, _ = logs(fanin.check(model, inputs, "ce", predicted=True))
    assert max(map(abs, signal)) < math.log(1.5)


def test_a_model_that_cannot_be_traced_says_so_and_is_still_checked() -> None:
    class Unseen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy() * 2)

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 2

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Unseen.apply(self.fc(x))

    report = fanin.check(Custom(), torch.randn(16, 8), predicted=True)
    assert report.measured is not None
    assert report.measured.layers[0].second_moment > 0
    assert report.verdict == "PASS"
