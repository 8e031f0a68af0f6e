"""Rules that follow the law of one element: sums, gates behind them, winners, group variances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtr
from tests.signal.simulation import simulate
from torch import Tensor, nn

from fanin.signal.copula import seen_by, summed
from fanin.signal.state import State, integrate
from fanin.signal.table import Table, add
from fanin.signal.transfer.attention import jitter
from fanin.signal.transfer.call import Term


def _relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0.0)


def _stream() -> tuple[State, State, State]:
    """relu(z), an independent branch of variance 1/2, and their sum with its law."""
    normal = Table.iid((64,))
    first = State(integrate(_relu, normal)[0], latent=normal, function=_relu, source="z")
    second = State(Table.iid((64,), 0.0, 0.5), gaussian=True, token="y")
    table = add(first.table, second.table)
    latent, function = summed(first, second, 1.0, 1.0, table)
    total = State(table, latent=latent, function=function, source=("law", "sum"), token="sum")
    return first, second, total


def test_a_sum_keeps_the_law_of_one_element() -> None:
    _, _, total = _stream()
    assert total.latent is not None
    assert total.function is not None
    after, _ = integrate(lambda z: _relu(total.function(z)), total.latent)
    rng = np.random.default_rng(0)
    x = _relu(rng.standard_normal(2_000_000)) + 0.5**0.5 * rng.standard_normal(2_000_000)
    gated = _relu(x)
    for found, power in ((after.average, gated), (after.second_moment, gated**2)):
        assert abs(found - power.mean()) <= 4 * power.std() / len(x) ** 0.5 + 1e-3 * found
    normal, _ = integrate(_relu, total.table)  # what a Gaussian of these moments would say
    assert abs(normal.average - gated.mean()) > 20 * gated.std() / len(x) ** 0.5


def test_a_gate_behind_a_sum_is_open_where_the_stream_is_large() -> None:
    first, second, total = _stream()
    slope, noise = seen_by(
        lambda z: (total.function(z) > 0) * 1.0,  # type: ignore[misc]
        None, total, first, second, 1.0, 1.0,
    )  # fmt: skip
    z = np.array([-1.0, 0.5, 2.0])
    opened = ndtr(_relu(z) / 0.5**0.5)
    assert np.abs(slope(z) - opened).max() < 0.02
    assert np.abs(noise(z) - (opened * (1 - opened)) ** 0.5).max() < 0.02


@pytest.mark.parametrize(("shared", "share"), [(0.0, 0.0), (0.5, 0.02)])
def test_two_gates_behind_a_sum_are_open_together_as_their_streams_are_alike(
    shared: float, share: float
) -> None:
    first, second, total = _stream()
    rho, n = 0.3, 2_000_000
    latent = Table(((64,),), np.zeros(1), np.array([[1.0], [rho]]))
    slope, noise = seen_by(
        lambda z: (z > 0.5) * 1.0,  # type: ignore[misc]
        None, total, first, second, 1.0, 1.0,
    )  # fmt: skip
    alike = Table(((64,),), np.zeros(1), np.array([[1.0], [shared]]))
    term = Term("gate", Table.iid((64,)), slope, latent, "z", noise, alike)
    found = term.times(lambda z: (z > 0) * 1.0).factor()
    assert found is not None
    rng = np.random.default_rng(0)
    z, y = (
        np.stack([np.sqrt(r) * c + np.sqrt(1 - r) * d for d in rng.standard_normal((2, n))])
        for r, c in ((rho, rng.standard_normal(n)), (shared, rng.standard_normal(n)))
    )
    opened = (z > 0) & (_relu(z) + 0.5**0.5 * y > total.function(np.array([0.5])))  # type: ignore[misc]
    for pair, open_ in ((0, opened[0]), (1, opened[0] & opened[1])):
        error = open_.std() / n**0.5
        assert abs(found.pairs[pair].item() - open_.mean()) <= 4 * error + max(share, 2e-3)


@pytest.mark.parametrize(("variance", "keys"), [(0.25, 16), (1.0, 8), (64.0, 64)])
def test_jitter_against_draws(variance: float, keys: int) -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((40_000, keys)) * variance**0.5
    a = np.exp(logits - logits.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    squares = (a**2).sum(1)
    found = squares - 2 * (a**3).sum(1) + squares**2
    assert abs(jitter(variance, keys) - found.mean()) < 5 * found.std() / len(found) ** 0.5


class Residual(nn.Module):
    """relu(x + conv(x)) three times, batch norm in each branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
            )
            for _ in range(3)
        )
        self.last = nn.Linear(width, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for branch in self.branches:
            x = F.relu(x + branch(x))
        return self.last(x)


def test_residual_stream_forward_and_back() -> None:
    model = Residual(256)
    found = simulate(model, (64, 256), draws=16)
    assert found.forward("relu").agrees()
    for name, _ in model.named_parameters():
        if "0.weight" in name or name == "first.weight":
            assert found.gradient(name).agrees(), (name, found.gradient(name))


class Pooled(nn.Module):
    """Max pooling behind ReLU, over positions that are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 64, 1, bias=False)
        self.second = nn.Conv2d(64, 64, 1, bias=False)
        self.last = nn.Conv2d(64, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(F.max_pool2d(x, 2))


def test_max_pooling_of_correlated_positions_back() -> None:
    found = simulate(Pooled(), (8, 16, 8, 8), draws=24)
    for name in ("last.weight", "second.weight", "first.weight"):
        assert found.gradient(name).agrees(), (name, found.gradient(name))


def test_a_hidden_logit_counts_neither_forward_nor_back() -> None:
    class Where(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(32, 32, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5
            seen = torch.ones(16, 16, dtype=torch.bool).tril()
            logits = torch.where(seen, logits, torch.finfo(logits.dtype).min)
            return logits.softmax(-1) @ self.value(x)

    found = simulate(Where(), (8, 16, 32), draws=24)
    assert found.forward("matmul").agrees(), found.forward("matmul")
    for name in ("query.weight", "key.weight", "value.weight"):
        assert found.gradient(name).agrees(), (name, found.gradient(name))


def test_circular_padding_is_followed_exactly() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = (
                nn.Conv2d(16, 16, 1, bias=False),
                nn.Conv2d(16, 8, 3, bias=False),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.pad(self.first(x), (1, 1, 2, 0), mode="circular"))

    found = simulate(Padded(), (4, 16, 5, 6), draws=40)
    assert found.signal.doubts() == []
    assert found.forward("convolution").agrees(), found.forward("convolution")
    for name in ("first.weight", "last.weight"):
        assert found.gradient(name).agrees(), (name, found.gradient(name))


class Gated(nn.Module):
    """relu(a x + s b x), averaged over positions, with a steady gate s for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.gate, self.last = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        s = torch.sigmoid(0.1 * self.gate(y))
        return self.last(F.relu(self.a(x) + self.b(x) * s.unsqueeze(1)).mean(1))


def test_the_gradient_of_a_gate_adds_up_over_positions() -> None:
    found = simulate(Gated(128), (8, 128, 128), (8, 128), draws=16)
    number = found.gradient("gate.weight")
    assert number.agrees(), number


class Averaged(nn.Module):
    """relu(w x), averaged over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)).mean(1))


def test_the_gradient_along_the_weight_itself_adds_up_over_positions() -> None:
    found = simulate(Averaged(64), (8, 256, 64), draws=24)
    number = found.gradient("first.weight")
    assert number.agrees(), number
    halves = 1 / 2  # the share of open gates: without what adds up, half of E[g^2] E[x^2] per row
    assert number.predicted > 1.5 * 8 * 256 * halves * found.signal.gradient(
        found.signal.graph.values[found.last("relu")]
    )
