"""Functions of Gaussians on nodes: integrals, many laws at once, and chains that do not repeat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.signal.counting import runs
from torch import Tensor, nn

import fanin
from fanin.signal.nodes import Once, coefficients


def moments(function: object, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[f] and E[f^2] by Gauss-Legendre panels around the mean, independently."""
    x, w = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-9, 9, 181)
    z = ((edges[1:] + edges[:-1])[:, None] + np.diff(edges)[:, None] * x).ravel() / 2
    weight = (np.diff(edges)[:, None] * w / 2).ravel() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    f = function(mean[..., None] + std[..., None] * z)  # type: ignore[operator]
    return f @ weight, (f * f) @ weight


@pytest.mark.parametrize(
    ("function", "accuracy"),
    [(np.tanh, 1e-9), (np.exp, 1e-9), (lambda x: np.maximum(x, 0.0), 2e-5), (np.abs, 2e-5)],
)
def test_moments_of_a_profile(function: object, accuracy: float) -> None:
    mean, std = np.array([[0.3], [-1.0]]), np.linspace(0.4, 1.1, 7)[None, :].repeat(2, 0)
    mean = np.broadcast_to(mean, std.shape)
    found, power, total = coefficients(function, mean, std**2)  # type: ignore[arg-type]
    first, second = moments(function, mean, std)
    assert total
    assert (np.abs(found[0] - first) <= accuracy * np.maximum(std, np.sqrt(second))).all()
    assert (np.abs(power - second) <= accuracy * np.maximum(std**2, second)).all()


@pytest.mark.parametrize("frequency", [30.0, 41.9, 59.8, 69.8, 83.8, 125.0])
def test_no_coarse_rule_is_taken_for_a_fast_wave(frequency: float) -> None:
    """E[sin^2(w z)] = 1/2 for a fast wave, also where it is zero on all nodes of one rule."""
    _, power, _ = coefficients(lambda z: np.sin(frequency * z), np.zeros(1), np.ones(1))
    assert power.item() == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("low", [0.7, 0.01, 0.0])
def test_many_laws_are_as_good_as_few(low: float) -> None:
    mean = np.repeat([[-2.0], [0.0], [1.5]], 60, 1)
    std = np.linspace(low, 1.5, 60)[None, :].repeat(3, 0)
    for function in (np.tanh, lambda x: np.logaddexp(0.0, x)):
        found, power, _ = coefficients(function, mean, std**2)
        for i, j in np.ndindex(3, 60):
            one, alone, _ = coefficients(function, mean[i, j : j + 1], std[i, j : j + 1] ** 2)
            assert power[i, j] == pytest.approx(alone.item(), rel=1e-6, abs=1e-12)
            assert found[:4, i, j] == pytest.approx(one[:4, 0], abs=1e-6 * alone.item() ** 0.5)


def test_hermite_coefficients_of_an_exponential() -> None:
    """E[exp(s z) h_k(z)] = exp(s^2 / 2) s^k / sqrt(k!), for each of forty orders."""
    order, std = np.arange(40), 1.0
    found, power, _ = coefficients(np.exp, np.zeros(1), np.full(1, std**2))
    factorial = np.array([math.factorial(int(k)) for k in order], dtype=float)
    exact = math.exp(std**2 / 2) * std**order / np.sqrt(factorial)
    assert power.item() == pytest.approx(math.exp(2 * std**2), rel=1e-9)
    assert found[:, 0] == pytest.approx(exact, abs=1e-6 * math.exp(std**2))  # squares count


def test_profiles_of_many_means_are_rounded_to_a_hundredth() -> None:
    mean, variance = np.linspace(-2.0, 2.0, 300), np.full(300, 0.25)
    found, power, _ = coefficients(np.tanh, mean, variance)
    first, second = moments(np.tanh, mean, variance**0.5)
    assert (np.abs(found[0] - first) <= 1e-2 * 4).all()  # of the range of the means
    assert (np.abs(power - second) <= 1e-2 * 4).all()


def test_where_a_function_is_not_defined_it_is_left_out() -> None:
    """sqrt(z) on z > 0: E[f^2 | z > 0] = sqrt(2 / pi)."""
    with np.errstate(invalid="ignore"):
        _, power, total = coefficients(np.sqrt, np.zeros(1), np.ones(1))
    assert not total
    assert power.item() == pytest.approx((2 / np.pi) ** 0.5, rel=1e-2)


def test_few_laws_are_integrated_for_many() -> None:
    asked = []

    def function(z: np.ndarray) -> np.ndarray:
        asked.append(len(z))
        return np.tanh(z)

    coefficients(function, np.zeros(4096), np.linspace(1.0, 2.0, 4096) ** 2)
    assert asked == [12]


def test_a_function_is_run_once_on_an_array() -> None:
    seen = []
    first = Once(lambda x: seen.append("first") or x + 1.0)
    second = Once(lambda x: first(x) * first(x), [first])
    x, y = np.ones(3), np.zeros(3)
    assert second(x).tolist() == [4.0] * 3
    assert first(x).tolist() == [2.0] * 3
    assert second(y).tolist() == [1.0] * 3
    assert seen == ["first", "first"]
    del x
    assert len(first._kept) == 1


def test_a_long_chain_needs_no_deep_stack() -> None:
    chain = Once(np.tanh)
    for _ in range(5000):
        chain = Once(lambda x, inner=chain: inner(x) * 0.5 + 1.0, [chain])
    assert chain(np.zeros(2)) == pytest.approx(2.0)


class Flow(nn.Module):
    """x <- x + h tanh(x), step by step: one function of one Gaussian, which reads itself twice."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.inner, self.steps = nn.Linear(16, 16), steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for _ in range(self.steps):
            x = x + 0.02 * torch.tanh(x)
        return x


def test_the_work_for_a_chain_grows_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    few, more, most = (runs(Flow(n), fanin.spec((4, 16)), monkeypatch) for n in (4, 8, 16))
    assert most - more <= 2.2 * (more - few)
