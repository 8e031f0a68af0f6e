"""Variance and correlation maps: fixed points, depth scales, decay laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.errors import ArgumentError, NoSolutionError
from fanin.theory.depth import correlation_decay, depth_scales
from fanin.theory.fixed import fixed_correlation, fixed_points, settling_variance
from fanin.theory.maps import (
    chi,
    correlation_map,
    correlation_map_slope,
    variance_map,
    variance_map_slope,
)

TABLE = json.loads((Path(__file__).parents[1] / "reference" / "rules.json").read_text())


@pytest.mark.parametrize(
    ("sigma_w2", "q", "gradient"),
    [
        (1.0, 0.2646868751818925, 0.05572070676970179),
        (12.8, 4.534976094589609, 0.3538098538796377),
        (103.00755385552, 45.624277797, 1.0),
    ],
)
def test_sigmoid_without_a_bias_is_ordered_up_to_103(
    sigma_w2: float, q: float, gradient: float
) -> None:
    (point,) = fixed_points("sigmoid", sigma_w2)
    assert point.variance == pytest.approx(q, rel=1e-10)
    assert point.stability == "stable"
    assert chi("sigmoid", point.variance, sigma_w2) == pytest.approx(gradient, rel=1e-10)


@pytest.mark.parametrize("sigma_w2", TABLE["tanh_phases"])
def test_the_phases_of_tanh(sigma_w2: str) -> None:
    expected = {key: float(value) for key, value in TABLE["tanh_phases"][sigma_w2].items()}
    scales = depth_scales("tanh", float(sigma_w2), 0.05)
    assert scales.q == pytest.approx(expected["q"], rel=1e-10)
    assert scales.chi == pytest.approx(expected["chi"], rel=1e-10)
    assert scales.variance == pytest.approx(expected["xi_q"], rel=1e-8)
    assert scales.fixed_correlation == pytest.approx(expected["c"], abs=1e-8)
    assert scales.correlation == pytest.approx(expected["xi_c"], rel=1e-6)
    assert scales.gradient == pytest.approx(-1 / math.log(expected["chi"]), rel=1e-8)


@pytest.mark.parametrize(
    ("sigma_w", "q", "gradient", "c"),
    [
        (1.3, 0.6070467919, 0.9398074287, 1.0),
        (2.5, 4.0791238753, 1.5852247650, 0.1221037473),
        (4.0, 12.6041494978, 2.3672610355, 0.0296959216),
    ],
)
def test_the_demonstration_points_of_poole_et_al(
    sigma_w: float, q: float, gradient: float, c: float
) -> None:
    scales = depth_scales("tanh", sigma_w**2, 0.09)
    assert (scales.q, scales.chi) == pytest.approx((q, gradient), abs=1e-9)
    assert scales.fixed_correlation == pytest.approx(c, abs=1e-8)


def test_relu_has_a_line_of_fixed_points() -> None:
    found = fixed_points("relu", 2.0)
    assert len(found) == 0
    (interval,) = found.intervals
    assert interval == pytest.approx((1e-6, 1e6))
    assert str(found) == "every q in [1e-06, 1e+06] is a fixed point"
    assert not found.diverges


def test_relu_shrinks_to_zero_under_xavier_and_grows_under_more() -> None:
    (zero,) = fixed_points("relu", 1.0)
    assert (zero.variance, zero.slope, zero.stability) == (0.0, 0.5, "stable")
    found = fixed_points("relu", 2.1)
    assert [p.stability for p in found] == ["unstable"]
    assert found.diverges


def test_silu_at_a_published_edge_of_chaos_has_no_fixed_point() -> None:
    found = fixed_points("silu", 2.952, 0.04)
    assert len(found) == 0
    assert found.diverges
    assert str(found) == (
        "no fixed point in [1e-06, 1e+06]\ndiverges: at q = 1e+06 a layer multiplies q by 1.476"
    )


def test_gelu_at_its_critical_point_is_half_stable() -> None:
    """A second fixed point, at a slope of 0.9999, lies just below the double one."""
    found = fixed_points("gelu", 1.98305825743754713, 0.172922390756067)
    assert [p.stability for p in found] == ["stable", "half-stable"]
    assert found[1].variance == pytest.approx((3 + math.sqrt(17)) / 2, rel=1e-4)


def test_tanh_at_the_edge_without_bias_settles_at_zero_only() -> None:
    (zero,) = fixed_points("tanh", 1.0)
    assert (zero.variance, zero.slope, zero.stability) == (0.0, 1.0, "stable")
    assert settling_variance("tanh", 1.0) is None


def test_the_variance_settles_where_iteration_ends() -> None:
    for f, sigma_w2, sigma_b2 in [("tanh", 2.0, 0.05), ("elu", 1.3, 0.1), ("sigmoid", 12.8, 0.0)]:
        q = 1.0
        for _ in range(400):
            q = variance_map(f, q, sigma_w2, sigma_b2)
        assert settling_variance(f, sigma_w2, sigma_b2) == pytest.approx(q, rel=1e-9)


def test_the_paper_makes_gelu_silu_and_softplus_explode() -> None:
    """q after 10 layers at the paper's variance, from q = 1."""
    for f, sigma_w2, expected in [
        ("gelu", 4.0, 727.0),
        ("silu", 4.0, 326.0),
        ("softplus", 2.701875684263364, 68.2),
        ("tanh", 1.0, 0.0522),
        ("elu", 1.0, 0.0594),
        ("mish", 1 / 0.36, 17.5),
    ]:
        q = 1.0
        for _ in range(10):
            q = variance_map(f, q, sigma_w2)
        assert q == pytest.approx(expected, rel=4e-3)


