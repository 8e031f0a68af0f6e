"""Fourier transforms: sizes by frequency and norm convention, forward and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.signal.simulation import simulate
from torch import Tensor, nn

import fanin
from fanin.signal.propagate import propagate
from fanin.signal.state import Given
from fanin.signal.table import Table
from fanin.signal.transfer.fourier import _transformed
from fanin.torch.tracing.trace import trace

WIDTH, STEPS = 24, 10


class Mixing(nn.Module):
    """Two layers with a transform of what the first gives between them."""

    def __init__(self, transform: object) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.transform(torch.relu(self.inner(x))))  # type: ignore[operator]


def _filtered(x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * 0.5, n=x.shape[1], dim=1)


TRANSFORMS = {
    "fnet": lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    "fft2": lambda x: torch.fft.fft2(x).real,
    "ortho": lambda x: torch.fft.fft2(x, norm="ortho").real,
    "forward": lambda x: torch.fft.fft(x, dim=1, norm="forward").imag,
    "there and back": _filtered,
    "odd": lambda x: torch.fft.irfft(torch.fft.rfft(x[:, :9], dim=1), n=9, dim=1),
    "inverse": lambda x: torch.fft.ifft(x, dim=1).real,
    "joined": lambda x: torch.fft.fft(torch.complex(x, torch.roll(x, 1, 0)), dim=1).real,
}


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_transform_between_two_layers(name: str) -> None:
    torch.manual_seed(0)
    found = simulate(Mixing(TRANSFORMS[name]), (12, STEPS, WIDTH), draws=60)
    assert found.forward("linear").agrees()
    for weight in ("inner.weight", "outer.weight"):
        assert found.gradient(weight).agrees(share=0.1), (name, weight, found.gradient(weight))


@pytest.mark.parametrize("steps", [2, 7, 8])
def test_second_moments_of_a_spectrum(steps: int) -> None:
    """Against the matrix of the transform on the covariance of alike elements."""
    table = Table.iid((3, steps), 0.5, 2.0)
    found = _transformed(table, 1)
    matrix = np.exp(-2j * np.pi * np.outer(np.arange(steps), np.arange(steps)) / steps)
    covariance = np.full((steps, steps), 0.25) + 1.75 * np.eye(steps)
    wanted = (matrix @ covariance @ matrix.conj().T).real
    assert np.broadcast_to(found.same, (1, steps))[0] == pytest.approx(np.diag(wanted))
    assert found.covariance(1) == pytest.approx(0.0, abs=1e-9)
    again = _transformed(found, 1) * (1 / steps)
    assert again.second_moment == pytest.approx(2.0)
    assert again.covariance(1) == pytest.approx(0.25)
    assert again.average == pytest.approx(0.5)


def test_a_mixing_layer_is_planned_without_doubts() -> None:
    model = Mixing(TRANSFORMS["fnet"])
    graph = trace(model, fanin.spec((4, STEPS, WIDTH)))
    given = {p.name: Given(variance=1 / WIDTH) for p in graph.parameters}
    assert not [n for n, how in propagate(graph, given).doubts() if "fft" in n.name]
    plan = fanin.plan(model, fanin.spec((4, STEPS, WIDTH)))
    assert not any("taken as N(0, 1)" in note for note in plan.notes)
    assert plan["outer.weight"].std < plan["inner.weight"].std / 8  # 240 terms are in each sum
