"""Orthogonal draws under shaping for convolutions: kernels of one tap, borders included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fanin
from fanin import draw
from fanin.planning.choice import centre_stays_inside
from fanin.planning.flow import Flow
from fanin.planning.roles import Scene
from fanin.signal.table import Table
from fanin.signal.transfer.convolution import one_tap, only_tap
from fanin.theory import rules
from fanin.torch.tracing.trace import trace

DRAWN = {"rule": "shaped", "draws": "orthogonal"}


def convolutions(f: nn.Module, depth: int = 30, channels: int = 32) -> nn.Sequential:
    """Padded 3 x 3 kernels with an activation between, the average of the maps, a head."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3), f]  # the input is not padded
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), f]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@pytest.mark.parametrize(
    ("name", "f"), [("sigmoid", nn.Sigmoid()), ("relu", nn.ReLU()), ("softplus", nn.Softplus())]
)
def test_one_tap_keeps_mean_and_variance_at_every_position(name: str, f: nn.Module) -> None:
    """At borders and inside: mean beta, variance near s^2; gradients alike in all layers."""
    model = convolutions(f)
    x = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    plan = fanin.init_(model, x, DRAWN, seed=1)
    row = plan["2.weight"]
    assert isinstance(row.values, draw.DeltaOrthogonal)
    assert row.centre is None
    assert plan["2.bias"].centre is not None
    weight = model[2].weight.detach().double()
    assert weight.abs().sum((0, 1)).count_nonzero() == 1
    one = torch.eye(32, dtype=torch.float64) * row.values.gain**2
    assert (weight[:, :, 1, 1].T @ weight[:, :, 1, 1] - one).abs().max() < 2e-6 * one.max()
    z = model[:-4](x).detach() - rules.shaped(name, 30, width=32).bias
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    second = z.square().mean((0, 1))
    assert float(second[~inside].mean() / second[inside].mean()) == pytest.approx(1.0, abs=0.05)
    mean = z.mean((0, 1)).abs()
    assert mean.max() < 0.25 * second.sqrt().min()  # 32 channels leave 1/32^(1/2) of a deviation
    out = model(x)
    out.mul(torch.randn_like(out)).sum().backward()
    first, last = (model[i].weight.grad.norm() for i in (2, 58))  # type: ignore[union-attr]
    assert 0.5 < first / last < 2


def test_the_sweep_knows_that_one_tap_misses_nothing() -> None:
    """The average that the head reads keeps a tenth of the variance at the operating point."""
    plan = fanin.plan(convolutions(nn.Sigmoid()), fanin.spec((64, 3, 10, 10)), DRAWN)
    variance = float(rules.shaped("sigmoid", 30, width=32).moments.variance)
    expected = (1 / (32 * 0.1 * variance)) ** 0.5
    assert plan["62.weight"].std == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("layer", "inside"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), True),
        (nn.Conv2d(4, 4, 3), True),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), True),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), True),
        (nn.Conv2d(4, 4, 5, padding=(2, 2), stride=3), True),
        (nn.Conv2d(4, 4, 1), True),
        (nn.Conv2d(4, 4, 3, padding=2), False),
        (nn.Conv2d(4, 4, (3, 1), padding=(1, 1)), False),
        (nn.Conv2d(4, 4, 2, padding=1), False),
        (nn.Conv2d(4, 4, 2, padding=1, stride=2), True),
        (nn.ConvTranspose2d(4, 4, 3, padding=1), False),
    ],
)
def test_where_the_centre_tap_stays_inside(layer: nn.Module, inside: bool) -> None:
    """Against the taps themselves: a map of ones under that kernel is all ones, or is not."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), layer)
    scene = Scene(Flow(trace(model, torch.randn(2, 1, 7, 7))))
    assert centre_stays_inside(scene.weights["2.weight"], scene) is inside
    if isinstance(layer, nn.Conv2d):
        with torch.no_grad():
            layer.bias.zero_()  # type: ignore[union-attr]
            layer.weight.zero_()
            layer.weight[:, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1.0
            ones = layer(torch.ones(1, 4, 7, 7))
        assert bool((ones == 1).all()) is inside


def test_other_kernels_stay_orthogonal_over_all_taps() -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3), nn.Sigmoid()]
    for _ in range(12):
        layers += [nn.Conv2d(16, 16, 3, padding=2), nn.Sigmoid()]
    plan = fanin.plan(nn.Sequential(*layers), fanin.spec((2, 3, 6, 6)), DRAWN)
    assert isinstance(plan["2.weight"].values, draw.Orthogonal)
    assert plan["2.weight"].centre is not None  # zero sums at every tap


def test_the_table_of_one_tap() -> None:
    table = one_tap((8, 4, 3, 5), (1, 2), 0.5)
    assert only_tap(table) == ((1, 2), 0.5)
    assert table.second_moment == pytest.approx(0.5 / 15)
    assert only_tap(one_tap((8, 1, 3, 1), (2, 0), 2.0)) == ((2, 0), 2.0)
    assert only_tap(Table.iid((8, 4, 3, 3), 0.0, 1.0)) is None
    assert only_tap(Table.iid((8, 4, 1, 1), 0.0, 1.0)) is None
    assert only_tap(Table.iid((8, 4, 3, 3), 0.1, 1.0)) is None
