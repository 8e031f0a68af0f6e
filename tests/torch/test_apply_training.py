"""Deep sigmoid networks, which the framework's default leaves at ln 10, train after `init_`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tests.planning.networks import mlp
from torch import Tensor, nn

import fanin


def clusters() -> tuple[Tensor, Tensor]:
    """Ten clusters of 2000 points in 20 dimensions, standardised."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 20, generator=g) * 1.5
    y = torch.randint(0, 10, (2000,), generator=g)
    x = centres[y] + torch.randn(2000, 20, generator=g) * 0.5
    return (x - x.mean(0)) / x.std(0), y


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def trained(depth: int, rate: float, seed: int) -> tuple[float, float]:
    """Loss and accuracy on all points after 300 steps of Adam."""
    x, y = clusters()
    torch.manual_seed(100 + seed)
    model = mlp(depth, nn.Sigmoid(), 128)
    fanin.init_(model, x, seed=seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(300):
        batch = torch.randint(0, 2000, (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        out = model(x)
    accuracy = (out.argmax(1) == y).float().mean().item()
    return F.cross_entropy(out, y).item(), accuracy


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_sigmoid_layers_train(seed: int) -> None:
    loss, accuracy = trained(20, 1e-3, seed)
    assert loss < 0.1
    assert accuracy > 0.99


@pytest.mark.parametrize(
    "seed",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)],
)
def test_fifty_sigmoid_layers_train(seed: int) -> None:
    loss, accuracy = trained(50, 3e-4, seed)
    assert loss < 0.5
    assert accuracy > 0.95
