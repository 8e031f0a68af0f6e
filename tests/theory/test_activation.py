"""Names, callables and modules as activations, and what is found out about them."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fanin.errors import ArgumentError, ArgumentTypeError, FaninError, UnknownNameError
from fanin.theory.activation import Activation, activation, names

POINTS = np.array([-7.3, -2.0, -0.51, -1e-3, 0.0, 0.2, 0.77, 3.1, 9.0])


def places(f: Activation) -> list[tuple[str, float]]:
    return [(point.kind, point.location) for point in f.breakpoints]


# --- names ----------------------------------------------------------------------------------------


def test_there_are_many_names_and_each_is_its_own_spelling() -> None:
    assert len(names()) >= 45
    for name in names():
        assert activation(name).name == name
        assert activation(name) is activation(name.upper())


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("LeakyReLU(negative_slope=0.2)", "leaky_relu(0.2)"),
        ("leaky relu(0.01)", "leaky_relu"),
        ("nn.ReLU", "relu"),
        ("torch.nn.functional.hardswish", "hardswish"),
        ("ReLU6()", "relu6"),
        ("hard_swish", "hardswish"),
        ("Swish", "silu"),
        ("log-sigmoid", "logsigmoid"),
        ("gelu_new", "gelu(tanh)"),
        ("GELU(approximate='tanh')", "gelu(tanh)"),
        ("gelu(none)", "gelu"),
        ("squared_relu", "relu^2"),
        ("x^2", "square"),
        ("cube", "x^3"),
        ("sin(30)", "sin(30)"),
        ("softplus(beta=2)", "softplus(2)"),
        ("elu(alpha=0.5)", "elu(0.5)"),
        ("Hardtanh(-2, 0.123456789)", "hardtanh(-2, 0.123456789)"),
        ("hardtanh(max_val=2)", "hardtanh(max_val=2)"),
        ("  tanh ", "tanh"),
        ("heaviside", "step"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert activation(spelling).name == name
    assert activation(spelling) is activation(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gelo", "activation: expected a known name, got 'gelo'; try 'gelu' or 'elu'"),
        (
            "xyzzyq",
            "activation: expected a known name, got 'xyzzyq'; see fanin.theory.activation.names()",
        ),
        (
            "leaky_relu(0.2, 3)",
            "activation 'leaky_relu': expected leaky_relu(0.01), got too many positional arguments",
        ),
        (
            "elu(slope=3)",
            "activation 'elu': expected elu(1), got an unexpected keyword argument 'slope'",
        ),
        (
            "leaky_relu(__import__('os'))",
            "\"leaky_relu(__import__('os'))\": expected numbers or words between the brackets, "
            "as in leaky_relu(0.2), got \"__import__('os')\"",
        ),
        ("gelu(foo)", "gelu approximate: expected 'none' or 'tanh', got 'foo'"),
        ("softplus(-1)", "softplus beta: expected a positive number, got -1.0"),
        ("elu(nan)", "activation 'elu', alpha: expected a finite number, got 'nan'"),
        ("elu(1e400)", "activation 'elu', alpha: expected a finite number, got inf"),
        ("hardtanh(2, 1)", "hardtanh: expected min_val < max_val, got 2.0, 1.0"),
    ],
)
def test_bad_names_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(FaninError) as caught:
        activation(text)
    assert str(caught.value) == message


def test_an_unknown_name_is_a_value_error() -> None:
    with pytest.raises(UnknownNameError):
        activation("")
    assert issubclass(UnknownNameError, ValueError)


def test_nothing_in_a_name_is_executed() -> None:
    for text in ("relu(*[1])", "relu(**{})", "elu((lambda: 1)())", "elu(1 if True else 2)"):
        with pytest.raises(ArgumentError):
            activation(text)


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (F.gelu, "gelu"),
        (functools.partial(F.gelu, approximate="tanh"), "gelu(tanh)"),
        (functools.partial(F.leaky_relu, negative_slope=0.3), "leaky_relu(0.3)"),
        (torch.tanh, "tanh"),
        (torch.atan, "arctan"),
        (np.tanh, "tanh"),
        (nn.GELU(approximate="tanh"), "gelu(tanh)"),
        (nn.LeakyReLU(0.2), "leaky_relu(0.2)"),
        (nn.PReLU(init=0.1), f"prelu({float(torch.tensor(0.1))!r})"),
        (nn.RReLU(0.1, 0.3), "rrelu(0.1, 0.3)"),
        (nn.Softplus(beta=2), "softplus(2)"),
        (nn.Threshold(0.5, 0.1), "threshold(0.5, 0.1)"),
        (nn.Identity(), "identity"),
    ],
)
def test_torch_functions_that_are_registered_ones(f: Callable[..., Any], name: str) -> None:
    assert activation(f) is activation(name)


def test_what_only_looks_like_a_torch_module_is_evaluated() -> None:
    class ReLU(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x.clamp(min=0)

    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    for f in (ReLU(), hooked, nn.Softplus(threshold=5), nn.Sequential(nn.ReLU())):
        made = activation(f)
        assert made.form is None
        expected = f(torch.from_numpy(POINTS)).numpy()
        np.testing.assert_array_equal(made(POINTS), expected)


def test_autodiff_gives_the_derivative_of_a_torch_callable() -> None:
    f = activation(lambda x: x * torch.sigmoid(x))
    assert f.exact_derivative
    np.testing.assert_allclose(f.derivative(POINTS), activation("silu").derivative(POINTS), 1e-14)
    step = activation(lambda x: (x > 0).to(x.dtype))
    assert places(step) == [("jump", 0.0)]
    np.testing.assert_array_equal(step.derivative(POINTS), np.zeros_like(POINTS))
    in_place = activation(torch.relu_)
    np.testing.assert_array_equal(in_place.derivative(POINTS), (POINTS > 0).astype(float))
    with torch.inference_mode():
        assert f.derivative(0.0) == pytest.approx(0.5, abs=1e-15)


def test_a_callable_may_bring_its_own_derivative() -> None:
    class Cube:
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return x**3

        def derivative(self, x: np.ndarray) -> np.ndarray:
            return 3 * x**2

    class Wrong(Cube):
        def derivative(self, x: np.ndarray) -> np.ndarray:
            return 4 * x**2

    np.testing.assert_array_equal(activation(Cube()).derivative(POINTS), 3 * POINTS**2)
    assert not activation(Wrong()).exact_derivative
    np.testing.assert_allclose(activation(Wrong()).derivative(2.0), 12, rtol=1e-10)


def test_bound_methods_and_derivatives_are_callables() -> None:
    class Net:
        slope = 0.3

        def act(self, x: np.ndarray) -> np.ndarray:
            return np.where(x > 0, x, self.slope * x)

    assert activation(Net().act).slope_left == pytest.approx(0.3, abs=1e-14)
    relu6 = activation("relu6")
    assert places(activation(relu6.derivative)) == [("jump", 0.0), ("jump", 6.0)]
    assert activation(relu6.derivative) is activation(relu6.derivative)


def test_jax_callables() -> None:
    jax = pytest.importorskip("jax")
    f = activation(jax.nn.gelu)
    assert not jax.config.jax_enable_x64
    np.testing.assert_allclose(f(POINTS), activation("gelu(tanh)")(POINTS), rtol=1e-12)
    slopes = activation("gelu(tanh)").derivative(POINTS)
    np.testing.assert_allclose(f.derivative(POINTS), slopes, rtol=1e-11)
    with pytest.raises(ArgumentError, match="values that depend on the other elements"):
        activation(jax.nn.softmax)


# --- what is no activation ------------------------------------------------------------------------


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.sum()


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            lambda x: F.softmax(x, -1),
            "activation <lambda>: expected an elementwise function, "
            "got values that depend on the other elements",
        ),
        (
            lambda x: np.cumsum(x),
            "activation <lambda>: expected an elementwise function, "
            "got values that depend on the other elements",
        ),
        (
            lambda x: x.sum(),
            "activation <lambda>: expected an elementwise function, "
            "got values of shape () for an argument of shape (9,)",
        ),
        (
            nn.Dropout(),
            "activation Dropout: expected the same values every time, "
            "got values that change from call to call",
        ),
        (
            lambda x: x * (1 + 0j),
            "activation <lambda>: expected float64 values for a float64 argument, got complex128; "
            "keep the type of the argument inside the function",
        ),
        (
            lambda x: x.float(),
            "activation <lambda>: expected float64 values for a float64 argument, got float32; "
            "keep the type of the argument inside the function",
        ),
        (
            lambda x: np.sqrt(x),
            "activation <lambda>: expected finite values, got nan at x = -8",
        ),
        (
            lambda x: 1 / x,
            "activation <lambda>: expected finite values, got inf at x = 0",
        ),
        (
            nn.PReLU(4),
            "activation PReLU: expected one slope that all channels share, got 4 slopes; "
            "treat each channel as 'prelu(slope)'",
        ),
        (
            Affine(),
            "activation Affine: expected a module without parameters, got 2 parameters; "
            "pass the elementwise function alone",
        ),
        (
            3,
            "activation: expected a name, a callable or a module, got int",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_activation_is_refused(f: Any, message: str) -> None:
    with pytest.raises(FaninError) as caught:
        activation(f)
    assert str(caught.value) == message


def test_a_scalar_function_is_told_to_use_arrays() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        activation(lambda x: x if x > 0 else 0 * x)
    message = str(caught.value)
    assert message.startswith(
        "activation <lambda>: expected a function of one NumPy, torch or JAX array, "
        "got with numpy values ValueError: The truth value of an array"
    )
    assert message.endswith("write it with array operations, such as np.where instead of if")


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "found"),
    [
        (
            lambda x: np.clip(x, -0.123456789, 17.000001),
            [("kink", -0.123456789), ("kink", 17.000001)],
        ),
        (lambda x: np.clip(1e4 * x, -1, 1), [("kink", -1e-4), ("kink", 1e-4)]),
        (lambda x: np.clip(1e4 * (x - 3.7), -1, 1), [("kink", 3.6999), ("kink", 3.7001)]),
        (lambda x: np.tanh(1e4 * (x - 3.7)), []),
        (lambda x: np.tanh(1e4 * x), []),
        (lambda x: np.maximum(x, 12345.678), [("kink", 12345.678)]),
        (lambda x: np.where(x > math.pi, 1.0, x / 4), [("jump", math.pi)]),
        (lambda x: np.maximum(x, 1e-9 * x), [("kink", 0.0)]),
        (lambda x: np.maximum(x - 1, 0) ** 2, []),
        (lambda x: np.sqrt(np.abs(x)), [("kink", 0.0)]),
        (lambda x: np.sin(30 * x), []),
    ],
)
def test_breaks_of_callables(f: Callable[..., Any], found: list[tuple[str, float]]) -> None:
    assert places(activation(f)) == [(kind, pytest.approx(x, rel=1e-14)) for kind, x in found]


def test_breaks_of_a_triangle_wave_near_zero() -> None:
    near = [p for p in activation(lambda x: np.abs(x % 2 - 1)).breakpoints if abs(p.location) < 30]
    assert [p.location for p in near] == list(range(-29, 30))
    assert {p.kind for p in near} == {"kink"}
    assert [round(p.change, 6) for p in near] == [
        2.0 * (-1) ** (k % 2 == 0) for k in range(-29, 30)
    ]


@settings(max_examples=60, deadline=None)
@given(
    where=st.floats(1e-3, 1e4).flatmap(lambda x: st.sampled_from([x, -x])),
    left=st.floats(-2, 2),
    change=st.floats(0.05, 3),
)
def test_a_kink_is_found_wherever_it_is(where: float, left: float, change: float) -> None:
    f = activation(lambda x: left * (x - where) + change * np.maximum(x - where, 0) + 1)
    (point,) = f.breakpoints
    assert point.kind == "kink"
    # Its place is known as well as the values tell: rounding over the change of slope.
    size = (1 + abs(where)) * (1 + abs(left)) / change
    assert abs(point.location - where) <= 1e-14 * size
    assert point.change == pytest.approx(change, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(where=st.floats(-1e3, 1e3), height=st.floats(0.01, 5))
def test_a_jump_is_found_to_the_last_place(where: float, height: float) -> None:
    f = activation(lambda x: np.where(x > where, height, 0.0) + np.tanh(x / 50))
    (point,) = f.breakpoints
    assert point.kind == "jump"
    assert point.location == pytest.approx(where, rel=1e-14, abs=1e-12)
    assert point.change == pytest.approx(height, rel=1e-9)


def test_a_numerical_derivative_keeps_its_bound() -> None:
    cases: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (lambda x: np.sin(30 * x), lambda x: 30 * np.cos(30 * x)),
        (
            lambda x: 1 / (1 + np.exp(-x)),
            lambda x: np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2,
        ),
        (lambda x: np.clip(x, -1, 2), lambda x: ((x > -1) & (x < 2)) * 1.0),
    ]
    x = np.concatenate([np.random.default_rng(0).normal(0, 5, 500), [100.0, 1000.0, -333.3]])
    for f, slope in cases:
        made = activation(f)
        assert not made.exact_derivative
        error = np.abs(made.derivative(x) - slope(x))
        assert (error <= made.derivative_error(x) + 1e-14).all()
        assert made.derivative_accuracy < 1e-9


def test_an_activation_is_a_value() -> None:
    f = activation("leaky_relu(0.2)")
    assert repr(f) == "Activation('leaky_relu(0.2)')"
    assert pickle.loads(pickle.dumps(f)) is f
    assert activation(f) is f
    assert f(np.array([[1.0], [-1.0]])).tolist() == [[1.0], [-0.2]]
    assert f(-1) == -0.2
    with pytest.raises(AttributeError):
        f.name = "other"  # type: ignore[misc]
