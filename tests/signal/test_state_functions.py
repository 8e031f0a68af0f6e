"""Functions of correlated Gaussians against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from fanin.signal.state import State, applied, integrate
from fanin.signal.table import Table

CORRELATIONS = (-0.9, -0.3, 0.0, 0.5, 0.95)


def _latent(correlation: float, mean: float = 0.0, variance: float = 1.0) -> Table:
    """Two samples of one Gaussian element with this correlation."""
    pairs = np.array([variance + mean**2, correlation * variance + mean**2])
    return Table(((2,),), np.full((1,), mean), pairs[:, None])


def _relu(c: float) -> float:
    return (np.sqrt(1 - c * c) + c * (np.pi - np.arccos(c))) / (2 * np.pi)


CASES = {  # E[f(u) f(v)] of a standard pair with correlation c
    "relu": (lambda x: np.maximum(x, 0), _relu, 2e-5),
    "sign": (np.sign, lambda c: 2 / np.pi * np.arcsin(c), 1e-2),
    "erf": (erf, lambda c: 2 / np.pi * np.arcsin(2 * c / 3), 1e-8),
    "square": (np.square, lambda c: 1 + 2 * c * c, 1e-9),
    "sin": (np.sin, lambda c: np.exp(-1) * np.sinh(c), 1e-9),
    "exp": (np.exp, lambda c: np.exp(1 + c), 1e-7),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("c", CORRELATIONS)
def test_pairs_against_closed_forms(name: str, c: float) -> None:
    function, exact, accuracy = CASES[name]
    found, defined = integrate(function, _latent(c))
    assert defined
    assert found.pairs[1].item() == pytest.approx(exact(c), rel=accuracy, abs=accuracy)
    assert found.pairs[0].item() == pytest.approx(exact(1.0), rel=accuracy)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("variance", [1e-4, 1.0, 25.0])
def test_mean_and_variance_of_the_source(mean: float, variance: float) -> None:
    found, _ = integrate(np.sin, _latent(0.5, mean, variance))
    assert found.average == pytest.approx(np.sin(mean) * np.exp(-variance / 2), abs=1e-9)
    exact = (1 - np.cos(2 * mean) * np.exp(-2 * variance)) / 2
    assert found.second_moment == pytest.approx(exact, abs=1e-9)


def test_profiles_are_integrated_place_by_place() -> None:
    variances = np.linspace(0.5, 2.0, 200)
    pairs = np.stack([variances, np.zeros(200)])
    found, _ = integrate(lambda x: np.maximum(x, 0), Table(((200,),), np.zeros(1), pairs))
    np.testing.assert_allclose(found.same, variances / 2, rtol=2e-4)


def test_a_chain_is_one_function_of_its_gaussian() -> None:
    x = State(Table.iid((8, 16), 0.0, 2.0), token="x", gaussian=True)
    y = applied(applied(x, np.tanh, "y"), np.square, "z")
    direct = applied(x, lambda v: np.tanh(v) ** 2, "w")
    assert y.second_moment == pytest.approx(direct.second_moment, rel=1e-12)
    assert y.how == "quadrature"
    assert y.nonnegative


def test_a_source_that_is_not_gaussian_is_said() -> None:
    x = State(Table.iid((8, 16), 0.0, 1.0), token="x")
    assert applied(x, np.tanh, "y").how == "assumed: Gaussian"


def test_a_positive_tensor_without_a_law_is_taken_as_lognormal() -> None:
    x = State(Table.iid((8, 16), 2.0, 5.0), token="x", nonnegative=True)
    inverse = applied(x, lambda v: 1 / v, "y")
    assert inverse.mean == pytest.approx(5 / 8, rel=1e-6)  # E[1/x] = E[x^2] / E[x]^3
    assert inverse.how == "assumed: Gaussian"


def test_outside_its_domain_a_function_is_not_trusted() -> None:
    x = State(Table.iid((8, 16), 0.0, 1.0), token="x", gaussian=True)
    with np.errstate(invalid="ignore"):
        root = applied(x, np.sqrt, "y")
    assert root.how == "assumed: Gaussian"
    assert np.isfinite(root.second_moment)
