"""What a nonlinearity is: its value and slope anywhere, its kinks and jumps, its scaling.

An activation comes from a name, a callable on NumPy, torch or JAX values, or a torch module.
Everything beyond value and derivative is found from the values (see `fanin.theory.landscape`), so
it holds for a user's function as for a registered one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.theory import backend, registry
from fanin.theory.forms import FORMS
from fanin.theory.landscape import Breakpoint, Landscape, survey

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from numpy.typing import ArrayLike

    Array = Float[ndarray, "*shape"]
    Function = Callable[[Array], Array]

_AUTODIFF = 1e-14  # relative error of a derivative that is computed like a value
_TINY = 1e-30  # a place next to zero

__all__ = ["Activation", "Breakpoint", "activation", "names"]


@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """An elementwise function of a real number; make one with `activation`.

    Args:
        name: the registered name with its parameters, or the callable's own name.
        source: what it was made from.
        form: the registered name alone, or None for a callable.
        parameters: the parameters of a registered form; empty for a callable.
    """

    name: str
    source: Any
    form: str | None
    parameters: dict[str, Any]
    _value: Function = field()
    _derivative: Function | None = field()

    def __call__(self, x: ArrayLike) -> Array:
        """f(x) in float64, for arrays of any shape."""
        return self._apply(self._value, x)

    def derivative(self, x: ArrayLike) -> Array:
        """f'(x) in float64; at a kink or jump, the slope of one side."""
        return self._apply(self._derivative or (lambda points: self._slope(points)[0]), x)

    def derivative_error(self, x: ArrayLike) -> Array:
        """A bound on the error of `derivative`; beyond rounding only where it is numerical."""
        return self._apply(np.zeros_like if self._derivative else (lambda t: self._slope(t)[1]), x)

    def _slope(self, x: Array) -> tuple[Array, Array]:
        return self.landscape.slope(self, x)

    @staticmethod
    def _apply(function: Function, x: ArrayLike) -> Array:
        values = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            result: Array = function(values.ravel()).reshape(values.shape)[()]
        return result

    @property
    def exact_derivative(self) -> bool:
        """Whether f' is a formula or autodiff, and not numerical."""
        return self._derivative is not None

    @functools.cached_property
    def _prime(self) -> Activation:
        """f' as an activation of its own."""
        name = f"derivative of {self.name}"
        return Activation(name, self.derivative, None, {}, self.derivative, None)

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
        left, right = self.landscape.slopes
        if self._derivative is None:
            return left, right
        near = [0.0, 0.0] if self.differentiable_at_zero else [-_TINY, _TINY]
        exact = self.derivative(np.array(near))
        agree = np.abs(exact - [left, right]) <= 1e-7 * (1 + np.abs(exact))
        return (float(exact[0]), float(exact[1])) if agree.all() else (left, right)

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
        """A bound on the error of `derivative` on [-8, 8], relative to the largest slope there."""
        if self._derivative is not None:
            return _AUTODIFF
        x = self.landscape.centres
        slope, error = self._slope(x[np.abs(x) < 8])
        largest = float(np.abs(slope).max())
        return _AUTODIFF + (float(error.max()) / largest if largest else 0.0)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return activation, (self.source,)


@functools.lru_cache(maxsize=1024)
def _named(spelling: str) -> Activation:
    name, _, parameters = registry.parse(spelling)
    form = FORMS[name](**parameters)
    return Activation(spelling, spelling, name, parameters, form.value, form.derivative)


def names() -> tuple[str, ...]:
    """The registered names, sorted.

    Example:
        >>> len(names()) >= 35
        True
    """
    return tuple(sorted(FORMS))


def activation(f: str | Callable[..., Any] | Activation) -> Activation:
    """The activation that a name, a callable or a module stands for.

    Args:
        f: a name such as "gelu" or "leaky_relu(0.2)", a callable on NumPy, torch or JAX values, a
            torch module without parameters, or an `Activation`, which is returned as it is.

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
            "activation",
            expected="a name, a callable or a module",
            got=type(f).__name__,
        )
    owner = getattr(f, "__self__", None)
    if isinstance(owner, Activation) and f == owner.derivative:
        return owner._prime
    known = backend.known_form(f)
    if known is not None:
        return _named(registry.bind(registry.canonical(known[0]), **known[1])[0])
    name = getattr(f, "__name__", None) or type(f).__name__
    adapted = backend.adapt(f, f"activation {name}")
    made = Activation(name, f, None, {}, adapted.value, adapted.derivative)
    _check_elementwise(made)
    return made


def _check_elementwise(f: Activation) -> None:
    """Finite, the same twice, and a function of each element alone."""
    x = np.linspace(-8.0, 8.0, 97)
    y = f(x)
    if not np.isfinite(y).all():
        first = int(np.argmin(np.isfinite(y)))
        _reject(f, "finite values", f"{y[first]} at x = {x[first]:g}")
    if not _close(f(x), y):
        _reject(f, "the same values every time", "values that change from call to call")
    some = slice(20, 61, 2)
    if not _close(f(x[some][::-1])[::-1], y[some]):
        _reject(f, "an elementwise function", "values that depend on the other elements")


def _close(a: Array, b: Array) -> bool:
    return bool((np.abs(a - b) <= 1e-12 * np.abs(b) + 1e-13).all())


def _reject(f: Activation, expected: str, got: str) -> None:
    raise ArgumentError(f"activation {f.name}", expected=expected, got=got)
