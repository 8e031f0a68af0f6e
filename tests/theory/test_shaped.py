"""Shaping: the equations it solves, for every activation and depth, and which root it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from fanin.errors import ArgumentError, NoSolutionError
from fanin.theory import rules
from fanin.theory.activation import activation, names

REFERENCE = run_path(str(Path(__file__).parents[1] / "reference" / "mp_activations.py"))
shaped_slopes = REFERENCE["shaped_slopes"]

SLOW = ("leaky_relu(0.01)", "hardtanh", "abs", "selu", "mish", "erf", "softsign", "arctan", "x^3")

JUMPS = {"hardshrink", "sign", "step"}
VARIANCE_BINDS = {"exp", "sinh", "x^3"}  # at every depth; relu^2 and snake at some
# The local slope of the public test network of DKS: zeta = 1.2 over its longest path.
DKS = 1.002770965850


@pytest.mark.parametrize(
    "f",
    [
        *("relu", "relu6", "hardswish", "tanh", "sigmoid", "softplus", "gelu", "silu", "elu"),
        *("sin", "square", "exp"),
        *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW),
    ],
)
def test_the_budget_by_independent_quadrature(f: str) -> None:
    """C'(1)^L, or Q'^L where that binds, is 1.5; mean, variance and Q' are those of mpmath."""
    depth = 50
    layer = rules.shaped(f, depth)
    expected = shaped_slopes(f, *layer.operating_point)
    assert layer.centre == pytest.approx(float(expected.mean), abs=1e-12)
    weight = layer.operating_point.variance / float(expected.variance)
    assert layer.weight_variance_times_fan_in == pytest.approx(weight, rel=1e-10)
    assert layer.chi == pytest.approx(float(expected.chi), abs=1e-10)
    assert layer.slope == pytest.approx(float(expected.slope), abs=1e-9)
    used = max(expected.chi, expected.slope) if f in VARIANCE_BINDS else expected.chi
    assert float(used) ** depth == pytest.approx(1.5, rel=1e-8)
    assert float(expected.slope) ** depth <= 1.5 * (1 + 1e-8)


@pytest.mark.parametrize("depth", [2, 10, 100, 1000])
@pytest.mark.parametrize("f", sorted(set(names()) - JUMPS))
def test_every_activation_at_every_depth(f: str, depth: int) -> None:
    layer = rules.shaped(f, depth)
    used = max(layer.chi, layer.slope) ** depth
    affine = any("budget is not used up" in note for note in layer.notes)
    assert used <= 1.5 * (1 + 1e-8)
    assert affine or used == pytest.approx(1.5, rel=1e-8)
    assert layer.returned_variance == pytest.approx(layer.operating_point.variance, rel=1e-9)
    assert affine <= (f in {"identity", "leaky_relu", "prelu", "rrelu", "bent_identity"})
    if f in VARIANCE_BINDS:
        assert any("variance map binds" in note for note in layer.notes)


@pytest.mark.parametrize(
    ("f", "row"),
    [
        ("softplus", (0.18761008168, 0.40688063442, -0.92134661514, 8.87867254367)),
        ("tanh", (0.07461073058, 0.55669152000, -0.50343787687, 18.00263596444)),
    ],
)
def test_the_public_values_of_deep_kernel_shaping(f: str, row: tuple[float, ...]) -> None:
    """alpha = s, beta = beta, delta = -m, gamma = V^(-1/2); for odd f the sign of beta is free."""
    layer = rules.shaped(f, 1, DKS, variance_slope=1.0)
    sign = math.copysign(1.0, layer.bias) if f == "tanh" else 1.0
    found = (
        math.sqrt(layer.operating_point.variance),
        sign * layer.bias,
        -sign * layer.centre,
        1 / math.sqrt(layer.moments.variance),
    )
    assert found == pytest.approx(row, rel=5e-8)
    assert (layer.chi, layer.slope) == pytest.approx((DKS, 1.0), rel=1e-11)


@pytest.mark.parametrize(("depth", "t", "slope"), [(50, 2.32136, 0.94430), (100, 2.58004, 0.96680)])
def test_relu_in_closed_form(depth: int, t: float, slope: float) -> None:
    layer = rules.shaped("relu", depth)
    found = layer.bias / math.sqrt(layer.operating_point.variance)
    assert found == pytest.approx(t, abs=5e-6)
    phi, Phi = math.exp(-(found**2) / 2) / math.sqrt(2 * math.pi), float(ndtr(found))
    mean = found * Phi + phi
    variance = (1 + found**2) * Phi + found * phi - mean**2
    assert layer.chi == pytest.approx(Phi / variance, rel=1e-10)
    assert layer.slope == pytest.approx((Phi - mean * phi) / variance, rel=1e-9)
    assert layer.slope == pytest.approx(slope, abs=5e-6)


@pytest.mark.parametrize("depth", [2, 50, 1000])
def test_the_square_in_closed_form(depth: int) -> None:
    """C'(1) = Q' = (2 t^2 + 2)/(2 t^2 + 1)."""
    layer = rules.shaped("square", depth)
    t2 = layer.bias**2 / layer.operating_point.variance
    assert layer.chi == pytest.approx((2 * t2 + 2) / (2 * t2 + 1), rel=1e-12)
    assert layer.slope == pytest.approx(layer.chi, rel=1e-10)
    assert layer.chi**depth == pytest.approx(1.5, rel=1e-8)


