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


class Spectrogram(Mixing):
    """The same with nothing between the first layer and the transform, which so is Gaussian."""

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.transform(self.inner(x)))  # type: ignore[operator]


SPECTRA = {
    "magnitude": lambda x: torch.fft.rfft(x, dim=1).abs(),
    "power": lambda x: torch.fft.rfft(x, dim=1).abs() ** 2,
    "logarithm": lambda x: torch.log1p(torch.fft.fft(x, dim=1).abs()),
    "turned": lambda x: torch.fft.rfft(x.transpose(1, 2)).transpose(1, 2).abs() ** 2,
}


@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_the_modulus_of_a_spectrum(name: str) -> None:
    torch.manual_seed(0)
    found = simulate(Spectrogram(SPECTRA[name]), (12, STEPS, WIDTH), draws=60)
    assert found.forward("linear").agrees(), found.forward("linear")
    # The slope of a power is z itself, which holds 1 / width of each input: 2 / width squared.
    for weight in ("inner.weight", "outer.weight"):
        assert found.gradient(weight).agrees(share=0.05 + 2 / WIDTH), (weight, name)


def test_moments_of_a_modulus() -> None:
    """Complex: E|z| = sqrt(pi s) / 2, E|z|^4 = 2 s^2; real, at 0 and half: half normal, 3 s^2."""

    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            size = torch.fft.rfft(x).abs()
            return size, size**2

    graph = trace(Spectrum(), fanin.spec((4, 16)))
    states = propagate(graph, {}).states
    size, power = (states[index].table for index in graph.outputs)
    real, s = np.isin(np.arange(9), (0, 8)), 16.0
    mean = np.where(real, (2 * s / np.pi) ** 0.5, (np.pi * s) ** 0.5 / 2)
    assert np.broadcast_to(size.mean, (1, 9))[0] == pytest.approx(mean, rel=2e-5)
    fourth = np.where(real, 3.0, 2.0) * s**2
    assert np.broadcast_to(power.same, (1, 9))[0] == pytest.approx(fourth, rel=1e-6)


def test_other_functions_of_complex_numbers_are_assumptions() -> None:
    class Phase(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).angle()

    graph = trace(Phase(), fanin.spec((4, 16)))
    assert propagate(graph, {})[graph.outputs[0]].how.startswith("assumed")
