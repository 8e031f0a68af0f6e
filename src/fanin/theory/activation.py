"""What a nonlinearity is: its value and slope anywhere, its kinks and jumps, its scaling.

An activation comes from a name, a callable on NumPy, torch or JAX values, or a torch module. Everything
beyond value and derivative is found from the values (see `fanin.theory.landscape`), so it holds for a
user's function as for a registered one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.theory import backend, registry
from fanin.theory.landscape import Breakpoint, Landscape, survey

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from numpy.typing import ArrayLike

    Array = Float[ndarray, "*shape"]
    Function = Callable[[Array], Array]

__all__ = ["Activation", "Breakpoint", "activation", "names"]


@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """An elementwise function of a real number; make one with `activation`.

    Args:
        name: the registered name with its parameters, or the callable's own name.
        source: what it was made from.
        parameters: the parameters of a registered form; empty for a callable.
    """

    name: str
    source: Any
    parameters: dict[str, Any]
    _value: Function = field()
    _derivative: Function | None = field()

    def __call__(self, x: ArrayLike) -> Array:
        """f(x) in float64, for arrays of any shape."""
        return self._apply(self._value, x)

    def derivative(self, x: ArrayLike) -> Array:
        """f'(x) in float64; at a kink or jump, the slope of one side."""
        slope = self._derivative or self.landscape.derivative
        return self._apply(slope, x)

    @staticmethod
    def _apply(function: Function, x: ArrayLike) -> Array:
        values = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            result: Array = function(values.ravel()).reshape(values.shape)[()]
        return result

    @functools.cached_property
    def landscape(self) -> Landscape:
        """The smooth pieces of f and its breaks."""
        return survey(self)

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """Kinks and jumps, sorted by location."""
        return self.landscape.breakpoints

    @property
    def has_jumps(self) -> bool:
        return any(point.kind == "jump" for point in self.breakpoints)

    @property
    def slope_left(self) -> float:
        """The slope at 0 from the left."""
        return self._slopes[0]

    @property
    def slope_right(self) -> float:
        """The slope at 0 from the right."""
        return self._slopes[1]

    @functools.cached_property
    def _slopes(self) -> tuple[float, float]:
        """One-sided slopes; the derivative itself where it agrees with the interpolants."""
        found = self.landscape.slopes
        if self._derivative is None:
            return found
        sides = self.derivative(np.array([-1e-30, 1e-30]))
        return tuple(  # type: ignore[return-value]
            float(exact) if abs(exact - seen) <= 1e-7 * (1 + abs(seen)) else seen
            for exact, seen in zip(sides, found, strict=True)
        )

    @property
    def differentiable_at_zero(self) -> bool:
        return all(point.location != 0 for point in self.breakpoints)

    @functools.cached_property
    def homogeneity(self) -> float | None:
        """The degree p with f(t x) = t^p f(x) for all t > 0, or None."""
        x = np.concatenate([-np.logspace(-3, 3, 25), np.logspace(-3, 3, 25)])
        here, there = self(x), self(2 * x)
        alive = here != 0
        if not alive.any() or not np.isfinite(here).all() or (there[~alive] != 0).any():
            return None
        with np.errstate(all="ignore"):
            degrees = np.log2(there[alive] / here[alive])
        degree = round(float(np.median(degrees)), 9)
        return degree if np.abs(degrees - degree).max() < 1e-9 else None

    @property
    def derivative_accuracy(self) -> float:
        """The error of `derivative` relative to the largest slope nearby."""
        return 1e-14 if self._derivative is not None else 1e-10

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return activation, (self.source,)


@functools.lru_cache(maxsize=1024)
def _named(spelling: str) -> Activation:
    name, _, parameters = registry.parse(spelling)
    form = registry.FORMS[name](**parameters)
    return Activation(spelling, spelling, parameters, form.value, form.derivative)


def names() -> tuple[str, ...]:
    """The registered names, sorted.

    Example:
        >>> len(names()) >= 35
        True
    """
    return tuple(sorted(registry.FORMS))


def activation(f: str | Callable[..., Any] | Activation) -> Activation:
    """The activation that a name, a callable or a module stands for.

    Args:
        f: a name such as "gelu" or "leaky_relu(0.2)", a callable on NumPy, torch or JAX values, a torch
            module without parameters, or an `Activation`, which is returned as it is.

    Raises:
        UnknownNameError: no such name; near names are listed.
        ArgumentError: wrong parameters, or a callable that is not an elementwise real function.
        ArgumentTypeError: neither a name nor a callable.

    Example:
        >>> f = activation("leaky_relu(0.2)")
        >>> f.slope_left, f.slope_right, f.homogeneity
        (0.2, 1.0, 1.0)
    """
    if isinstance(f, Activation):
        return f
    if isinstance(f, str):
        return _named(registry.parse(f)[1])
    if not callable(f):
        raise ArgumentTypeError(
            "activation", expected="a name, a callable or a module", got=type(f).__name__
        )
    known = backend.framework_form(f)
    if known is not None:
        return activation(known)
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__name__
    adapted = backend.adapt(f, f"activation {name}")
    made = Activation(name, f, {}, adapted.value, adapted.derivative)
    _check_elementwise(made)
    return made


def _check_elementwise(f: Activation) -> None:
    """A function of each element alone, finite and the same twice."""
    x = np.linspace(-8.0, 8.0, 97)
    y = f(x)
    bad = ~np.isfinite(y)
    if bad.any():
        raise ArgumentError(
            f"activation {f.name}",
            expected="finite values",
            got=f"{y[bad][0]} at x = {x[bad][0]:g}",
        )
    if not np.allclose(f(x[20:61:2]), y[20:61:2], rtol=1e-12, atol=1e-300):
        raise ArgumentError(
            f"activation {f.name}",
            expected="an elementwise function",
            got="outputs that depend on the other elements, or on chance",
        )
