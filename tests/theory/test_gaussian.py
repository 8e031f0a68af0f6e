"""Moments against tables made at 50 digits, and every error bound against the truth."""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from fanin.errors import ArgumentError, DivergentError, FaninError
from fanin.theory import closed, gaussian
from fanin.theory.activation import Activation, activation
from fanin.theory.gaussian import (
    Estimate,
    expectation,
    hermite_coefficients,
    moments,
    pair_expectation,
)
from fanin.theory.grid import fit
from fanin.theory.quadrature import EPS

TABLES = Path(__file__).parents[1] / "reference"
MOMENTS: list[dict[str, str]] = json.loads((TABLES / "gaussian_moments.json").read_text())
KEYS = (
    "mean",
    "second_moment",
    "variance",
    "derivative_mean",
    "derivative_second_moment",
    "curvature",
    "slope",
)
# An interpolant of degree 19 on a ramp of half width 1e-4 around 3.7, where x is rounded: its slope
# multiplies that by 20^2, its square by 2, and both panels and landscape count.
SLOPE_OF_A_RAMP = 4 * 20**2 * EPS * 3.7 / 1e-4
OF_THE_DERIVATIVE = ("derivative_mean", "derivative_second_moment", "curvature")
CALLABLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ramp": lambda x: np.clip(1e4 * x, -1, 1),
    "far ramp": lambda x: np.clip(1e4 * (x - 3.7), -1, 1),
}


def row_id(row: dict[str, str]) -> str:
    return f"{row['name']} {row['input_mean']} {row['input_variance']}"


def operating_point(row: dict[str, str]) -> tuple[float, float]:
    return float(row["input_mean"]), float(row["input_variance"])


@functools.cache
def made(name: str) -> Activation:
    return activation(CALLABLES.get(name, name))


@pytest.mark.parametrize("name", sorted({row["name"] for row in MOMENTS}))
def test_moments_are_within_their_bounds_and_the_bounds_are_small(name: str) -> None:
    rows = [row for row in MOMENTS if row["name"] == name]
    assert len(rows) >= 3
    for row in rows:
        mean, variance = operating_point(row)
        at = moments(made(name), mean, variance)
        spread = at.second_moment / variance
        # A rounding of x moves a feature of width 1 by that much; f'^2 responds twice.
        steep = 1 + 2 * EPS * (abs(mean) + math.sqrt(variance)) / 1e-12
        # Without a formula, where f is flat f' is a difference of values of size 1.
        numerical = 0.0 if made(name).exact_derivative else 1.0
        scales = {
            "mean": math.sqrt(at.second_moment),
            # f is rounded before its mean is taken off: 16 units of 2^-52 of |f| |f - E f|
            "variance": at.variance + 1e-2 * math.sqrt(at.variance * at.second_moment),
            "derivative_mean": math.sqrt(at.derivative_second_moment) + numerical,
            "derivative_second_moment": at.derivative_second_moment + numerical,
            "curvature": at.derivative_second_moment + abs(at.curvature) + spread,
            "slope": 1 + abs(at.slope),
        }
        for key in KEYS:
            value: Estimate = getattr(at, key)
            where = f"{key} at {row_id(row)}: {value} with error {value.error}, not {row[key]}"
            # The reference itself agrees to 20 digits of the scale.
            allowed = value.error + 1e-15 * abs(value) + 1e-20 * scales.get(key, abs(value))
            assert abs(value - float(row[key])) <= allowed, where
            promise = 1e-12 * steep + numerical * (key in OF_THE_DERIVATIVE) * SLOPE_OF_A_RAMP
            assert value.error <= promise * scales.get(key, float(value)) + 1e-300, where


@pytest.mark.parametrize("row", MOMENTS[::7], ids=row_id)
def test_a_callable_without_derivative_keeps_its_bounds(row: dict[str, str]) -> None:
    f = made(row["name"])
    at = moments(lambda x: f(x) * 1.0, *operating_point(row))
    for key in KEYS:
        value: Estimate = getattr(at, key)
        assert abs(value - float(row[key])) <= value.error + 1e-15 * abs(value), key
    assert at.second_moment.error <= 1e-12 * at.second_moment


