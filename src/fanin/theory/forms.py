"""The registered functions: value and derivative, each accurate to a few units in the last place.

A form states the function and its derivative, nothing else: kinks, jumps, homogeneity and slopes at
zero are found from them in `fanin.theory.landscape`. Parameters are named as torch names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Array = Float[ndarray, "*shape"]
    Function = Callable[[Array], Array]


class Form(NamedTuple):
    """A function and its derivative almost everywhere."""

    value: Function
    derivative: Function


FORMS: dict[str, Callable[..., Form]] = {}


def _form(name: str) -> Callable[[Callable[..., Form]], Callable[..., Form]]:
    """Registers a maker of forms under its canonical name."""

    def register(make: Callable[..., Form]) -> Callable[..., Form]:
        FORMS[name] = make
        return make

    return register


def _indicator(condition: Any) -> Array:
    return np.asarray(condition, dtype=np.float64)


def _density(x: Array) -> Array:
    """The standard normal density."""
    result: Array = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return result


def _sech2(x: Array) -> Array:
    """1 - tanh^2 without the cancellation."""
    e = np.exp(-2 * np.abs(x))
    result: Array = 4 * e / (1 + e) ** 2
    return result


def excess(s: Array) -> Array:
    """cosh x - sinh(x)/x for s = x^2, and cos x - sin(x)/x for s = -x^2, where |s| <= 1."""
    terms = [2 * k / math.factorial(2 * k + 1) for k in range(12)]
    result: Array = np.polynomial.polynomial.polyval(s, terms)
    return result


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ArgumentError(name, expected="a positive number", got=repr(value))


# --- piecewise linear -----------------------------------------------------------------------------


@_form("identity")
def _identity() -> Form:
    return Form(lambda x: x.copy(), np.ones_like)


@_form("relu")
def _relu() -> Form:
    return Form(lambda x: np.maximum(x, 0.0), lambda x: _indicator(x > 0))


@_form("leaky_relu")
def _leaky_relu(negative_slope: float = 0.01) -> Form:
    a = negative_slope
    return Form(lambda x: np.where(x > 0, x, a * x), lambda x: np.where(x > 0, 1.0, a))


@_form("prelu")
def _prelu(weight: float = 0.25) -> Form:
    return _leaky_relu(weight)


@_form("rrelu")
def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Form:
    """Outside training: the slope is the mean of its range."""
    return _leaky_relu((lower + upper) / 2)


@_form("relu6")
def _relu6() -> Form:
    return _hardtanh(0.0, 6.0)


@_form("hardtanh")
def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Form:
    if not min_val < max_val:
        raise ArgumentError("hardtanh", expected="min_val < max_val", got=f"{min_val}, {max_val}")
    return Form(
        lambda x: np.clip(x, min_val, max_val),
        lambda x: _indicator((x > min_val) & (x < max_val)),
    )


@_form("hardsigmoid")
def _hardsigmoid() -> Form:
    return Form(lambda x: np.clip(x + 3, 0, 6) / 6, lambda x: _indicator(np.abs(x) < 3) / 6)


@_form("softshrink")
def _softshrink(lambd: float = 0.5) -> Form:
    return Form(lambda x: x - np.clip(x, -lambd, lambd), lambda x: _indicator(np.abs(x) > lambd))


@_form("hardshrink")
def _hardshrink(lambd: float = 0.5) -> Form:
    return Form(
        lambda x: np.where(np.abs(x) > lambd, x, 0.0),
        lambda x: _indicator(np.abs(x) > lambd),
    )


@_form("threshold")
def _threshold(threshold: float = 0.0, value: float = 0.0) -> Form:
    return Form(lambda x: np.where(x > threshold, x, value), lambda x: _indicator(x > threshold))


@_form("abs")
def _abs() -> Form:
    return Form(np.abs, np.sign)


@_form("sign")
def _sign() -> Form:
    return Form(np.sign, np.zeros_like)


@_form("step")
def _step() -> Form:
    return Form(lambda x: np.heaviside(x, 0.5), np.zeros_like)


# --- piecewise polynomial -------------------------------------------------------------------------


@_form("square")
def _square() -> Form:
    return Form(lambda x: x * x, lambda x: 2 * x)


@_form("x^3")
def _cube() -> Form:
    return Form(lambda x: x * x * x, lambda x: 3 * x * x)


@_form("relu^2")
def _relu_squared() -> Form:
    return Form(lambda x: np.maximum(x, 0.0) ** 2, lambda x: 2 * np.maximum(x, 0.0))


@_form("hardswish")
def _hardswish() -> Form:
    return Form(
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(np.abs(x) < 3, (2 * x + 3) / 6, _indicator(x > 0)),
    )


# --- built from the logistic function and tanh ----------------------------------------------------


@_form("sigmoid")
def _sigmoid() -> Form:
    return Form(special.expit, lambda x: special.expit(x) * special.expit(-x))


@_form("logsigmoid")
def _logsigmoid() -> Form:
    return Form(lambda x: -np.logaddexp(0, -x), lambda x: special.expit(-x))


@_form("softplus")
def _softplus(beta: float = 1.0) -> Form:
    _positive("softplus beta", beta)
    return Form(lambda x: np.logaddexp(0, beta * x) / beta, lambda x: special.expit(beta * x))


@_form("silu")
def _silu(beta: float = 1.0) -> Form:
    def derivative(x: Array) -> Array:
        result: Array = special.expit(beta * x) * (1 + beta * x * special.expit(-beta * x))
        return result

    return Form(lambda x: x * special.expit(beta * x), derivative)


@_form("quick_gelu")
def _quick_gelu() -> Form:
    return _silu(1.702)


@_form("mish")
def _mish() -> Form:
    """tanh(softplus(x)) = w/(w + 2), w = exp(x) (exp(x) + 2), scaled by exp(-2x) for x > 0."""

    def parts(x: Array) -> tuple[Array, Array]:
        e = np.exp(-np.abs(x))
        return np.where(x > 0, 1 + 2 * e, e * (e + 2)), np.where(x > 0, e * e, 1.0)

    def value(x: Array) -> Array:
        w, one = parts(x)
        result: Array = x * (w / (w + 2 * one))
        return result

    def derivative(x: Array) -> Array:
        w, one = parts(x)
        sech2 = 4 * one * (w + one) / (w + 2 * one) ** 2
        result: Array = w / (w + 2 * one) + x * sech2 * special.expit(x)
        return result

    return Form(value, derivative)


@_form("tanh")
def _tanh() -> Form:
    return Form(np.tanh, _sech2)


@_form("lecun_tanh")
def _lecun_tanh() -> Form:
    """1.7159 tanh(2x/3), built for f(1) = 1."""
    return Form(
        lambda x: 1.7159 * np.tanh(2 * x / 3),
        lambda x: 1.7159 * (2 / 3) * _sech2(2 * x / 3),
    )


@_form("tanhshrink")
def _tanhshrink() -> Form:
    def value(x: Array) -> Array:
        result: Array = np.asarray(x - np.tanh(x))
        near = np.abs(x) < 1
        small = x[near]
        result[near] = small * excess(small * small) / np.cosh(small)
        return result

    return Form(value, lambda x: np.tanh(x) ** 2)


@_form("penalized_tanh")
def _penalized_tanh(negative_slope: float = 0.25) -> Form:
    a = negative_slope
    return Form(
        lambda x: np.tanh(x) * np.where(x > 0, 1.0, a),
        lambda x: _sech2(x) * np.where(x > 0, 1.0, a),
    )


# --- built from the exponential -------------------------------------------------------------------


@_form("elu")
def _elu(alpha: float = 1.0) -> Form:
    return Form(
        lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1.0, alpha * np.exp(np.minimum(x, 0))),
    )


@_form("celu")
def _celu(alpha: float = 1.0) -> Form:
    _positive("celu alpha", alpha)
    return Form(
        lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)),
        lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0) / alpha)),
    )


@_form("selu")
def _selu() -> Form:
    """Klambauer et al. 2017: mean 0 and variance 1 are a fixed point."""
    scale, alpha = 1.0507009873554804934, 1.6732632423543772848
    value, derivative = _elu(alpha)
    return Form(lambda x: scale * value(x), lambda x: scale * derivative(x))


@_form("exp")
def _exp() -> Form:
    return Form(np.exp, np.exp)


@_form("sinh")
def _sinh() -> Form:
    return Form(np.sinh, np.cosh)


@_form("gaussian")
def _gaussian() -> Form:
    return Form(lambda x: np.exp(-x * x), lambda x: -2 * x * np.exp(-x * x))


# --- built from the normal distribution -----------------------------------------------------------


@_form("erf")
def _erf() -> Form:
    return Form(special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x))


@_form("gelu")
def _gelu(approximate: str = "none") -> Form:
    if approximate == "tanh":
        return _gelu_tanh()
    if approximate != "none":
        raise ArgumentError("gelu approximate", expected="'none' or 'tanh'", got=repr(approximate))
    return Form(lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * _density(x))


def _gelu_tanh() -> Form:
    """(1 + tanh u)/2 is the logistic function of 2u, which keeps the left tail accurate."""

    def twice_u(x: Array) -> Array:
        result: Array = 2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)
        return result

    def derivative(x: Array) -> Array:
        u, slope = twice_u(x), 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        result: Array = special.expit(u) * (1 + x * slope * special.expit(-u))
        return result

    return Form(lambda x: x * special.expit(twice_u(x)), derivative)


# --- algebraic and periodic -----------------------------------------------------------------------


@_form("softsign")
def _softsign() -> Form:
    return Form(lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2.0)


@_form("arctan")
def _arctan() -> Form:
    return Form(np.arctan, lambda x: 1 / (1 + x * x))


@_form("asinh")
def _asinh() -> Form:
    return Form(np.arcsinh, lambda x: 1 / np.hypot(1, x))


@_form("isru")
def _isru(alpha: float = 1.0) -> Form:
    _positive("isru alpha", alpha)
    return Form(lambda x: x / np.sqrt(1 + alpha * x * x), lambda x: (1 + alpha * x * x) ** -1.5)


@_form("isrlu")
def _isrlu(alpha: float = 1.0) -> Form:
    value, derivative = _isru(alpha)
    return Form(
        lambda x: np.where(x > 0, x, value(x)),
        lambda x: np.where(x > 0, 1.0, derivative(x)),
    )


@_form("bent_identity")
def _bent_identity() -> Form:
    """(sqrt(x^2 + 1) - 1)/2 + x, the difference written as a quotient."""
    return Form(
        lambda x: x * x / (2 * (np.hypot(1, x) + 1)) + x,
        lambda x: x / (2 * np.hypot(1, x)) + 1,
    )


@_form("squareplus")
def _squareplus(b: float = 4.0) -> Form:
    _positive("squareplus b", b)

    def value(x: Array) -> Array:
        reach = np.hypot(math.sqrt(b), x) + np.abs(x)
        result: Array = np.where(x > 0, reach / 2, b / (2 * reach))
        return result

    return Form(value, lambda x: value(x) / np.hypot(math.sqrt(b), x))


@_form("sin")
def _sin(frequency: float = 1.0) -> Form:
    w = frequency
    return Form(lambda x: np.sin(w * x), lambda x: w * np.cos(w * x))


@_form("cos")
def _cos(frequency: float = 1.0) -> Form:
    w = frequency
    return Form(lambda x: np.cos(w * x), lambda x: -w * np.sin(w * x))


@_form("snake")
def _snake(a: float = 1.0) -> Form:
    """x + sin^2(a x) / a."""
    _positive("snake a", a)
    return Form(lambda x: x + np.sin(a * x) ** 2 / a, lambda x: 1 + np.sin(2 * a * x))


@_form("sinc")
def _sinc() -> Form:
    """sin(pi x)/(pi x), as numpy.sinc and torch.sinc have it."""

    def derivative(x: Array) -> Array:
        inside = np.abs(x) < 1 / math.pi
        near = excess(-((math.pi * np.where(inside, x, 0.0)) ** 2))
        slope = np.where(inside, near, np.cos(math.pi * x) - np.sinc(x))
        result: Array = np.divide(slope, x, out=np.zeros_like(x), where=x != 0)
        return result

    return Form(np.sinc, derivative)
