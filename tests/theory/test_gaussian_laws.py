"""Laws that expectations obey for every function, tried on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from fanin.theory.activation import activation
from fanin.theory.gaussian import expectation, moments
from fanin.theory.quadrature import NODES, ORDER, TO_COEFFICIENTS, WEIGHTS, fitted, slopes_at, tail

VARIANCES = st.floats(-6, 6).map(lambda x: 10.0**x)
MEANS = st.floats(-20, 20)


def normal_moment(n: int, mean: float, variance: float) -> mpf:
    """E[x^n], from the recursion m_n = mean m_(n-1) + (n - 1) q m_(n-2)."""
    before, now = mpf(0), mpf(1)
    for k in range(n):
        before, now = now, mpf(mean) * now + k * mpf(variance) * before
    return now


@settings(max_examples=60, deadline=None)
@given(
    coefficients=st.lists(st.integers(-9, 9), min_size=1, max_size=13),
    mean=MEANS,
    variance=VARIANCES,
)
def test_quadrature_is_exact_on_polynomials(
    coefficients: list[int], mean: float, variance: float
) -> None:
    with mp.workdps(40):
        n = len(coefficients)
        powers = [normal_moment(k, mean, variance) for k in range(2 * n)]
        exact = mp.fsum(c * powers[k] for k, c in enumerate(coefficients))
        square = np.convolve(coefficients, coefficients).tolist()
        size = mp.sqrt(mp.fsum(c * powers[k] for k, c in enumerate(square)))
        value = expectation(
            lambda x: np.polynomial.polynomial.polyval(x, coefficients), mean, variance
        )
        assert abs(value - exact) <= value.error
        # The bound is for the rounding of Horner's rule as well, which cancels.
        terms = mp.fsum(abs(c) * mp.sqrt(powers[2 * k]) for k, c in enumerate(coefficients))
        assert value.error <= 1e-12 * (size + terms) + 1e-300


@settings(max_examples=40, deadline=None)
@given(
    where=st.floats(-5, 5),
    left=st.lists(st.integers(-4, 4), min_size=1, max_size=4),
    right=st.lists(st.integers(-4, 4), min_size=1, max_size=4),
    mean=st.floats(-3, 3),
    variance=st.floats(1e-2, 1e2),
)
def test_a_function_in_two_pieces_is_the_sum_of_both(
    where: float, left: list[int], right: list[int], mean: float, variance: float
) -> None:
    polyval = np.polynomial.polynomial.polyval
    whole = expectation(
        lambda x: np.where(x < where, polyval(x, left), polyval(x, right)), mean, variance
    )
    with mp.workdps(30):
        s = mp.sqrt(variance)
        z = (mpf(where) - mean) / s

        def part(coefficients: list[int], low: mpf, high: mpf) -> mpf:
            return mp.quad(
                lambda t: mp.polyval(coefficients[::-1], mean + s * t) * mp.npdf(t),
                mp.linspace(low, high, 9),
            )

        reach = 13 + abs(z)
        exact = part(left, -reach, z) + part(right, z, reach)
        assert abs(whole - exact) <= whole.error + 1e-25


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["tanh", "gelu", "relu6", "hardshrink", "softplus", "elu", "mish"]),
    shift=st.floats(-3, 3),
    mean=st.floats(-3, 3),
    variance=st.floats(1e-3, 1e3),
)
def test_a_shift_of_the_argument_is_a_shift_of_the_mean(
    name: str, shift: float, mean: float, variance: float
) -> None:
    f = activation(name)
    moved = moments(lambda x: f(x + shift), mean, variance)
    plain = moments(f, mean + shift, variance)
    for key in ("mean", "second_moment", "variance", "derivative_second_moment"):
        mine, theirs = getattr(moved, key), getattr(plain, key)
        # mean + shift is rounded, to which the moment responds by its slope.
        rounding = 1e-15 * (1 + abs(mean) + abs(shift)) * (1 + plain.second_moment)
        steep = 1 + 1 / math.sqrt(variance)
        assert abs(mine - theirs) <= mine.error + theirs.error + rounding * steep, key


@pytest.mark.parametrize("name", ["elu", "relu", "hardswish"])
@pytest.mark.parametrize("shift", [1e-3, 2e-5, 5e-6, -5e-6, 1e-6, 3e-7, -1e-7, 1e-8, 1e-10])
def test_a_break_beside_zero_is_inside_the_stated_error(name: str, shift: float) -> None:
    """Of f, f' or f'': too near to zero for nodes of the panels there, unless these are halved."""
    f = activation(name)
    at = 3.0 if name == "hardswish" else 0.0  # where a break of f is moved beside zero
    moved = moments(lambda x: f(x + at + shift), 0.0, 1.0)
    plain = moments(f, at + shift, 1.0)
    for key in ("mean", "second_moment", "variance", "derivative_second_moment"):
        mine, theirs = getattr(moved, key), getattr(plain, key)
        assert abs(mine - theirs) <= mine.error + theirs.error, key


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e3), variance=VARIANCES)
def test_homogeneous_functions_scale(scale: float, variance: float) -> None:
    for name, degree in (("relu", 1), ("abs", 1), ("relu^2", 2), ("x^3", 3), ("step", 0)):
        at, scaled = moments(name, 0.0, variance), moments(name, 0.0, scale**2 * variance)
        factor = scale**degree
        assert scaled.mean == pytest.approx(factor * at.mean, rel=1e-13)
        assert scaled.second_moment == pytest.approx(factor**2 * at.second_moment, rel=1e-13)
        assert at.slope == pytest.approx(degree, abs=1e-12)


def test_the_rule_is_exact_to_twice_its_order() -> None:
    for k in range(2 * ORDER):
        exact = 0 if k % 2 else 2 / (k + 1)
        assert WEIGHTS @ NODES**k == pytest.approx(exact, abs=1e-15)


def test_fitted_polynomials_have_their_slopes_and_no_tail() -> None:
    x = np.linspace(-1, 1, 7)
    values = np.stack([NODES**k for k in range(12)])
    series, bound = fitted(values)
    for k in range(12):
        exact = k * x ** max(k - 1, 0)
        assert np.abs(slopes_at(x[None], series[k : k + 1])[0] - exact).max() <= bound[k] + 1e-14
    assert (tail(values) < 1e-14).all()
    assert tail(np.abs(NODES)[None])[0] > 1e-3
    np.testing.assert_allclose(TO_COEFFICIENTS @ np.ones(ORDER), [1] + [0] * 19, atol=1e-15)