@pytest.mark.parametrize("row", MOMENTS[::11], ids=row_id)
def test_expectation_is_the_mean(row: dict[str, str]) -> None:
    f = made(row["name"])
    for g in (f, lambda x: f(x) * 1.0):
        value = expectation(g, *operating_point(row))
        assert abs(value - float(row["mean"])) <= value.error + 1e-15 * abs(value)
        assert value.error <= 1e-12 * math.sqrt(float(row["second_moment"]))


# RMS gain, centred gain, backward gain, mean and slope for z ~ N(0, 1), to the digits printed.
GAINS = """
relu              1.41421356 1.71285855 1.41421356 0.398942 1.0000
relu6             1.41421357 1.71285855 1.41421356 0.398942 1.0000
leaky_relu(0.01)  1.41414286 1.70483163 1.41414286 0.394953 1.0000
gelu              1.53353044 1.70092624 1.48111441 0.282095 1.1441
gelu(tanh)        1.53358052 1.70091656 1.48116806 0.282039 1.1443
silu              1.67653247 1.78718722 1.62332026 0.206621 1.1726
mish              1.48684758 1.59202538 1.44475523 0.240404 1.0763
elu               1.24519830 1.27084342 1.22342856 0.160521 0.8910
celu              1.24519830 1.27084342 1.22342856 0.160521 0.8910
selu              1.00000000 1.00000000 0.96602578 0        0.7826
tanh              1.59253742 1.59253742 1.46741359 0        0.4611
sigmoid           1.84622855 4.80131337 4.72264609 0.500000 0.1063
softplus          1.04186684 1.91912598 1.84622855 0.806059 0.4921
softsign          2.33753336 2.33753336 2.09578061 0        0.4767
hardswish         1.73665721 1.81387147 1.67007637 0.166217 1.2239
relu^2            0.81649658 0.89442719 0.70710678 0.500000 2.0000
sin               1.52086662 1.52086662 1.32725060 0        0.3130
sin(30)           1.41421356 1.41421356 0.04714045 0        0.0000
tanhshrink        2.33836753 2.33836753 1.98813882 0        1.8262
"""


@pytest.mark.parametrize("line", GAINS.strip().splitlines(), ids=lambda line: line.split()[0])
def test_published_gains(line: str) -> None:
    name, *numbers = line.split()
    rms, centred, backward, mean, slope = map(float, numbers)
    f = activation(name)
    for g in (f, lambda x: f(x) * 1.0):
        at = moments(g)
        assert at.second_moment**-0.5 == pytest.approx(rms, rel=6e-9)
        assert at.variance**-0.5 == pytest.approx(centred, rel=6e-9)
        assert at.derivative_second_moment**-0.5 == pytest.approx(backward, rel=1.2e-7)
        assert at.mean == pytest.approx(mean, abs=6e-7)
        assert at.slope == pytest.approx(slope, abs=6e-5)


def test_reference_identities() -> None:
    tanh, sigmoid, softplus, elu = map(moments, ("tanh", "sigmoid", "softplus", "elu"))
    phi, e = NormalDist().cdf, math.e
    assert tanh.derivative_mean == pytest.approx(1 - tanh.second_moment, rel=1e-14)
    assert sigmoid.derivative_mean == pytest.approx(moments("silu").mean, rel=1e-14)
    assert softplus.derivative_second_moment == pytest.approx(sigmoid.second_moment, rel=1e-14)
    assert elu.second_moment == pytest.approx(
        1 + e**2 * phi(-2) - 2 * math.sqrt(e) * phi(-1), rel=1e-14
    )
    assert elu.derivative_second_moment == pytest.approx(0.5 + e**2 * phi(-2), rel=1e-14)
    assert moments("selu").derivative_second_moment == pytest.approx(1.071574992455799, rel=1e-14)


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*closed.PIECES, "sin", "cos(3)", "exp", "erf", "hardtanh(-2, 0.5)"]
)
def test_closed_forms_and_quadrature_agree_within_their_bounds(name: str) -> None:
    f, compared = activation(name), 0
    for q in (1e-6, 0.1, 1.0, 10.0, 1e6):
        for m in (0.0, 0.3, -2.0, 40.0):
            sigma = math.sqrt(q)
            exact = closed.moments(f.form, f.parameters, m, sigma) if f.form else None
            if exact is None or (q > 10 and name in ("exp", "sin", "cos(3)")):
                continue
            for a, b in zip(exact, gaussian._by_quadrature(f, m, sigma), strict=True):
                assert abs(a - b) <= a.error + b.error, (q, m)
            compared += 1
    assert compared >= 4


