"""Callables of NumPy, torch and JAX as functions of float64 arrays; no framework is imported here.

A framework that a callable needs is already loaded, so it is found in `sys.modules`. A function or
module of torch that is certainly a registered one is known by its identity, not by its name.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

from fanin.errors import ArgumentError, ArgumentTypeError, FaninError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    Array = Float[ndarray, "points"]
    Blocks = Float[ndarray, "blocks points"]
    Function = Callable[[Array], Array]

_BLOCK = 2048
_PROBE = np.array([-2.1, -1.3, -0.7, -0.2, 0.0, 0.3, 0.6, 1.1, 1.9])

# torch.nn classes, and the attributes that are parameters of the registered form.
_MODULES: dict[str, tuple[str, ...]] = {
    "CELU": ("alpha",),
    "ELU": ("alpha",),
    "GELU": ("approximate",),
    "Hardshrink": ("lambd",),
    "Hardsigmoid": (),
    "Hardswish": (),
    "Hardtanh": ("min_val", "max_val"),
    "Identity": (),
    "LeakyReLU": ("negative_slope",),
    "LogSigmoid": (),
    "Mish": (),
    "RReLU": ("lower", "upper"),
    "ReLU": (),
    "ReLU6": (),
    "SELU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Softplus": ("beta", "threshold"),
    "Softshrink": ("lambd",),
    "Softsign": (),
    "Tanh": (),
    "Tanhshrink": (),
    "Threshold": ("threshold", "value"),
}
_FUNCTIONAL = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6"
    " rrelu selu sigmoid silu softplus softshrink softsign tanh tanhshrink threshold"
)
_TORCH = "abs arctan asinh atan celu cos erf exp relu selu sigmoid sign sin sinc sinh square tanh"
_NUMPY = {
    np.abs: "abs",
    np.arcsinh: "asinh",
    np.arctan: "arctan",
    np.cos: "cos",
    np.exp: "exp",
    np.sign: "sign",
    np.sin: "sin",
    np.sinc: "sinc",
    np.sinh: "sinh",
    np.square: "square",
    np.tanh: "tanh",
    special.erf: "erf",
    special.expit: "sigmoid",
}


class Adapted(NamedTuple):
    """A callable as functions of float64 arrays; no derivative where there is no autodiff."""

    value: Function
    derivative: Function | None


def known_form(f: Callable[..., Any]) -> tuple[str, dict[str, Any]] | None:
    """The registered form that a callable certainly is, with its parameters, or None."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "nn") and isinstance(f, torch.nn.Module):
        return _known_module(f, torch)
    bare, keywords = f, {}
    if isinstance(f, functools.partial) and not f.args:
        bare, keywords = f.func, dict(f.keywords)
    name = _known_function(bare, torch)
    switches = [keywords.pop(key, False) for key in ("inplace", "training")]
    if name is None or any(switches):
        return None
    return _softplus_or(name, keywords)


def _known_function(f: Callable[..., Any], torch: Any) -> str | None:
    with contextlib.suppress(TypeError):  # an unhashable callable is none of these
        if f in _NUMPY:
            return _NUMPY[f]
    if torch is not None and hasattr(torch, "nn"):
        for space, names in ((torch.nn.functional, _FUNCTIONAL), (torch, _TORCH)):
            for name in names.split():
                if getattr(space, name, None) is f:
                    return name
    return None


def _known_module(module: Any, torch: Any) -> tuple[str, dict[str, Any]] | None:
    hooked = any(getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))
    kind = type(module)
    if hooked or getattr(torch.nn, kind.__name__, None) is not kind:
        return None
    if kind.__name__ == "PReLU":
        return "prelu", {"weight": _shared_slope(module)}
    if kind.__name__ not in _MODULES:
        return None
    attributes = {key: getattr(module, key) for key in _MODULES[kind.__name__]}
    return _softplus_or(kind.__name__, attributes)


