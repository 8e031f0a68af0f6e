"""The names of activations: spellings, aliases and parameters, as in `leaky_relu(0.2)`."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
import re
from typing import Any

from fanin.errors import ArgumentError, UnknownNameError
from fanin.theory.forms import FORMS

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


def _key(name: str) -> str:
    """What is compared: without case, blanks, hyphens, underscores and module path."""
    return re.sub(r"[\s_\-]", "", name.rpartition(".")[2]).lower()


@functools.cache
def _spellings() -> dict[str, str]:
    """From every accepted spelling to a canonical name, which may carry arguments."""
    table = {_key(name): name for name in FORMS}
    table.update({_key(alias): target for alias, target in ALIASES.items()})
    return table


def canonical(name: str) -> str:
    """The registered name behind a spelling without arguments that is known to exist."""
    return _spellings()[_key(name)].partition("(")[0]


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
    defaults = {key: parameter.default for key, parameter in signature.parameters.items()}
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(
            f"activation {name!r}",
            expected=_spelled(name, defaults, defaults),
            got=str(error).removeprefix("got "),
        ) from error
    bound.apply_defaults()
    values = {key: _checked(name, key, bound.arguments[key], defaults[key]) for key in defaults}
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    return _spelled(name, changed, defaults), values


def _checked(name: str, key: str, value: Any, default: Any) -> Any:
    """A parameter: a word where the default is one, otherwise a finite number."""
    if isinstance(default, str):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ArgumentError(
            f"activation {name!r}, {key}", expected="a finite number", got=repr(value)
        )
    return float(value)


def _spelled(name: str, given: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The name with its arguments, by position as far as they are the first ones."""
    words, in_order = [], True
    for key in defaults:
        in_order &= key in given
        if key in given:
            value = given[key]
            short = f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, float) and float(short) != value:
                short = repr(value)
            words.append(short if in_order else f"{key}={short}")
    return f"{name}({', '.join(words)})" if words else name


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
        listed = " or ".join(dict.fromkeys(repr(_spellings()[key]) for key in near))
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
