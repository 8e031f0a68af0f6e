"""One battery over every registered activation."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fanin.theory.activation import Activation, activation, names
from fanin.theory.gaussian import expectation, moments

VARIANTS = (
    "leaky_relu(0.2)",
    "elu(0.5)",
    "celu(2)",
    "gelu(tanh)",
    "hardshrink(1.5)",
    "hardtanh(-2, 0.5)",
    "rrelu(0.1, 0.3)",
    "sin(30)",
    "softplus(2)",
    "softshrink(0.25)",
    "threshold(0.5, 0.1)",
)
EVERY = [*names(), *VARIANTS]
GROWING = {"exp", "sinh"}

KINKS = {
    "abs": [0],
    "elu(0.5)": [0],
    "hardsigmoid": [-3, 3],
    "hardswish": [-3, 3],
    "hardtanh": [-1, 1],
    "hardtanh(-2, 0.5)": [-2, 0.5],
    "leaky_relu": [0],
    "leaky_relu(0.2)": [0],
    "penalized_tanh": [0],
    "prelu": [0],
    "relu": [0],
    "relu6": [0, 6],
    "rrelu": [0],
    "rrelu(0.1, 0.3)": [0],
    "selu": [0],
    "softshrink": [-0.5, 0.5],
    "softshrink(0.25)": [-0.25, 0.25],
    "threshold": [0],
}
JUMPS = {
    "hardshrink": [-0.5, 0.5],
    "hardshrink(1.5)": [-1.5, 1.5],
    "sign": [0],
    "step": [0],
    "threshold(0.5, 0.1)": [0.5],
}
HOMOGENEOUS = {
    **dict.fromkeys(("identity", "relu", "leaky_relu", "prelu", "rrelu", "threshold", "abs"), 1),
    **dict.fromkeys(("leaky_relu(0.2)", "rrelu(0.1, 0.3)"), 1),
    **dict.fromkeys(("square", "relu^2"), 2),
    **dict.fromkeys(("sign", "step"), 0),
    "x^3": 3,
}
SAME_NAME_IN_F = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6
    selu silu softshrink softsign tanhshrink
"""
SAME_NAME_IN_TORCH = "abs arctan asinh cos erf exp sigmoid sign sin sinc sinh square tanh"
TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{name: getattr(F, name) for name in SAME_NAME_IN_F.split()},
    **{name: getattr(torch, name) for name in SAME_NAME_IN_TORCH.split()},
    "celu(2)": lambda x: F.celu(x, 2.0),
    "elu(0.5)": lambda x: F.elu(x, 0.5),
    "gelu(tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "hardshrink(1.5)": lambda x: F.hardshrink(x, 1.5),
    "hardtanh(-2, 0.5)": lambda x: F.hardtanh(x, -2, 0.5),
    "identity": torch.nn.Identity(),
    "leaky_relu(0.2)": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor(0.25, dtype=x.dtype)),
    "rrelu(0.1, 0.3)": lambda x: F.rrelu(x, 0.1, 0.3, training=False),
    "sin(30)": lambda x: torch.sin(30 * x),
    "softplus": lambda x: F.softplus(x, threshold=1e9),
    "softplus(2)": lambda x: F.softplus(x, beta=2, threshold=1e9),
    "softshrink(0.25)": lambda x: F.softshrink(x, 0.25),
    "step": lambda x: torch.heaviside(x.detach(), torch.tensor(0.5, dtype=x.dtype)),
    "threshold(0.5, 0.1)": lambda x: F.threshold(x, 0.5, 0.1),
}
# torch's own slopes: 1/6 is rounded to float32, and a difference of equal numbers is taken at 0.
SLOPE_OF_TORCH = {"hardsigmoid": 1e-8, "sinc": 1e-8}


def sample(f: Activation) -> np.ndarray:
    """Points of all sizes, away from the breakpoints of f."""
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(0, s, 60) for s in (1e-4, 0.1, 1, 3, 12)])
    apart = [np.abs(x - point.location) > 1e-6 for point in f.breakpoints]
    return x[np.logical_and.reduce(apart)] if apart else x


@pytest.fixture(params=EVERY)
def f(request: pytest.FixtureRequest) -> Activation:
    return activation(request.param)


def test_finite_and_float64(f: Activation) -> None:
    x = np.linspace(-700, 700, 20001) if f.name in GROWING else np.linspace(-4e4, 4e4, 20001)
    for values in (f(x), f.derivative(x), f(0.0), f.derivative(0.0)):
        assert np.asarray(values).dtype == np.float64
        assert np.isfinite(values).all()


def test_derivative_agrees_with_differences(f: Activation) -> None:
    x, h = sample(f), 1e-4
    # A stencil may lie across no break, and not across zero either, where f'' may jump.
    places = np.array([0.0, *(point.location for point in f.breakpoints)])
    x = x[np.abs(x[:, None] - places).min(axis=1) > 3 * h]
    near, far = f(x + h) - f(x - h), f(x + 2 * h) - f(x - 2 * h)
    differences = (8 * near - far) / (12 * h)
    error = np.abs(f.derivative(x) - differences)
    assert (error <= 3e-9 * (1 + np.abs(differences) + np.abs(f(x)))).all()