def _softplus_or(name: str, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """torch's softplus turns linear above a threshold; from 20 on that changes less than 3e-9."""
    if name.lower() == "softplus" and parameters.pop("threshold", 20) < 20:
        return None
    return name, parameters


def _shared_slope(module: Any) -> float:
    if module.weight.numel() != 1:
        raise ArgumentError(
            "activation PReLU",
            expected="one slope that all channels share",
            got=f"{module.weight.numel()} slopes",
            fix="treat each channel as 'prelu(slope)'",
        )
    return float(module.weight.detach().item())


def adapt(f: Callable[[Any], Any], where: str) -> Adapted:
    """Finds out what kind of values a callable takes, by calling it.

    Raises:
        ArgumentError: a module with parameters, or a function of another shape or type.
        ArgumentTypeError: no kind of value works.
    """
    failures = []
    for kind in (_numpy, _torch, _jax):
        adapted = kind(f, where)
        if adapted is None:
            continue
        try:
            with np.errstate(all="ignore"):
                adapted.value(_PROBE)
        except FaninError:
            raise
        except Exception as error:  # whatever a user's function raises
            reason = (str(error).splitlines() or [""])[0][:120]
            failures.append(f"with {kind.__name__[1:]} values {type(error).__name__}: {reason}")
        else:
            return adapted
    raise ArgumentTypeError(
        where,
        expected="a function of one NumPy, torch or JAX array",
        got="; ".join(failures),
        fix="write it with array operations, such as np.where instead of if",
    )


def _float64(y: Array, x: Array, where: str) -> Array:
    """Checks what a callable gave back for float64 values."""
    if y.shape != x.shape:
        raise ArgumentError(
            where,
            expected="an elementwise function",
            got=f"values of shape {y.shape} for an argument of shape {x.shape}",
        )
    if y.dtype != np.float64:
        raise ArgumentError(
            where,
            expected="float64 values for a float64 argument",
            got=str(y.dtype),
            fix="keep the type of the argument inside the function",
        )
    return y


def _given(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"it gave back a {type(value).__module__}.{type(value).__name__}")
    return value


def _numpy(f: Callable[[Any], Any], where: str) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "nn") and isinstance(f, torch.nn.Module):
        return None

    def value(x: Array) -> Array:
        y = f(x.copy())
        return _float64(np.asarray(y if np.isscalar(y) else _given(y, np.ndarray)), x, where)

    return Adapted(value, _own_derivative(f))


def _own_derivative(f: Any) -> Function | None:
    """A method `derivative` of the callable, if it is one: it must agree with differences."""
    method, h = getattr(f, "derivative", None), 1e-6
    if method is None:
        return None
    try:
        with np.errstate(all="ignore"):
            slope = np.asarray(method(_PROBE))
            differences = (f(_PROBE + h) - f(_PROBE - h)) / (2 * h)
        agree = np.abs(slope - differences) <= 1e-4 * (1 + np.abs(differences))
    except Exception:  # another kind of derivative, such as a spline's
        return None
    fits = slope.shape == _PROBE.shape and slope.dtype == np.float64 and agree.mean() > 0.7
    return method if fits else None


def _torch(f: Callable[[Any], Any], where: str) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return None
    if isinstance(f, torch.nn.Module) and any(True for _ in f.parameters()):
        raise ArgumentError(
            where,
            expected="a module without parameters",
            got=f"{sum(p.numel() for p in f.parameters())} parameters",
            fix="pass the elementwise function alone",
        )

    def value(x: Array) -> Array:
        with torch.inference_mode(False), torch.no_grad():
            y = _given(f(torch.from_numpy(x.copy())), torch.Tensor)
            return _float64(y.detach().cpu().numpy(), x, where)

    def derivative(x: Array) -> Array:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = torch.from_numpy(x.copy()).requires_grad_()
            y = f(leaf.clone())
            if not y.requires_grad:
                return np.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True)
        return np.zeros_like(x) if slope is None else np.asarray(slope.cpu().numpy())

    return Adapted(value, derivative)


def _jax(f: Callable[[Any], Any], where: str) -> Adapted | None:
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "numpy"):
        return None

    @contextlib.contextmanager
    def float64() -> Iterator[None]:
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", before)

    def value(x: Array) -> Array:
        with float64():
            rows = [_given(f(jax.numpy.asarray(block)), jax.Array) for block in _blocks(x)]
            parts = [_float64(np.asarray(row), _blocks(x)[0], where) for row in rows]
        return np.concatenate(parts)[: len(x)]

    def derivative(x: Array) -> Array:
        with float64():
            one = jax.numpy.ones(_BLOCK)
            rows = [jax.jvp(f, (jax.numpy.asarray(block),), (one,))[1] for block in _blocks(x)]
        return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])[: len(x)]

    return Adapted(value, derivative)


def _blocks(x: Array) -> Blocks:
    """Rows of one length, since JAX compiles for each length anew; the last value fills up."""
    return np.pad(x, (0, -len(x) % _BLOCK), mode="edge").reshape(-1, _BLOCK)
