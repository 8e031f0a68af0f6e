"""What other initializers get wrong, each against a simulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.signal.simulation import simulate
from torch import Tensor, nn


def test_dropout_raises_the_second_moment_and_keeps_the_mean() -> None:
    found = simulate(
        nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Dropout(0.5)), (64, 64)
    )
    state = found.signal[found.graph.outputs[0]]
    assert state.second_moment == pytest.approx(1.0, rel=1e-4)
    assert state.variance == pytest.approx(1 - 1 / (2 * torch.pi), rel=1e-4)  # 0.841, not 0.682
    assert found.forward("dropout").agrees()


@pytest.mark.parametrize("depth", [1, 8])
def test_zero_padding_counts_the_taps_inside(depth: int) -> None:
    layers = [nn.Conv2d(24, 24, 3, padding=1, bias=False) for _ in range(depth)]
    found = simulate(nn.Sequential(*layers), (8, 24, 8, 8), draws=30)
    profile = torch.ones(8)
    for _ in range(depth):
        profile = F.conv1d(profile[None, None], torch.full((1, 1, 3), 1 / 3), padding=1)[0, 0]
    predicted = found.forward("conv2d" if found.graph.nodes[0].name == "conv2d" else "convolution")
    assert predicted.predicted == pytest.approx(float(profile.mean()) ** 2, rel=1e-6)
    assert predicted.agrees()


def test_depthwise_convolution_has_the_fan_of_its_kernel() -> None:
    layer = nn.Conv2d(64, 64, 3, groups=64, bias=False)
    found = simulate(layer, (8, 64, 10, 10), variances={"weight": 1 / 9})
    assert found.forward("convolution").predicted == pytest.approx(1.0)
    assert found.forward("convolution").agrees()
    assert found.gradient("weight").agrees()


@pytest.mark.parametrize(
    ("convolution", "pool", "shape"),
    [
        (nn.Conv2d(16, 32, 1), nn.AdaptiveMaxPool2d(1), (16, 16, 6, 6)),
        (nn.Conv3d(16, 32, 1), nn.AdaptiveMaxPool3d(1), (16, 16, 3, 3, 3)),
        (nn.Conv2d(16, 32, 1), nn.MaxPool2d(3, 2, 1), (16, 16, 8, 8)),
    ],
    ids=["global 2d", "global 3d", "overlapping"],
)
def test_maxima_are_order_statistics(
    convolution: nn.Module, pool: nn.Module, shape: tuple[int, ...]
) -> None:
    nn.init.zeros_(convolution.bias)
    found = simulate(nn.Sequential(convolution, pool), shape)
    name = found.graph.nodes[-1].name
    assert found.forward(name).agrees()
    assert found.signal[found.graph.outputs[0]].how.startswith("sampled ±")


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Linear(64, 8, bias=False), nn.Linear(64, 248, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.few(x), torch.relu(self.many(x))], 1)


def test_concatenation_weighs_by_size() -> None:
    found = simulate(Concatenated(), (64, 64))
    assert found.forward("cat").predicted == pytest.approx((8 + 124) / 256, rel=1e-4)  # not 0.75
    assert found.forward("cat").agrees()


class HandNorm(nn.Module):
    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        h = 3 * self.before(x)
        if self.centred:
            h = h - h.mean(-1, keepdim=True)
            return self.after(h / torch.sqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.after(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("centred", [False, True])
def test_a_norm_written_out_has_unit_output(centred: bool) -> None:
    found = simulate(HandNorm(centred), (32, 64))
    assert found.forward("linear").predicted == pytest.approx(1.0, rel=1e-4)
    assert found.forward("linear").agrees()
    assert found.gradient("before.weight").agrees()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256, bias=False), nn.Linear(128, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


def test_gated_units_multiply_second_moments() -> None:
    found = simulate(Gated(), (64, 64))
    assert found.forward("mul").predicted == pytest.approx(0.355775, rel=1e-4)  # E[silu(z)^2]
    assert found.forward("linear").agrees()
    assert found.gradient("up.weight").agrees()


def test_transposed_convolution_divides_by_the_stride() -> None:
    layer = nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, bias=False)
    found = simulate(layer, (8, 32, 12, 12), variances={"weight": 1 / (32 * 4)})
    inside = (1 - 1 / 24) ** 2  # two of 24 outputs an axis miss one of their two taps
    assert found.forward("convolution").predicted == pytest.approx(inside, rel=1e-6)
    assert found.forward("convolution").agrees()
    assert found.gradient("weight").agrees()


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(128, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_a_reused_weight_adds_the_gradients_of_its_uses() -> None:
    found = simulate(Reused(), (64, 128))
    assert found.forward("linear").agrees()
    assert found.gradient("layer.weight").agrees()


def test_softmax_spreads_by_the_variance_within_rows() -> None:
    found = simulate(nn.Sequential(nn.Linear(64, 10, bias=False), nn.Softmax(-1)), (256, 64))
    assert found.forward("softmax").agrees()
    assert found.signal[found.graph.outputs[0]].mean == pytest.approx(0.1)


def test_unknown_activations_are_integrated_and_not_passed_through() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3 * x) + x * torch.tanh(F.softplus(x)) - x**2 / (1 + x**2)

    found = simulate(nn.Sequential(nn.Linear(64, 64, bias=False), Odd()), (256, 64))
    assert found.forward("sub").agrees()
    assert {how.split()[0] for _, how in found.signal.doubts()} == set()