def test_how_a_number_was_obtained() -> None:
    for name in (
        "relu",
        "leaky_relu(0.2)",
        "abs",
        "square",
        "x^3",
        "sin",
        "cos",
        "exp",
        "step",
        "erf",
    ):
        assert moments(name, 0.0, 2.0).second_moment.how == "closed form"
        assert pair_expectation(name, 0.3).how in ("closed form", "Hermite series")
    assert moments("relu", 0.5, 2.0).mean.how == "closed form"
    assert moments("tanh").second_moment.how == "quadrature"
    # Eight standard deviations out the closed form cancels, and quadrature takes over.
    assert moments("relu", -8.0, 1.0).mean.how == "quadrature"
    assert pair_expectation("tanh", 0.3).how == "Hermite series"
    assert pair_expectation("relu6", 0.9999).how == "quadrature"


def test_sin_30_at_a_million() -> None:
    exact = moments("sin(30)", 0.0, 1e6)
    assert float(exact.second_moment) == 0.5
    assert exact.derivative_second_moment == pytest.approx(450, rel=1e-14)
    seen = expectation(lambda x: np.sin(30 * x) ** 2, 0.0, 1e4)
    assert abs(seen - 0.5) <= seen.error <= 1e-11


# --- existence ------------------------------------------------------------------------------------


def test_growth_that_the_density_beats() -> None:
    value = expectation(lambda x: np.exp(0.2 * x * x))
    assert abs(value - 0.6**-0.5) <= value.error <= 1e-13
    second = moments(lambda x: np.exp(0.2 * x * x)).second_moment
    assert abs(second - 0.2**-0.5) <= second.error <= 1e-12
    value = expectation(lambda x: np.exp(x), 0.0, 400.0)
    assert abs(value / math.exp(200) - 1) <= 1e-12
    value = expectation(lambda x: np.log(np.abs(x) + 1e-300))
    assert abs(value + (np.euler_gamma + math.log(2)) / 2) <= value.error <= 1e-12


