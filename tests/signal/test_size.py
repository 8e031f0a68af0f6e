"""The size of a sample: what the positions of one sample have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.signal.simulation import simulate
from torch import Tensor, nn

from fanin.signal.state import State

CHANNELS = 8
ALONE = 2 / (CHANNELS * 3)  # the variance of one position's mean square: the theory is linear in it


def ends(space: int) -> float:
    """The share of windows at the ends, which see less in common with others."""
    return 4 / space


def conv(inputs: int) -> nn.Conv1d:
    """Three taps inside."""
    return nn.Conv1d(inputs, 64, 3, bias=False)


def predicted(model: nn.Module, space: int) -> State:
    """The state of the output where weights are N(0, 1 / fan_in)."""
    signal = simulate(model, (2, CHANNELS, space), draws=1).signal
    return signal[signal.graph.outputs[0]]


# --- one sample's mean square --------------------------------------------------------------------


def squares(draws: int, space: int) -> np.ndarray:
    """The mean square over channels of each position of N(0, 1) inputs."""
    x = np.random.default_rng(0).standard_normal((draws, CHANNELS, space), dtype=np.float32)
    return np.asarray((x**2).mean(1))


def windows(q: np.ndarray) -> np.ndarray:
    """What three taps of many N(0, 1 / fan_in) weights make of mean squares."""
    return (q[:, :-2] + q[:, 1:-1] + q[:, 2:]) / 3


def through(f: Callable[[np.ndarray], np.ndarray], q: np.ndarray, power: int) -> np.ndarray:
    """E[f(z)^power] for z ~ N(0, q), each q."""
    z = np.linspace(-8, 8, 1601)
    weight = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    grid = np.linspace(0.0, q.max(), 200)
    return np.interp(q, grid, f(np.sqrt(grid)[:, None] * z) ** power @ weight)


class Skip(nn.Module):
    """x + alpha tanh(w x), place by place."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.layer, self.alpha = nn.Conv1d(64, 64, 1, bias=False), alpha

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, torch.tanh(self.layer(x)), alpha=self.alpha)


def test_activations_and_sums_change_the_variance_of_a_mean_square() -> None:
    """Given the inputs, layers without end have kernels that the inputs alone determine."""
    first = windows(squares(6000, 96))
    bent = through(np.tanh, first, 2)
    models = {
        "tanh": (nn.Sequential(conv(CHANNELS), nn.Tanh()), bent),
        "relu": (nn.Sequential(conv(CHANNELS), nn.ReLU()), first / 2),
        "square": (nn.Sequential(conv(CHANNELS), Square()), 3 * first**2),
        "two layers": (nn.Sequential(conv(CHANNELS), nn.Tanh(), conv(64)), windows(bent)),
        "twice": (
            nn.Sequential(conv(CHANNELS), nn.Tanh(), conv(64), nn.Tanh()),
            through(np.tanh, windows(bent), 2),
        ),
        "sum": (nn.Sequential(conv(CHANNELS), Skip(2.0)), first + 4 * bent),
        "difference": (nn.Sequential(conv(CHANNELS), Skip(-1.0)), first + bent),
    }
    for name, (model, kernel) in models.items():
        means = kernel.mean(1)
        found = means.var(ddof=1) / means.mean() ** 2
        error = 4 * (2 / len(means)) ** 0.5  # relative, of a variance
        said = predicted(model, 96).size
        assert abs(said - found) <= max(error, ALONE + ends(96)) * found, name


class Square(nn.Module):
    """x^2."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2


class Exp(nn.Module):
    """exp(x / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x / 2)


# --- pairs of positions --------------------------------------------------------------------------


ACTS = {"relu": nn.ReLU(), "softplus": nn.Softplus(), "exp": Exp()}


@pytest.mark.parametrize("name", ACTS)
def test_positions_of_one_sample_are_alike_by_its_size(name: str) -> None:
    """The covariance of E[f | sample] at two positions, all of whose pairs are averaged."""
    act = ACTS[name]

    def function(x: np.ndarray) -> np.ndarray:
        return np.asarray(act(torch.from_numpy(x)).numpy())

    m = through(function, windows(squares(20_000, 96)), 1)
    p, average = m.shape[1], m.mean()
    m = m - average
    found = ((m.sum(1) ** 2 - (m**2).sum(1)) / (p * (p - 1))).mean()
    table = predicted(nn.Sequential(conv(CHANNELS), act), 96).table
    said = table.covariance(2) - table.covariance(0, 2)
    error = 4 * (2 / len(m)) ** 0.5
    assert abs(said - found) <= max(error, ALONE + ends(96)) * found


def relu_pairs(k: np.ndarray) -> np.ndarray:
    """E[f(u) f(v)] of ReLUs for kernels of many u and v: Cho and Saul (2009), eq. 6."""
    flat = k.reshape(len(k), k.shape[1] * k.shape[2], -1)
    scale = np.sqrt(np.einsum("dii->di", flat))
    scale = scale[:, :, None] * scale[:, None, :]
    angle = np.arccos(np.clip(flat / scale, -1, 1))
    pairs = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return np.asarray(pairs.reshape(k.shape))


def slid(k: np.ndarray) -> np.ndarray:
    """Three taps of many weights, on kernels [draw, sample, position, sample, position]."""
    return (k[:, :, :-2, :, :-2] + k[:, :, 1:-1, :, 1:-1] + k[:, :, 2:, :, 2:]) / 3


def within(k: np.ndarray) -> np.ndarray:
    """What two positions of one sample have more than those of two samples, one a draw."""
    p = k.shape[2]
    apart = ~np.eye(p, dtype=bool)
    same = (k[:, 0, :, 0][:, apart].mean(1) + k[:, 1, :, 1][:, apart].mean(1)) / 2
    return np.asarray(same - k[:, 0, :, 1].mean((1, 2)))


def test_positions_two_layers_deep_are_alike_by_their_size() -> None:
    """What the first layer gave is passed on, and not added twice."""
    space, generator, found, first = 32, np.random.default_rng(1), [], []
    for _ in range(40):
        x = generator.standard_normal((50, 2, CHANNELS, space))
        k = slid(np.einsum("dscp,dtcq->dsptq", x, x) / CHANNELS)
        first.append(within(k))
        found.append(within(relu_pairs(slid(relu_pairs(k)))))
    y, known = np.concatenate(found), np.concatenate(first)
    y = y - np.cov(y, known)[0, 1] / known.var() * known  # the mean of what is known is 0
    model = nn.Sequential(conv(CHANNELS), nn.ReLU(), conv(64), nn.ReLU())
    table = predicted(model, space).table
    said = table.covariance(2) - table.covariance(0, 2)
    error = 4 * y.std(ddof=1) / len(y) ** 0.5
    assert abs(said - y.mean()) <= max(error, (ALONE + ends(space)) * y.mean())


def test_a_position_has_seen_as_far_as_taps_reach() -> None:
    taps = float(np.var([-1, 0, 1]))
    layers = nn.Sequential(conv(CHANNELS), nn.Tanh(), conv(64), nn.ReLU())
    assert predicted(layers, 32).reach == pytest.approx(2 * taps)
    assert predicted(nn.Sequential(conv(CHANNELS), Skip(2.0)), 32).reach == pytest.approx(taps)


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
