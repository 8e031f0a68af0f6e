"""Shaping of functions that nobody registered, at a finite width, and in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.errors import ArgumentError, NoSolutionError
from fanin.theory import rules
from fanin.theory.rules.layer import LayerRule
from fanin.theory.rules.search import ROUNDING, rounding

Function = Callable[[Any], Any]

CALLABLES: dict[str, Function] = {
    "sin": lambda x: torch.sin(x),
    "square": lambda x: x * x,
    "cube": lambda x: x**3,
    "exp": lambda x: torch.exp(x),
    "hardswish": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "relu6": lambda x: torch.clamp(x, 0, 6),
    "not monotone": lambda x: x * np.exp(-x * x),
    "periodic": lambda x: x + np.cos(3 * x),
    "tanhshrink": lambda x: x - np.tanh(x),
    "softshrink": lambda x: F.softshrink(x),
    "erf": lambda x: torch.erf(x),
    "abs": lambda x: np.abs(x),
    "five pieces": lambda x: np.interp(x, [-2.0, -1.0, 0.5, 1.5], [-1.0, 0.3, -0.2, 2.0]),
}

_Z = np.linspace(-8.5, 8.5, 40_001)
_DENSITY = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()


def slopes(f: Function, layer: LayerRule) -> tuple[float, float]:
    """C'(1) and Q' by plain sums and differences, Q' from the variance map itself."""
    beta, s = layer.bias, math.sqrt(layer.operating_point.variance)

    def value(z: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(f(z))
        except TypeError:
            return f(torch.from_numpy(z)).numpy()

    def spread(t: float) -> float:
        return float((value(beta + t * s * _Z) - layer.centre) ** 2 @ _DENSITY)

    y = value(beta + s * _Z)
    mean = float(y @ _DENSITY)
    variance = float((y - mean) ** 2 @ _DENSITY)
    steps = np.gradient(y, _Z)
    q = (spread(1 + 1e-4) - spread(1 - 1e-4)) / (4e-4 * variance)
    return float(steps**2 @ _DENSITY) / variance, q


@pytest.mark.parametrize("depth", [2, 10, 100, 1000])
@pytest.mark.parametrize("name", CALLABLES)
def test_the_budget_is_met_and_the_variance_held(name: str, depth: int) -> None:
    layer = rules.shaped(CALLABLES[name], depth)
    chi, q = slopes(CALLABLES[name], layer)
    assert layer.chi == pytest.approx(chi, abs=2e-3 * (chi - 1) + 2e-7)
    assert layer.slope == pytest.approx(q, abs=1e-4 * abs(chi - q) + 1e-6)
    assert max(layer.chi, layer.slope) ** depth == pytest.approx(1.5, rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(-2.0, 2.0), min_size=4, max_size=4, unique=True),
    st.lists(st.floats(0.1, 2.0), min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.sampled_from([3, 30, 300]),
)
def test_any_five_pieces(
    places: list[float], sizes: list[float], signs: list[bool], depth: int
) -> None:
    """A continuous function of five slopes: a point within the budget, of finite weights."""
    knots = np.round(np.sort(places), 2) + np.arange(4) * 0.1  # at least 0.1 apart
    rises = np.round(np.where(signs, sizes, np.negative(sizes)), 2)

    def f(x: np.ndarray) -> np.ndarray:
        y = rises[0] * x
        for knot, change in zip(knots, np.diff(rises), strict=True):
            y = y + change * np.maximum(x - knot, 0.0)
        return y

    layer = rules.shaped(f, depth)
    assert max(layer.chi, layer.slope) ** depth <= 1.5 * (1 + 1e-7)
    assert 0 < layer.weight_variance_times_fan_in < 1e4
    affine = any("budget is not used up" in note for note in layer.notes)
    assert affine or max(layer.chi, layer.slope) ** depth == pytest.approx(1.5, rel=1e-7)


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: np.floor(x), "where C'\\(1\\) is infinite at every operating point"),
        (lambda x: np.heaviside(x, 0.0), "a jump at 0, where C'\\(1\\) is infinite"),
        (lambda x: np.sqrt(np.abs(x)), "E\\[f'\\^2\\] is infinite at the points that were tried"),
        (lambda x: 0 * x + 1, "none was found"),
    ],
)
def test_why_there_is_none(f: Function, why: str) -> None:
    with pytest.raises(NoSolutionError, match=why):
        rules.shaped(f, 10)