@pytest.mark.parametrize("sigma_b2", TABLE["tanh_decay"])
def test_correlations_of_tanh_decay_as_one_over_depth(sigma_b2: str) -> None:
    point = TABLE["edge_of_chaos"]["tanh"][sigma_b2]
    law = correlation_decay("tanh", float(point["q"]), float(point["sigma_w2"]), float(sigma_b2))
    assert law.exponent == 1.0
    assert law.amplitude == pytest.approx(float(TABLE["tanh_decay"][sigma_b2]), rel=1e-6)


def test_correlations_of_relu_decay_as_one_over_depth_squared() -> None:
    """With 1 - c = d^2 the map of ReLU is known in closed form; iterate it."""
    law = correlation_decay("relu", 1.0, 2.0)
    assert law.exponent == 2.0
    assert law.amplitude == pytest.approx(9 * math.pi**2 / 2, rel=1e-9)
    c, depth = 0.0, 20_000
    for _ in range(depth):
        c = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    assert law(depth) == pytest.approx(1 - c, rel=3e-3)


def test_a_kink_away_from_zero_decays_the_same_way() -> None:
    """The slope of the correlation map falls from 1 like a root, with the stated coefficient."""
    q = 0.5
    weight = 1 / chi("hardtanh", q, 1.0)
    bias = q - variance_map("hardtanh", q, weight)
    law = correlation_decay("hardtanh", q, weight, bias)
    d = 1e-6
    fall = 1 - correlation_map_slope("hardtanh", 1 - d, q, weight, bias)
    assert law.exponent == 2.0
    assert law.amplitude == pytest.approx(9 * d / fall**2, rel=5e-3)


ACTIVATIONS = st.sampled_from(["tanh", "sigmoid", "gelu", "relu", "softplus", "hardswish"])


@settings(max_examples=12, deadline=None)
@given(ACTIVATIONS, st.floats(0.05, 8.0), st.floats(0.0, 1.0), st.floats(0.0, 0.9))
def test_the_correlation_map_is_bounded_and_increasing(
    f: str, q: float, sigma_b2: float, c: float
) -> None:
    step = 0.1
    here, there = (correlation_map(f, x, q, 1.7, sigma_b2) for x in (c, c + step))
    opposite = correlation_map(f, -c, q, 1.7, sigma_b2)
    assert -1 <= opposite <= here + 1e-9
    assert here < there <= 1 + 1e-9
    slope = correlation_map_slope(f, c, q, 1.7, sigma_b2)
    assert slope * step <= there - here + 1e-9  # convex on [0, 1]


@settings(max_examples=25, deadline=None)
@given(ACTIVATIONS, st.floats(0.02, 50.0))
def test_the_slope_is_the_derivative_of_the_variance_map(f: str, q: float) -> None:
    h = 1e-4 * q
    difference = variance_map(f, q + h, 1.0) - variance_map(f, q - h, 1.0)
    assert variance_map_slope(f, q, 1.0) == pytest.approx(difference / (2 * h), rel=1e-5, abs=1e-9)


def test_independent_inputs_stay_independent_without_mean_and_bias() -> None:
    assert fixed_correlation("tanh", fixed_points("tanh", 2.0)[1].variance, 2.0) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: variance_map("tanh", -1.0, 1.0),
            "q: expected a finite number > 0, got -1.0",
        ),
        (
            lambda: fixed_points("tanh", 1.0, -0.5),
            "sigma_b2: expected a finite number >= 0, got -0.5",
        ),
        (
            lambda: correlation_map("tanh", 1.5, 1.0, 1.0),
            "c: expected a correlation between -1 and 1, got 1.5",
        ),
        (
            lambda: fixed_correlation("relu", 1.0, 1.0),
            "q: expected a fixed point of the variance map, got 1, which becomes 0.5; "
            "take q from fixed_points(f, sigma_w2, sigma_b2)",
        ),
        (
            lambda: correlation_decay("tanh", 0.7217618726520713, 2.0, 0.05),
            "sigma_w2: expected a point on the edge of chaos (chi = 1), got chi = 1.04767; "
            "take the point from edge_of_chaos(f, sigma_b2)",
        ),
        (
            lambda: correlation_decay("identity", 1.0, 1.0),
            "f: expected a nonlinear activation, got an affine one",
        ),
    ],
)
def test_bad_arguments_say_what_to_do(call: object, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        call()  # type: ignore[operator]
    assert str(error.value) == message


def test_depth_scales_need_a_stable_fixed_point() -> None:
    with pytest.raises(NoSolutionError) as error:
        depth_scales("gelu", 4.0)
    assert str(error.value) == (
        "depth_scales(gelu): expected one stable fixed point of the variance map, "
        "got no in [1e-06, 1e+06]; pass q, one of fixed_points(f, sigma_w2, sigma_b2)"
    )