STEEP = [
    ("a ramp of slope 1e4", lambda x: np.clip(1e4 * x, 0.0, 1.0)),
    ("a ramp of slope 1e4 away from 0", lambda x: torch.clamp(1e4 * (x - 0.3), 0.0, 1.0)),
    ("sin 30 x", lambda x: torch.sin(30 * x)),
    ("a steep sigmoid away from 0", lambda x: torch.sigmoid(200 * (x - 0.3))),
    ("a bump", lambda x: np.exp(-x * x)),
    ("mish by hand", lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))),
    ("a ripple on a line", lambda x: x + np.sin(5 * x) / 5),
    ("a cubic", lambda x: x**3 - x),
]


@pytest.mark.parametrize(("name", "f"), STEEP, ids=[name for name, _ in STEEP])
@pytest.mark.parametrize("depth", [2, 100])
def test_arbitrary_callables(name: str, f: Callable[..., Any], depth: int) -> None:
    layer = rules.shaped(f, depth)
    assert max(layer.chi, layer.slope) ** depth == pytest.approx(1.5, rel=1e-7)
    assert layer.moments.variance > 0


@pytest.mark.parametrize("depth", [20, 100])
@pytest.mark.parametrize(
    "f", ["relu", "sigmoid", "tanh", "softplus", "gelu", "silu", "elu", "selu", "mish", "hardswish"]
)
def test_the_chosen_point_holds_the_variance_and_has_a_slope(f: str, depth: int) -> None:
    """Q' stays at 1 or below, and the mean squared slope is not far below the steepest."""
    layer = rules.shaped(f, depth)
    assert layer.slope**depth <= 1.05
    steepest = {"sigmoid": 1 / 4, "hardswish": 1 / 2}.get(f, 1.0)
    assert layer.weight_variance_times_fan_in < 3 / steepest**2
    assert 5e-4 < layer.moments.variance < 0.5


def test_odd_activations_stay_where_they_are_steepest() -> None:
    for f in ("tanh", "sin", "erf", "arctan", "isru"):
        assert rules.shaped(f, 50).bias == 0.0


def test_an_affine_activation_leaves_the_budget() -> None:
    layer = rules.shaped("identity", 10)
    assert layer.weight_variance_times_fan_in == pytest.approx(1.0, rel=1e-12)
    assert layer.notes[-1] == ("The budget is not used up: f is so nearly affine that it takes 1.")


def test_the_linear_limit_is_the_paper_without_its_mean() -> None:
    """As zeta -> 1 at beta = 0 the weights tend to 1/f'(0)^2, the centre to f(0)."""
    layer = rules.shaped("tanh", 1, 1 + 1e-9)
    assert layer.weight_variance_times_fan_in == pytest.approx(1.0, abs=1e-3)
    layer = rules.shaped("sigmoid", 1, 1 + 1e-7)
    assert layer.weight_variance_times_fan_in == pytest.approx(
        1 / float(activation("sigmoid").derivative(layer.bias)) ** 2, rel=1e-2
    )
    assert layer.centre == pytest.approx(float(activation("sigmoid")(layer.bias)), abs=1e-3)


@settings(max_examples=3, deadline=None)
@given(st.floats(0.3, 4.0))
def test_the_imposed_root_follows_a_change_of_variables(k: float) -> None:
    """softplus(k x)/k has the operating point of softplus divided by k, and the same weights."""
    k = round(k, 3)
    plain = rules.shaped("softplus", 10, 1.2, variance_slope=1.0)
    changed = rules.shaped(f"softplus({k})", 10, 1.2, variance_slope=1.0)
    assert changed.bias * k == pytest.approx(plain.bias, rel=1e-6)
    assert changed.operating_point.variance * k**2 == pytest.approx(
        plain.operating_point.variance, rel=1e-6
    )
    assert changed.weight_variance_times_fan_in == pytest.approx(
        plain.weight_variance_times_fan_in, rel=1e-6
    )


def test_adding_a_constant_changes_the_centre_alone() -> None:
    plain, raised = (rules.shaped(f, 20, variance_slope=1.0) for f in ("gelu", _raised_gelu))
    assert raised.operating_point == pytest.approx(plain.operating_point, rel=1e-6)
    assert raised.centre == pytest.approx(plain.centre + 1.0, rel=1e-9)


def _raised_gelu(x: np.ndarray) -> np.ndarray:
    return activation("gelu")(x) + 1.0


@pytest.mark.parametrize("f", sorted(JUMPS))
def test_jumps_have_no_solution(f: str) -> None:
    with pytest.raises(NoSolutionError, match="where C'\\(1\\) is infinite at every operating"):
        rules.shaped(f, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: rules.shaped(lambda x: 0.0 * x + 3.0, 10),
            NoSolutionError,
            "expected an operating point that meets the budget, got none was found, for "
            "|beta| <= 16, s in [6e-08, 16]; use 'centred', or a larger zeta",
        ),
        (
            lambda: rules.shaped("exp", 10, variance_slope=1.0),
            NoSolutionError,
            "got no operating point has Q' = 1, for |beta| <= 16, s in [6e-08, 16]; "
            "use 'centred', or a larger zeta",
        ),
        (
            lambda: rules.shaped("leaky_relu", 10, 1.2, variance_slope=1.0),
            NoSolutionError,
            "got no operating point has Q' = 1, for |beta| <= 16, s in [6e-08, 16]; "
            "use 'centred', or a larger zeta",
        ),
        (
            lambda: rules.shaped("tanh", 0),
            ArgumentError,
            "shaped(depth): expected a finite number >= 1, got 0",
        ),
        (
            lambda: rules.shaped("tanh", 10, zeta=1.0),
            ArgumentError,
            "shaped(zeta): expected a finite number > 1, got 1.0",
        ),
    ],
)
def test_what_cannot_be_shaped(call: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(message)