# --- width ----------------------------------------------------------------------------------------


def grown(f: Function, layer: LayerRule, depth: int, width: int, seed: int) -> np.ndarray:
    """Variance of the last pre-activations about beta over s^2, for each of 128 examples."""
    rng = np.random.default_rng(seed)
    variance = layer.operating_point.variance
    z = layer.bias + math.sqrt(variance) * rng.standard_normal((128, width))
    std = layer.std(width)
    for _ in range(depth):
        w = std * rng.standard_normal((width, width))
        with np.errstate(over="ignore", invalid="ignore"):
            z = layer.bias + (f(z) - layer.centre) @ w.T
    with np.errstate(over="ignore", invalid="ignore"):
        return ((z - layer.bias) ** 2).mean(axis=1) / variance


@pytest.mark.parametrize(("depth", "width"), [(29, 256), (60, 128)])
def test_the_square_of_finite_width(depth: int, width: int) -> None:
    """Within the budget for this width no example runs away; with that of infinite width some do.

    Logarithms of single examples spread by (2 depth/width)^(1/2), as the budget assumes.
    """
    kept = rules.shaped("square", depth, width=width)
    free = rules.shaped("square", depth)
    assert kept.slope**depth < 1.3
    assert free.slope**depth == pytest.approx(1.5, rel=1e-8)
    found = [grown(np.square, kept, depth, width, seed) for seed in range(6)]
    wild = [grown(np.square, free, depth, width, seed) for seed in range(6)]
    assert max(f.max() for f in found) < 40
    assert not all(np.isfinite(w).all() and w.max() < 100 for w in wild)
    spread = np.std(np.log(np.concatenate(found)))
    assert spread == pytest.approx(math.sqrt(2 * depth / width), rel=0.35)
    assert 0.5 < np.exp(np.log([f.mean() for f in found]).mean()) < 2


def test_width_changes_nothing_where_the_variance_falls() -> None:
    for f in ("relu", "tanh", "sigmoid", "gelu", "softplus"):
        assert rules.shaped(f, 50, width=128) == rules.shaped(f, 50)


def test_a_width_that_is_none() -> None:
    with pytest.raises(ArgumentError, match=r"shaped\(width\): expected a number > 0, got 0"):
        rules.shaped("relu", 10, width=0)


# --- bfloat16 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", ["relu", "sigmoid", "softplus", "gelu", "silu", "mish", "hardswish"])
@pytest.mark.parametrize("depth", [50, 200])
def test_chosen_points_keep_the_signal_in_bfloat16(f: str, depth: int) -> None:
    m = rules.shaped(f, depth).moments
    assert rounding(float(m.mean), float(m.variance), depth) <= ROUNDING


def test_what_rounding_makes_of_the_signal() -> None:
    """The predicted share of noise against a network whose activations are rounded to bfloat16."""
    depth, width = 50, 256
    layer = rules.shaped("sigmoid", depth, variance_slope=1.0)  # a large mean: E^2/V is 257
    m = layer.moments
    predicted = float(rounding(float(m.mean), float(m.variance), depth))
    shares = []
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        z = layer.bias + math.sqrt(layer.operating_point.variance) * torch.randn(
            32, width, generator=g
        )
        exact, rounded = z, z
        for _ in range(depth):
            w = layer.std(width) * torch.randn(width, width, generator=g)
            exact = layer.bias + (torch.sigmoid(exact) - layer.centre) @ w.T
            y = torch.sigmoid(rounded.bfloat16().float()).bfloat16().float()
            rounded = layer.bias + (y - layer.centre) @ w.T
        shares.append(float((rounded - exact).var() / (exact - layer.bias).square().mean()))
    assert np.mean(shares) == pytest.approx(predicted, rel=0.6)


def test_a_function_without_a_point_for_bfloat16_says_so() -> None:
    layer = rules.shaped("square", 1000)
    assert any(note.startswith("In bfloat16 rounding makes") for note in layer.notes)
