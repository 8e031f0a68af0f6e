"""Callables of NumPy, torch and JAX as functions of float64 arrays; no framework is imported here.

A framework that a callable needs is already loaded, so it is found in `sys.modules`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fanin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Array = Float[ndarray, "points"]
    Function = Callable[[Array], Array]


class Adapted(NamedTuple):
    """A callable as functions of float64 arrays; no derivative where there is no autodiff."""

    value: Function
    derivative: Function | None


def adapt(f: Callable[[Any], Any], where: str) -> Adapted:
    """Finds out what kind of values a callable takes, by calling it."""
    probe = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    failures = []
    for kind in (_numpy, _torch, _jax):
        adapted = kind(f, where)
        if adapted is None:
            continue
        try:
            adapted.value(probe)
        except (ArgumentError, ArgumentTypeError):
            raise
        except Exception as error:
            failures.append(f"{kind.__name__[1:]}: {type(error).__name__}: {error}")
        else:
            return adapted
    raise ArgumentTypeError(
        where,
        expected="a function of one NumPy, torch or JAX array",
        got="; ".join(failures),
        fix="write it with array operations, such as np.where instead of if",
    )


def _float64(y: Any, x: Array, where: str) -> Array:
    """Checks what a callable gave back for float64 values."""
    result = np.asarray(y)
    if result.shape != x.shape:
        raise ArgumentError(
            where,
            expected=f"an elementwise function, of shape {x.shape} for shape {x.shape}",
            got=f"shape {result.shape}",
        )
    if result.dtype != np.float64:
        raise ArgumentError(
            where,
            expected="float64 values for float64 values",
            got=str(result.dtype),
            fix="keep the type of the argument inside the function",
        )
    return result


def _numpy(f: Callable[[Any], Any], where: str) -> Adapted | None:
    module = (getattr(type(f), "__module__", "") or "").partition(".")[0]
    if module == "torch" or getattr(f, "__module__", None) == "torch.nn.functional":
        return None

    def value(x: Array) -> Array:
        y = f(x.copy())
        if not isinstance(y, (np.ndarray, np.generic, float, int)):
            raise TypeError(f"gave back {type(y).__module__}.{type(y).__name__}")
        return _float64(y, x, where)

    return Adapted(value, None)


def _torch(f: Callable[[Any], Any], where: str) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "autograd"):
        return None

    def value(x: Array) -> Array:
        with torch.inference_mode(False), torch.no_grad():
            return _float64(f(torch.from_numpy(x.copy())).numpy(), x, where)

    def derivative(x: Array) -> Array:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = torch.from_numpy(x.copy()).requires_grad_()
            y = f(leaf)
            if not y.requires_grad:
                return np.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True)
        return np.zeros_like(x) if slope is None else np.asarray(slope.numpy())

    return Adapted(value, derivative)


def _jax(f: Callable[[Any], Any], where: str) -> Adapted | None:
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    from importlib import import_module

    x64 = import_module("jax.experimental").enable_x64

    def value(x: Array) -> Array:
        with x64():
            return _float64(f(jax.numpy.asarray(x)), x, where)

    def derivative(x: Array) -> Array:
        with x64():
            _, slope = jax.jvp(f, (jax.numpy.asarray(x),), (jax.numpy.ones_like(x),))
            return np.asarray(slope, dtype=np.float64)

    return Adapted(value, derivative)


def framework_form(f: Any) -> str | None:
    """The registered name of a torch function or module, where it is certainly the same function."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return None
    if isinstance(f, functools.partial):
        return None
    return None
