"""The rules on real layers: torch networks of width 1000, within 4 standard errors of theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fanin.theory import rules
from fanin.theory.rules import LayerRule

WIDTH, DEPTH, SEEDS, BATCH = 1000, 20, 5, 8


@dataclass
class Measured:
    """Per seed: variance about the bias in the last layer, and growths from first to last layer."""

    variance: np.ndarray
    gradient: np.ndarray
    distance: np.ndarray


def simulate(f: Callable[[torch.Tensor], torch.Tensor], rule: LayerRule) -> Measured:
    """A plain network under a rule: its signal, squared gradients and squared distances."""
    variance, gradient, distance = [], [], []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = normal(BATCH, WIDTH)
        near = x + 1e-6 * normal(BATCH, WIDTH)
        signal = torch.cat([x, near])
        layers = [rule.first(), *[rule] * (DEPTH - 1)]
        sent: list[torch.Tensor] = []
        for layer in layers:
            weight = layer.std(WIDTH) * normal(WIDTH, WIDTH)
            bias = layer.bias - layer.centre * weight.sum(1)
            bias = bias + math.sqrt(layer.bias_variance) * normal(WIDTH)
            y = signal @ weight.T + bias
            if not sent:
                y.requires_grad_()
            sent.append(y)
            signal = f(y)
        last = sent[-1][:BATCH]
        (last * normal(BATCH, WIDTH)).sum().backward()
        first_gradient = sent[0].grad[:BATCH]  # type: ignore[index]
        gaps = [(y[:BATCH] - y[BATCH:]).detach().square().mean() for y in (sent[0], sent[-1])]
        variance.append(float((last.detach() - rule.bias).square().mean()))
        gradient.append(float(first_gradient.square().mean()))
        distance.append(float(gaps[1] / gaps[0]))
    return Measured(np.array(variance), np.array(gradient), np.array(distance))


def agrees(samples: np.ndarray, theory: float) -> bool:
    """Whether the mean is within 4 standard errors of theory."""
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return bool(abs(samples.mean() - theory) < 4 * error)


@pytest.mark.parametrize(
    ("name", "f", "rule"),
    [
        ("centred sigmoid", torch.sigmoid, rules.centred("sigmoid")),
        ("second-moment tanh", torch.tanh, rules.second_moment("tanh")),
        ("shaped sigmoid", torch.sigmoid, rules.shaped("sigmoid", DEPTH)),
        ("shaped gelu", torch.nn.functional.gelu, rules.shaped("gelu", DEPTH)),
    ],
)
def test_signal_gradient_and_distance(
    name: str, f: Callable[[torch.Tensor], torch.Tensor], rule: LayerRule
) -> None:
    measured = simulate(f, rule)
    assert agrees(measured.variance, rule.operating_point.variance)
    assert agrees(measured.gradient, rule.chi ** (DEPTH - 1))
    assert agrees(measured.distance, rule.chi ** (DEPTH - 1))


def test_centred_sigmoid_over_ten_layers() -> None:
    """The growth of squared gradients that was reported from an independent simulation."""
    assert rules.centred("sigmoid").chi ** 10 == pytest.approx(1.39, abs=0.005)
