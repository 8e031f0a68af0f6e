"""Mirrored pairs: the maps of the odd part, by independent quadrature and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fanin.errors import FaninError, NoSolutionError
from fanin.theory import rules
from fanin.theory.activation import activation

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def odd_coefficients(f: str, mean: float, std: float) -> np.ndarray:
    """Squares of the odd Hermite coefficients of f(mean + std Z), from Gauss-Hermite nodes."""
    values = activation(f)(mean + std * _NODES)
    rows = [np.ones_like(_NODES), _NODES]
    for k in range(2, 40):
        rows.append((_NODES * rows[-1] - math.sqrt(k - 1) * rows[-2]) / math.sqrt(k))
    squares: np.ndarray = ((np.array(rows) * _WEIGHTS) @ values) ** 2
    squares[::2] = 0.0
    return squares


@pytest.mark.parametrize("f", ["softplus", "sigmoid", "gelu", "tanh", "square", "exp"])
@pytest.mark.parametrize("depth", [10, 100])
def test_only_odd_coefficients_act(f: str, depth: int) -> None:
    """E[g^2] = sum a_k^2 and C'(1) = sum k a_k^2 / sum a_k^2 over odd k, at shaped's point."""
    layer, plain = rules.mirrored(f, depth), rules.shaped(f, depth)
    assert layer.operating_point == plain.operating_point
    assert layer.centre == plain.centre
    variance = layer.operating_point.variance
    squares = odd_coefficients(f, layer.bias, math.sqrt(variance))
    power = squares.sum()
    assert layer.weight_variance_times_fan_in == pytest.approx(variance / (2 * power), rel=1e-9)
    assert layer.last_variance == pytest.approx(1 / (2 * power), rel=1e-9)
    assert layer.chi == pytest.approx(float(np.arange(40) @ squares) / power, rel=1e-9)


def test_pairs_of_squares_are_linear() -> None:
    """(beta + u)^2 - (beta - u)^2 = 4 beta u."""
    layer = rules.mirrored("square", 100, width=128)
    assert layer.weight_variance_times_fan_in == pytest.approx(1 / (8 * layer.bias**2), rel=1e-12)
    assert (layer.chi, layer.slope) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_the_variance_map_by_differences() -> None:
    layer = rules.mirrored("sigmoid", 20)
    beta, variance = layer.operating_point

    def mapped(v: float) -> float:
        u = math.sqrt(v) * _NODES
        f = activation("sigmoid")
        pair = f(beta + u) - f(beta - u)
        return layer.weight_variance_times_fan_in / 2 * float(_WEIGHTS @ pair**2)

    assert mapped(variance) == pytest.approx(variance, rel=1e-9)
    step = 1e-4 * variance
    slope = (mapped(variance + step) - mapped(variance - step)) / (2 * step)
    assert layer.slope == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("f", ["sigmoid", "square", "softplus"])
def test_a_network_of_pairs(f: str) -> None:
    """Signal and gradient of 12 layers of 400 pairs: variance s^2, gradients times C'(1)^12."""
    depth, pairs, seeds = 12, 400, 6
    layer = rules.mirrored(f, depth)
    act, (beta, variance) = activation(f), layer.operating_point
    std = layer.std(2 * pairs)
    signal, gradient = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        u = math.sqrt(variance) * rng.standard_normal((32, pairs))
        slopes, weights = [], []
        for _ in range(depth):
            half = std * rng.standard_normal((pairs, pairs))
            slopes.append(act.derivative(beta + u) + act.derivative(beta - u))
            weights.append(half)
            u = (act(beta + u) - act(beta - u)) @ half.T
        g = rng.standard_normal(u.shape)
        start = (g**2).mean()
        for half, slope in zip(weights[::-1], slopes[::-1], strict=True):
            g = (g @ half) * slope
        signal.append(math.log((u**2).mean() / variance))
        gradient.append(math.log((g**2).mean() / start))
    # by chance the logarithm of a squared length spreads by (2/pairs)^(1/2) a layer
    error = 4 * math.sqrt(2 * depth / pairs / seeds)
    assert abs(np.mean(signal)) < error
    assert abs(np.mean(gradient) - depth * math.log(layer.chi)) < error


@pytest.mark.parametrize(
    ("f", "changes", "message"),
    [
        (
            "step",
            {},
            "mirrored(step): expected an activation without jumps, got a jump at 0, where C'(1) is "
            "infinite at every operating point; use 'centred'",
        ),
        (
            lambda x: 0 * x + 1,
            {},
            "mirrored(<lambda>, depth=10, zeta=1.5): expected an operating point that meets the "
            "budget, got none was found, for |beta| <= 16, s in [6e-08, 16]; use 'centred', or a "
            "larger zeta",
        ),
        ("relu", {"depth": 0}, "mirrored(depth): expected a finite number >= 1, got 0"),
        ("relu", {"zeta": 1.0}, "mirrored(zeta): expected a finite number > 1, got 1.0"),
        ("relu", {"width": 0}, "mirrored(width): expected a number > 0, got 0"),
    ],
)
def test_errors_name_the_rule_that_was_asked_for(
    f: Any, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(FaninError) as caught:
        rules.mirrored(f, **{"depth": 10, **changes})
    assert str(caught.value) == message


def test_an_odd_part_that_drifts_is_refused() -> None:
    with pytest.raises(NoSolutionError) as caught:
        rules.mirrored("exp", 100, width=128)
    assert str(caught.value) == (
        "mirrored(exp, depth=100, zeta=1.5): expected an odd part whose variance grows by less "
        "than 1.001, got 1.311; use 'shaped'"
    )
