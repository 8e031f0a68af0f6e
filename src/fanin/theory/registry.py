"""The named activations: value and derivative, each accurate to a few units in the last place.

A form states the function and its derivative, nothing else: kinks, jumps, homogeneity and slopes at
zero are found from them in `fanin.theory.landscape`. Parameters carry the names that torch gives them.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

from fanin.errors import ArgumentError, UnknownNameError

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

# Other spellings; they are compared without case, underscores, hyphens and blanks.
ALIASES = {
    "absolute": "abs",
    "atan": "arctan",
    "cube": "x^3",
    "gelu_accurate": "gelu(tanh)",
    "gelu_fast": "gelu(tanh)",
    "gelu_new": "gelu(tanh)",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu(tanh)",
    "gelu_tanh": "gelu(tanh)",
    "heaviside": "step",
    "linear": "identity",
    "logistic": "sigmoid",
    "relu2": "relu^2",
    "relu_squared": "relu^2",
    "sine": "sin",
    "squared_relu": "relu^2",
    "swish": "silu",
    "x^2": "square",
}


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
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _sech2(x: Array) -> Array:
    """1 - tanh^2 without the cancellation."""
    e = np.exp(-2 * np.abs(x))
    return 4 * e / (1 + e) ** 2


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
        lambda x: np.clip(x, min_val, max_val), lambda x: _indicator((x > min_val) & (x < max_val))
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
        lambda x: np.where(np.abs(x) > lambd, x, 0.0), lambda x: _indicator(np.abs(x) > lambd)
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
        return special.expit(beta * x) * (1 + beta * x * special.expit(-beta * x))

    return Form(lambda x: x * special.expit(beta * x), derivative)


@_form("quick_gelu")
def _quick_gelu() -> Form:
    return _silu(1.702)


@_form("mish")
def _mish() -> Form:
    """tanh(softplus(x)) = w / (w + 2) with w = exp(x) (exp(x) + 2), scaled by exp(-2x) for x > 0."""

    def parts(x: Array) -> tuple[Array, Array]:
        e = np.exp(-np.abs(x))
        return np.where(x > 0, 1 + 2 * e, e * (e + 2)), np.where(x > 0, e * e, 1.0)

    def value(x: Array) -> Array:
        w, one = parts(x)
        return x * (w / (w + 2 * one))

    def derivative(x: Array) -> Array:
        w, one = parts(x)
        sech2 = 4 * one * (w + one) / (w + 2 * one) ** 2
        return w / (w + 2 * one) + x * sech2 * special.expit(x)

    return Form(value, derivative)


@_form("tanh")
def _tanh() -> Form:
    return Form(np.tanh, _sech2)


@_form("lecun_tanh")
def _lecun_tanh() -> Form:
    """1.7159 tanh(2x/3), built for f(1) = 1."""
    return Form(
        lambda x: 1.7159 * np.tanh(2 * x / 3), lambda x: 1.7159 * (2 / 3) * _sech2(2 * x / 3)
    )


@_form("tanhshrink")
def _tanhshrink() -> Form:
    # Taylor coefficients of (x - tanh x) / x^3 in x^2: 1/3, -2/15, 17/315, ...
    series = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075)
    series += (929569 / 638512875, -6404582 / 10854718875, 443861162 / 1856156927625)

    def value(x: Array) -> Array:
        small = np.clip(x, -0.15, 0.15)
        near = small**3 * np.polynomial.polynomial.polyval(small * small, series)
        return np.where(np.abs(x) < 0.15, near, x - np.tanh(x))

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
        return 2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)

    def derivative(x: Array) -> Array:
        u, slope = twice_u(x), 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return special.expit(u) * (1 + x * slope * special.expit(-u))

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
        lambda x: np.where(x > 0, x, value(x)), lambda x: np.where(x > 0, 1.0, derivative(x))
    )


@_form("bent_identity")
def _bent_identity() -> Form:
    """(sqrt(x^2 + 1) - 1)/2 + x, the difference written as a quotient."""
    return Form(
        lambda x: x * x / (2 * (np.hypot(1, x) + 1)) + x, lambda x: x / (2 * np.hypot(1, x)) + 1
    )


@_form("squareplus")
def _squareplus(b: float = 4.0) -> Form:
    _positive("squareplus b", b)

    def value(x: Array) -> Array:
        reach = np.hypot(math.sqrt(b), x) + np.abs(x)
        return np.where(x > 0, reach / 2, b / (2 * reach))

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
        t = (math.pi * np.clip(x, -0.15, 0.15)) ** 2
        series = tuple((-1) ** k * 2 * k / math.factorial(2 * k + 1) for k in range(1, 10))
        near = math.pi**2 * x * np.polynomial.polynomial.polyval(t, series)
        far = np.where(np.abs(x) < 0.15, 1.0, x)
        return np.where(np.abs(x) < 0.15, near, (np.cos(math.pi * x) - np.sinc(x)) / far)

    return Form(np.sinc, derivative)


# --- names with parameters ------------------------------------------------------------------------


def _key(name: str) -> str:
    """What is compared: without case, blanks, hyphens, underscores and module path."""
    return re.sub(r"[\s_\-]", "", name.rpartition(".")[2]).lower()


@functools.cache
def _spellings() -> dict[str, str]:
    """From every accepted spelling to a canonical name, which may carry arguments."""
    table = {_key(name): name for name in FORMS}
    table.update({_key(alias): target for alias, target in ALIASES.items()})
    return table


def _arguments(text: str, where: str) -> tuple[list[Any], dict[str, Any]]:
    """The literal arguments inside the brackets; a bare word such as `tanh` is a string."""

    def literal(node: ast.expr) -> Any:
        return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)

    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        keywords = {keyword.arg: literal(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(keywords) != len(call.keywords):
            raise ValueError("** is not a literal")
        return [literal(node) for node in call.args], keywords
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ArgumentError(
            where,
            expected="numbers or words between the brackets, as in leaky_relu(0.2)",
            got=repr(text),
        ) from error


def bind(name: str, *args: Any, **kwargs: Any) -> tuple[str, dict[str, Any]]:
    """The canonical spelling and all parameters of a registered form, checked."""
    signature = inspect.signature(FORMS[name])
    shown = f"{name}({', '.join(map(str, signature.parameters.values()))})".replace(": float", "")
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(
            f"activation {name!r}", expected=shown.replace(": str", ""), got=str(error)
        ) from error
    given = []
    for key, value in bound.arguments.items():
        default = signature.parameters[key].default
        if not isinstance(default, str):
            finite = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not finite or not math.isfinite(value):
                raise ArgumentError(
                    f"activation {name!r}, {key}", expected="a finite number", got=repr(value)
                )
            bound.arguments[key] = value = float(value)
        if value != default:
            given.append((key, f"{value:g}" if float_repr(value) else str(value)))
    bound.apply_defaults()
    first = next(iter(signature.parameters), None)
    words = [word if key == first else f"{key}={word}" for key, word in given]
    return f"{name}({', '.join(words)})" if words else name, dict(bound.arguments)


def float_repr(value: Any) -> bool:
    """Whether `%g` shows this value without loss."""
    return isinstance(value, float) and float(f"{value:g}") == value


def parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """Reads 'leaky_relu(0.2)': registered name, canonical spelling and parameters.

    Raises:
        UnknownNameError: no such name; the nearest ones are listed.
        ArgumentError: the arguments do not fit the name.
    """
    match = re.fullmatch(r"\s*([^()]*?)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    head, inner = (match[1], match[2]) if match else (text, None)
    target = _spellings().get(_key(head))
    if target is None:
        near = difflib.get_close_matches(_key(head), _spellings(), n=3, cutoff=0.5)
        listed = " or ".join(repr(_spellings()[key]) for key in near)
        raise UnknownNameError(
            "activation",
            expected="a known name",
            got=repr(text),
            fix=f"try {listed}" if listed else "see fanin.theory.activation.names()",
        )
    name, _, preset = target.partition("(")
    args, kwargs = _arguments(inner if inner and inner.strip() else preset.rstrip(")"), repr(text))
    spelling, parameters = bind(name, *args, **kwargs)
    return name, spelling, parameters