@pytest.mark.parametrize("name", TORCH)
def test_same_as_torch(name: str) -> None:
    f = activation(name)
    x = sample(f)
    leaf = torch.from_numpy(x).requires_grad_()
    y = TORCH[name](leaf)
    np.testing.assert_allclose(f(x), y.detach().numpy(), rtol=1e-12, atol=1e-12)
    if y.requires_grad:
        (slope,) = torch.autograd.grad(y.sum(), leaf)
        allowed = SLOPE_OF_TORCH.get(name, 1e-11)
        np.testing.assert_allclose(f.derivative(x), slope.numpy(), rtol=1e-12, atol=allowed)


def test_torch_covers_its_own_activations() -> None:
    own = set(dir(F)) & set(names())
    assert own - set(TORCH) <= {"threshold", "rrelu"}  # they are here with arguments


def test_breakpoints_are_the_right_ones(f: Activation) -> None:
    kinks = [p.location for p in f.breakpoints if p.kind == "kink"]
    jumps = [p.location for p in f.breakpoints if p.kind == "jump"]
    assert kinks == KINKS.get(f.name, [])
    assert jumps == JUMPS.get(f.name, [])
    for point in f.breakpoints:
        gap = 1e-9
        function = f if point.kind == "jump" else f.derivative
        ends = function(point.location + np.array([-gap, gap]))
        assert point.change == pytest.approx(ends[1] - ends[0], rel=1e-6, abs=1e-8)


def test_slopes_at_zero_are_limits(f: Activation) -> None:
    h = 2.0**-30
    zero = f(np.array([-1e-300, 1e-300]))  # the limits, which a jump has two of
    left, right = (zero[0] - f(-h)) / h, (f(h) - zero[1]) / h
    size = 1e-6 * (1 + abs(f.slope_left) ** 3)
    assert f.slope_left == pytest.approx(left, abs=size)
    assert f.slope_right == pytest.approx(right, abs=size)
    assert f.differentiable_at_zero == (0 not in KINKS.get(f.name, []) + JUMPS.get(f.name, []))


def test_homogeneity(f: Activation) -> None:
    assert f.homogeneity == HOMOGENEOUS.get(f.name)


def test_pickles_to_itself(f: Activation) -> None:
    assert pickle.loads(pickle.dumps(f)) is f


# --- moments --------------------------------------------------------------------------------------

MEAN, VARIANCE = 0.3, 1.7


def test_stein_identities(f: Activation) -> None:
    """E[(x - m) f] = q E[f'] and E[(x - m) f^2] = 2 q E[f f'] where f does not jump."""
    if f.has_jumps:
        pytest.skip("the derivative almost everywhere leaves out the jumps")
    at = moments(f, MEAN, VARIANCE)
    left = expectation(lambda x: (x - MEAN) * f(x), MEAN, VARIANCE)
    right = VARIANCE * at.derivative_mean
    assert abs(left - right) <= left.error + VARIANCE * at.derivative_mean.error
    left = expectation(lambda x: (x - MEAN) * f(x) ** 2, MEAN, VARIANCE)
    right = expectation(lambda x: 2 * VARIANCE * f(x) * f.derivative(x), MEAN, VARIANCE)
    assert abs(left - right) <= left.error + right.error


def test_growth_is_the_slope_of_the_second_moment(f: Activation) -> None:
    """V'(q) = E[f'^2] + E[f f''], the kinks and jumps of f included."""
    h = 2e-3
    V = [float(moments(f, MEAN, VARIANCE * (1 + k * h)).second_moment) for k in (-2, -1, 1, 2)]
    differences = (8 * (V[2] - V[1]) - (V[3] - V[0])) / (12 * h * VARIANCE)
    at = moments(f, MEAN, VARIANCE)
    assert at.derivative_second_moment + at.curvature == pytest.approx(
        differences, rel=1e-7, abs=1e-8
    )
    assert at.slope == pytest.approx(VARIANCE * differences / at.second_moment, rel=1e-7, abs=1e-8)


def test_scaling_laws(f: Activation) -> None:
    """Moments of a f(b x) at (m, q) from those of f at (b m, b^2 q)."""
    a, b = -1.75, 0.625
    outer = moments(lambda x: a * f(b * x), MEAN, VARIANCE)
    inner = moments(f, b * MEAN, b * b * VARIANCE)
    for key, factor in {
        "mean": a,
        "second_moment": a * a,
        "variance": a * a,
        "derivative_mean": a * b,
        "derivative_second_moment": (a * b) ** 2,
        "curvature": (a * b) ** 2,
        "slope": 1,
    }.items():
        mine, theirs = getattr(outer, key), getattr(inner, key)
        assert abs(mine - factor * theirs) <= mine.error + abs(factor) * theirs.error, key


def test_variance_is_what_remains_of_the_second_moment(f: Activation) -> None:
    at = moments(f, MEAN, VARIANCE)
    gap = at.second_moment - at.mean**2 - at.variance
    assert abs(gap) <= 4 * (at.second_moment.error + at.variance.error) + 1e-15
    assert at.variance >= 0
    assert at.derivative_mean**2 * VARIANCE <= at.variance * (1 + 1e-12) or f.has_jumps
    assert math.isfinite(at.slope)
