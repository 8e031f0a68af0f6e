"""Expectations over correlated pairs, and Hermite coefficients."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.theory import gaussian, pair
from fanin.theory.activation import activation
from fanin.theory.gaussian import hermite_coefficients, moments, pair_expectation

TABLE = Path(__file__).parents[1] / "reference" / "gaussian_pairs.json"
PAIRS: list[dict[str, str]] = json.loads(TABLE.read_text())
SMOOTH_OR_NOT = ("tanh", "gelu", "relu6", "softplus", "hardshrink", "sigmoid", "abs", "elu")


@pytest.mark.parametrize("name", sorted({row["name"] for row in PAIRS}))
def test_pairs_are_within_their_bounds_and_the_bounds_are_small(name: str) -> None:
    rows = [row for row in PAIRS if row["name"] == name]
    assert len(rows) >= 16
    for row in rows:
        c, mean, variance = (float(row[key]) for key in ("correlation", "mean", "variance"))
        value = pair_expectation(name, c, mean, variance)
        at, truth = moments(name, mean, variance), float(row["value"])
        # The table has decimal correlations: float64 rounds c, and |dE/dc| <= q E[f'^2].
        rounding = variance * at.derivative_second_moment * abs(c) * 2.0**-53
        # The reference itself carries 40 digits of E[f^2].
        given = rounding + 1e-15 * abs(truth) + 1e-40 * at.second_moment
        assert abs(value - truth) <= value.error + given, (row, value, value.error)
        scale = max(abs(truth), 1e-3 * at.second_moment)
        assert value.error <= 1e-12 * scale, (row, value.error)


@pytest.mark.parametrize("name", SMOOTH_OR_NOT)
@pytest.mark.parametrize("c", [-1.0, -0.5, 0.0, 0.4, 0.8])
def test_the_series_and_the_panels_agree(name: str, c: float) -> None:
    f, mean, sigma = activation(name), 0.4, 1.3
    second = moments(f, mean, sigma**2).second_moment
    panels = pair.by_panels(f, c, gaussian._grid(f, mean, sigma))
    series = pair.by_series(f, c, mean, sigma, 1024, second)
    assert abs(panels - series) <= panels.error + series.error
    assert panels.error <= 1e-13 * second
    assert c == -1 or series.error <= 1e-13 * second


def test_the_bound_of_a_short_series_holds() -> None:
    f = activation("relu6")
    second = moments(f).second_moment
    for c in (0.5, 0.9, -0.9):
        truth = pair.by_panels(f, c, gaussian._grid(f, 0.0, 1.0))
        for order in (1, 2, 4, 8, 16):
            series = pair.by_series(f, c, 0.0, 1.0, order, second)
            assert abs(series - truth) <= series.error + truth.error
            assert series.error <= abs(c) ** (order + 1) * second


def test_full_and_no_correlation() -> None:
    for name in SMOOTH_OR_NOT:
        at = moments(name, 0.2, 2.0)
        assert pair_expectation(name, 1.0, 0.2, 2.0) == at.second_moment
        assert pair_expectation(name, 0.0, 0.2, 2.0) == pytest.approx(at.mean**2, rel=1e-12)


@pytest.mark.parametrize("q", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("c", [-0.999999, -0.3, 0.6, 0.9999999])
def test_arc_cosine_and_arc_sine_laws(q: float, c: float) -> None:
    angle = math.acos(c)
    relu = q * (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)
    assert pair_expectation("relu", c, 0.0, q) == pytest.approx(relu, rel=1e-9, abs=1e-16 * q)
    callable_relu = pair_expectation(lambda x: np.maximum(x, 0), c, 0.0, q)
    named = pair_expectation("relu", c, 0.0, q)
    assert abs(callable_relu - named) <= callable_relu.error + named.error
    assert pair_expectation("sign", c, 0.0, q) == pytest.approx(
        2 / math.pi * math.asin(c), rel=1e-12
    )
    erf = 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
    assert pair_expectation("erf", c, 0.0, q) == pytest.approx(erf, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(SMOOTH_OR_NOT),
    mean=st.floats(-2, 2),
    variance=st.floats(0.01, 100),
    c=st.tuples(st.floats(0, 0.95), st.floats(0, 0.95)).map(sorted),
)
def test_the_map_increases_between_its_bounds(
    name: str, mean: float, variance: float, c: list[float]
) -> None:
    """All coefficients of the power series in c are squares."""
    at = moments(name, mean, variance)
    values = [pair_expectation(name, x, mean, variance) for x in (0.0, *c, 1.0)]
    room = sum(value.error for value in values)
    assert all(low <= high + room for low, high in itertools.pairwise(values))
    assert values[0] >= at.mean**2 - room - at.mean.error
    assert abs(pair_expectation(name, -c[1], mean, variance)) <= values[2] + room


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu6", "softplus"])
def test_price(name: str) -> None:
    """d/dc E[f(u) f(v)] = q E[f'(u) f'(v)]."""
    c, q, h = 0.6, 1.7, 1e-3
    f = activation(name)
    near, far = (
        pair_expectation(f, c + k * h, 0.2, q) - pair_expectation(f, c - k * h, 0.2, q)
        for k in (1, 2)
    )
    slope = q * pair_expectation(f.derivative, c, 0.2, q)
    assert slope == pytest.approx((8 * near - far) / (12 * h), rel=1e-8)


def test_hermite_coefficients_of_known_functions() -> None:
    relu = hermite_coefficients("relu", 8)
    root = math.sqrt(2 * math.pi)
    expected = [1 / root, 1 / 2, 1 / (root * math.sqrt(2)), 0, -1 / (root * math.sqrt(24))]
    np.testing.assert_allclose(relu[:5], expected, atol=1e-15)
    cube = hermite_coefficients("x^3", 6, variance=4.0)
    np.testing.assert_allclose(cube, [0, 24, 0, 8 * math.sqrt(6), 0, 0, 0], atol=1e-12)
    exp = hermite_coefficients("exp", 20, mean=0.5)
    factorials = np.array([math.factorial(k) for k in range(21)], dtype=float)
    norm = math.sqrt(moments("exp", 0.5).second_moment)
    np.testing.assert_allclose(exp, math.e / np.sqrt(factorials), atol=1e-13 * norm)


@pytest.mark.parametrize("name", SMOOTH_OR_NOT)
def test_hermite_coefficients_obey_stein_and_parseval(name: str) -> None:
    at = moments(name, -0.3, 2.5)
    a = hermite_coefficients(name, 400, -0.3, 2.5)
    assert a.shape == (401,)
    assert a[0] == pytest.approx(at.mean, rel=1e-13)
    if not activation(name).has_jumps:
        assert a[1] == pytest.approx(math.sqrt(2.5) * at.derivative_mean, rel=1e-13)
    # a_2 = E[f (z^2 - 1)]/sqrt(2); all of them leave out little of E[f^2]
    assert a @ a <= at.second_moment * (1 + 1e-14)
    assert a @ a >= at.second_moment * 0.95
    np.testing.assert_array_equal(hermite_coefficients(name, 3, -0.3, 2.5).shape, (4,))
