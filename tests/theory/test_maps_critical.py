"""Every critical point in a range, or the statement that there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fanin.errors import NoSolutionError
from fanin.theory.activation import activation
from fanin.theory.criticality import edge_of_chaos, susceptibility_points, variance_drift
from fanin.theory.maps import variance_map

TABLE = json.loads((Path(__file__).parents[1] / "reference" / "rules.json").read_text())
EDGE = [(f, b) for f, points in TABLE["edge_of_chaos"].items() for b in points]


@pytest.mark.parametrize(("f", "sigma_b2"), EDGE)
def test_the_edge_of_chaos(f: str, sigma_b2: str) -> None:
    expected = TABLE["edge_of_chaos"][f][sigma_b2]
    (point,) = edge_of_chaos(f, float(sigma_b2))
    assert point.sigma_w2 == pytest.approx(float(expected["sigma_w2"]), rel=1e-8)
    assert point.q == pytest.approx(float(expected["q"]), rel=1e-8)
    assert point.slope == pytest.approx(float(expected["slope"]), rel=1e-8)
    assert point.stability == ("stable" if float(expected["slope"]) < 1 else "unstable")


@pytest.mark.parametrize(
    ("f", "sigma_b", "sigma_w", "q"),
    [
        ("silu", 0.2, 1.67953160, 0.6895),
        ("gelu", 0.5, 1.39986822, 6.4341),
        ("mish", 0.2, 1.46343921, 0.7455),
        ("erf", 0.5, 1.37133047, 1.1833),
    ],
)
def test_published_values_of_the_edge(f: str, sigma_b: float, sigma_w: float, q: float) -> None:
    (point,) = edge_of_chaos(f, sigma_b**2)
    assert math.sqrt(point.sigma_w2) == pytest.approx(sigma_w, abs=6e-9)
    assert point.q == pytest.approx(q, abs=6e-5)


@pytest.mark.parametrize(("f", "crossing"), [("silu", 0.7451), ("gelu", 0.4158), ("mish", 0.3074)])
def test_the_edge_becomes_stable_at_a_known_bias(f: str, crossing: float) -> None:
    (below,), (above,) = (edge_of_chaos(f, (crossing + d) ** 2) for d in (-2e-3, 2e-3))
    assert (below.stability, above.stability) == ("unstable", "stable")


def test_sigmoid_has_one_edge_far_out() -> None:
    (point,) = edge_of_chaos("sigmoid")
    assert point.sigma_w2 == pytest.approx(float(TABLE["sigmoid_edge"]["sigma_w2"]), rel=1e-8)
    assert point.q == pytest.approx(float(TABLE["sigmoid_edge"]["q"]), rel=1e-8)


def test_the_edge_of_relu_is_one_pair_for_all_variances() -> None:
    (point,) = edge_of_chaos("relu")
    assert (point.sigma_w2, point.sigma_b2) == pytest.approx((2.0, 0.0))
    assert (point.kind, point.stability) == ("continuum", "neutral")
    assert point.interval == pytest.approx((1e-6, 1e4))
    with pytest.raises(NoSolutionError):
        edge_of_chaos("relu", 0.1)


def test_without_a_bias_the_edge_of_tanh_is_at_zero() -> None:
    (point,) = edge_of_chaos("tanh")
    assert (point.sigma_w2, point.q, point.kind) == (1.0, 0.0, "zero")
    assert point.stability == "stable"


@pytest.mark.parametrize("sigma_b2", [0.0, 0.01, 0.04, 0.25, 1.0])
def test_softplus_has_no_edge(sigma_b2: float) -> None:
    with pytest.raises(NoSolutionError) as error:
        edge_of_chaos("softplus", sigma_b2)
    assert str(error.value) == (
        "edge_of_chaos(softplus): expected a variance q with chi = 1 at bias variance "
        f"{sigma_b2:g}, got none for q in [1e-06, 10000]; use the rule 'centred' or 'shaped'"
    )


@pytest.mark.parametrize("f", ["gelu", "silu"])
def test_the_half_stable_points_of_roberts_yaida_and_hanin(f: str) -> None:
    zero, point = susceptibility_points(f)
    expected = TABLE["critical"][f]
    assert (zero.kind, zero.sigma_w2, zero.stability) == ("zero", 4.0, "unstable")
    assert point.q == pytest.approx(float(expected["q"]), rel=1e-8)
    assert point.sigma_w2 == pytest.approx(float(expected["sigma_w2"]), rel=1e-8)
    assert point.sigma_b2 == pytest.approx(float(expected["sigma_b2"]), rel=1e-7)
    assert point.stability == "half-stable"
    assert point.slope == pytest.approx(1.0, abs=1e-9)


def test_the_critical_bias_of_swish_is_not_ten_times_smaller() -> None:
    """A factor of ten is lost in several public tables."""
    assert float(TABLE["critical"]["silu"]["sigma_b2"]) == pytest.approx(0.555143170721530)
    assert float(TABLE["critical"]["gelu"]["q"]) == pytest.approx((3 + math.sqrt(17)) / 2)


@pytest.mark.parametrize("a", [0.0, 0.01, 0.2, 1.0])
def test_scale_invariant_activations(a: float) -> None:
    (point,) = susceptibility_points(f"leaky_relu({a})")
    assert point.sigma_w2 == pytest.approx(2 / (1 + a * a), rel=1e-12)
    assert (point.sigma_b2, point.kind) == (0.0, "continuum")


@pytest.mark.parametrize(("f", "drift"), [("tanh", -2.0), ("sin", -1.0), ("erf", -2.0)])
def test_odd_activations_are_critical_at_zero(f: str, drift: float) -> None:
    (point,) = susceptibility_points(f)
    assert (point.kind, point.stability, point.sigma_b2) == ("zero", "stable", 0.0)
    assert variance_drift(f) == pytest.approx(drift, rel=1e-6)
    # q_l = 1/(-drift l) means that 1/q grows by -drift a layer.
    q = 1e-4
    growth = 1 / variance_map(f, q, point.sigma_w2) - 1 / q
    assert growth == pytest.approx(-drift, rel=1e-3)


def test_sigmoid_is_not_critical_and_the_message_says_why() -> None:
    with pytest.raises(NoSolutionError) as error:
        susceptibility_points("sigmoid")
    assert str(error.value) == (
        "susceptibility_points(sigmoid): expected a variance q at which both susceptibilities are "
        "1, got none for q in [0.0001, 100]; q = 0 would need the bias variance -4; "
        "use the rule 'centred' or 'shaped'"
    )


@pytest.mark.parametrize("f", ["softplus", "square", "x^3"])
def test_other_activations_without_criticality(f: str) -> None:
    with pytest.raises(NoSolutionError, match="both susceptibilities are 1, got none"):
        susceptibility_points(f)


def test_a_candidate_that_needs_a_negative_variance_is_refused() -> None:
    """gelu + 0.1: q = 18.96 needs sigma_b2 = -0.2214, q = 0 needs -0.04, which is named."""
    gelu = activation("gelu")
    with pytest.raises(NoSolutionError, match=r"q = 0 would need the bias variance -0\.04;"):
        susceptibility_points(lambda x: gelu(x) + 0.1)


def test_jumps_have_no_critical_point() -> None:
    for search in (edge_of_chaos, susceptibility_points):
        with pytest.raises(NoSolutionError, match="got chi infinite for every q, because f jumps"):
            search("hardshrink")