class Root:
    """sqrt |x|, whose squared slope has a pole at 0 that is not integrable."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.abs(x))

    def derivative(self, x: np.ndarray) -> np.ndarray:
        return np.sign(x) / np.maximum(2 * np.sqrt(np.abs(x)), 1e-300)


DOES_NOT_FALL = (
    "{} of {} at mean 0, variance {}: expected an integrand that falls to zero on both sides, "
    "got one that does not, towards x = {}; the expectation does not exist, or needs values beyond "
    "float64; use a smaller variance"
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: expectation(lambda x: np.exp(x * x)),
            DOES_NOT_FALL.format("E[f]", "<lambda>", 1, -26.625),
        ),
        (
            lambda: expectation(lambda x: np.exp(x * x / 2)),
            DOES_NOT_FALL.format("E[f]", "<lambda>", 1, -37.625),
        ),
        (lambda: moments("exp", 0.0, 1e3), DOES_NOT_FALL.format("E[f^2]", "exp", 1000, 392.275)),
        (
            lambda: moments(Root()),
            "expectation of Root at mean 0, variance 1: expected a function without a pole, "
            "got one with an integrand that grows without bound near x = 0",
        ),
        (
            lambda: moments("relu", -60.0, 1.0).slope,
            "slope at mean -60, variance 1: expected E[f^2] > 0, got 0; "
            "its logarithm has no slope; move the operating point",
        ),
        (
            lambda: moments("step", 0.0, 0.0).curvature,
            "d E[f^2] / d variance at mean 0, variance 0: expected a smooth point of f, or a kink "
            "with f = 0, got a kink or jump; use a positive variance",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_does_not_exist_is_an_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DivergentError) as caught:
        call()
    assert str(caught.value) == message


def test_nan_in_the_range_of_integration() -> None:
    f = activation(lambda x: np.where(np.abs(x) < 20, x, np.nan))
    assert moments(f, 0.0, 1.0).second_moment == pytest.approx(1, rel=1e-14)
    with pytest.raises(ArgumentError) as caught:
        moments(f, 0.0, 100.0)
    assert str(caught.value).startswith(
        "E[f^2] of <lambda> at mean 0, variance 100: expected numbers, got f(-"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments("tanh", math.nan), "mean: expected a finite number, got nan"),
        (lambda: moments("tanh", 0, -1), "variance: expected a number >= 0, got -1"),
        (lambda: moments("tanh", 0, math.inf), "variance: expected a finite number, got inf"),
        (lambda: expectation("tanh", "a"), "mean: expected a number, got 'a'"),
        (lambda: expectation("tanh", 0, None), "variance: expected a number, got None"),
        (
            lambda: pair_expectation("tanh", 1.5),
            "correlation: expected a number in [-1, 1], got 1.5",
        ),
        (lambda: hermite_coefficients("tanh", -1), "order: expected 0 to 10000, got -1"),
        (lambda: hermite_coefficients("tanh", 1.5), "order: expected an integer, got 1.5"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(FaninError) as caught:
        call()
    assert str(caught.value) == message


# --- variance zero --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tanh", "gelu", "relu", "exp", "softplus", "sin", "leaky_relu(0.2)"]
)
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_variance_zero_is_the_limit(name: str, mean: float) -> None:
    point, near = moments(name, mean, 0.0), moments(name, mean, 1e-9)
    assert expectation(name, mean, 0.0) == float(activation(name)(mean)) == point.mean
    assert float(point.variance) == 0
    assert pair_expectation(name, 0.3, mean, 0.0) == point.second_moment
    for key in (
        "second_moment",
        "derivative_mean",
        "derivative_second_moment",
        "curvature",
        "slope",
    ):
        tolerance = 1e-4 if key in ("second_moment", "curvature") else 1e-6
        assert getattr(point, key) == pytest.approx(getattr(near, key), abs=tolerance), key
    assert hermite_coefficients(name, 2, mean, 0.0).tolist() == [point.mean, 0, 0]


# --- the numbers themselves -----------------------------------------------------------------------


def test_an_estimate_is_a_float_with_an_error() -> None:
    value = moments("tanh").mean
    assert isinstance(value, float)
    assert value.error > 0
    twin = pickle.loads(pickle.dumps(Estimate(0.5, 1e-15, "quadrature")))
    assert (twin, twin.error, twin.how) == (0.5, 1e-15, "quadrature")
    assert isinstance(value + 1, float)


def test_noise_of_a_function_is_in_its_bound() -> None:
    """x - tanh x loses digits near 0; the value is off, and the bound knows."""
    noisy = moments(lambda x: x - np.tanh(x), 0.0, 1e-6).second_moment
    exact = moments("tanhshrink", 0.0, 1e-6).second_moment
    assert abs(noisy / exact - 1) > 1e-14
    assert abs(noisy - exact) <= noisy.error


def test_a_grid_says_what_it_leaves_unresolved() -> None:
    """Without refinement the bound is large, and it holds."""
    f = activation("tanh")
    grid = fit(f, 0.0, 1.0, square=True, derivative=False)
    for few in (1, 2, 4):
        ends = np.linspace(-9, 9, few + 1)
        coarse = gaussian.fit.__globals__["_evaluated"](
            f, 0.0, 1.0, type(grid.panels).between(ends), derivative=False
        )
        value = coarse.inner(coarse.f, coarse.f)
        truth = grid.inner(grid.f, grid.f)
        assert abs(value - truth) <= value.error
        assert value.error > 1e3 * truth.error
