"""The law that an initializer was asked for, from its name and arguments."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fanin import draw
from fanin.planning.plan import Values, moments

if TYPE_CHECKING:
    from fanin.torch.provenance.stack import Site


@dataclass(frozen=True)
class Asked:
    """A distribution, as a call asked for it.

    Args:
        law: `normal`, `uniform`, `truncated normal`, `constant`, `orthogonal`.
        mean: of the law.
        std: as the caller names it; for a truncated normal not that of what comes out.
        low, high: bounds of a uniform or truncated law.
        fan: terms that the initializer counted, where it did.
        mode: which fan it counted.
    """

    law: str
    mean: float = 0.0
    std: float | None = None
    low: float | None = None
    high: float | None = None
    fan: float | None = None
    mode: str = ""

    @property
    def true_std(self) -> float | None:
        """The standard deviation of what comes out."""
        if self.law != "truncated normal" or not self.std:
            return self.std
        a, b = ((bound - self.mean) / self.std for bound in (self.low or 0.0, self.high or 0.0))
        return self.std * math.sqrt(_truncated_variance(a, b))

    def __str__(self) -> str:
        if self.law == "constant":
            return f"{self.mean:g}"
        if self.law == "uniform":
            low, high = self.low or 0.0, self.high or 0.0
            return f"U(±{high:.4g})" if low == -high else f"U({low:.4g}, {high:.4g})"
        if self.law == "orthogonal":
            return f"orthogonal, std {self.std:.4g}"
        cut = f" cut to [{self.low:.4g}, {self.high:.4g}]" if self.law == "truncated normal" else ""
        return f"N({self.mean:g}, {self.std:.4g}²){cut}"


def uniform(low: float, high: float, **more: Any) -> Asked:
    """A uniform law."""
    return Asked("uniform", (low + high) / 2, (high - low) / math.sqrt(12), low, high, **more)


def constant(value: float) -> Asked:
    """All elements alike."""
    return Asked("constant", value, 0.0)


def of_values(values: Values, shape: tuple[int, ...]) -> Asked:
    """The law of what fanin draws; its stds are those of what comes out."""
    mean, std = moments(values, shape)
    if isinstance(values, draw.Constant):
        return constant(mean)
    if isinstance(values, draw.Uniform):
        return uniform(values.low, values.high)
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(values).__name__).lower()
    return Asked("orthogonal" if "orthogonal" in words else words.split()[-1], mean, std)


def asked_of(
    name: str, site: Site, target: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Asked | None:
    """The law of a call, by the initializer around it if there is one, else by the call itself."""
    initializer = site.initializer.rpartition(".")[2]
    values = site.arguments
    if initializer and not values:  # torch dispatched the initializer itself
        values = _bound(initializer, args, kwargs)
    if not initializer:
        initializer, values = _TENSOR_NAMES.get(name, name), _bound(name, args, kwargs)
    make = _LAWS.get(initializer)
    try:
        return None if make is None else make(values, target)
    except (TypeError, ValueError, KeyError):
        return None


_TENSOR_NAMES = {
    "fill_": "constant_",
    "zero_": "zeros_",
    "zeros": "zeros_",
    "ones": "ones_",
    "zeros_like": "zeros_",
    "ones_like": "ones_",
    "new_zeros": "zeros_",
    "new_ones": "ones_",
    "randn": "randn",
    "randn_like": "randn",
    "rand": "rand",
    "rand_like": "rand",
}
_PLACES = {
    "normal_": ("tensor", "mean", "std"),
    "uniform_": ("tensor", "a", "b"),
    "constant_": ("tensor", "val"),
    "fill_": ("tensor", "val"),
    "trunc_normal_": ("tensor", "mean", "std", "a", "b"),
    "kaiming_uniform_": ("tensor", "a", "mode", "nonlinearity"),
    "kaiming_normal_": ("tensor", "a", "mode", "nonlinearity"),
    "xavier_uniform_": ("tensor", "gain"),
    "xavier_normal_": ("tensor", "gain"),
    "orthogonal_": ("tensor", "gain"),
}


def _bound(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; `from` and `to` of Tensor.uniform_ are a and b."""
    named = dict(zip(_PLACES.get(name, ()), args, strict=False)) | kwargs
    if "from" in named or "to" in named:
        named |= {"a": named.get("from", 0.0), "b": named.get("to", 1.0)}
    return {k: v for k, v in named.items() if isinstance(v, int | float | str)}


def _normal(v: dict[str, Any], w: torch.Tensor) -> Asked:
    return Asked("normal", float(v.get("mean", 0.0)), float(v.get("std", 1.0)))


def _truncated(v: dict[str, Any], w: torch.Tensor) -> Asked:
    low, high = float(v.get("a", -2.0)), float(v.get("b", 2.0))
    return Asked("truncated normal", float(v.get("mean", 0.0)), float(v.get("std", 1.0)), low, high)


def _kaiming(v: dict[str, Any], w: torch.Tensor) -> tuple[float, float, str]:
    mode = str(v.get("mode", "fan_in"))
    fan = torch.nn.init._calculate_correct_fan(w, mode)
    slope = v.get("a", 0)
    gain = torch.nn.init.calculate_gain(v.get("nonlinearity", "leaky_relu"), slope)
    return gain / math.sqrt(fan), fan, mode


def _kaiming_normal(v: dict[str, Any], w: torch.Tensor) -> Asked:
    std, fan, mode = _kaiming(v, w)
    return Asked("normal", 0.0, std, fan=fan, mode=mode)


def _kaiming_uniform(v: dict[str, Any], w: torch.Tensor) -> Asked:
    std, fan, mode = _kaiming(v, w)
    return uniform(-std * math.sqrt(3), std * math.sqrt(3), fan=fan, mode=mode)


def _xavier(v: dict[str, Any], w: torch.Tensor) -> tuple[float, float]:
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(w)
    return float(v.get("gain", 1.0)) * math.sqrt(2 / (fan_in + fan_out)), (fan_in + fan_out) / 2


def _xavier_normal(v: dict[str, Any], w: torch.Tensor) -> Asked:
    std, fan = _xavier(v, w)
    return Asked("normal", 0.0, std, fan=fan, mode="fan_avg")


def _xavier_uniform(v: dict[str, Any], w: torch.Tensor) -> Asked:
    std, fan = _xavier(v, w)
    return uniform(-std * math.sqrt(3), std * math.sqrt(3), fan=fan, mode="fan_avg")


def _orthogonal(v: dict[str, Any], w: torch.Tensor) -> Asked:
    rows = len(w)
    columns = w.numel() // rows
    return Asked("orthogonal", 0.0, float(v.get("gain", 1.0)) / math.sqrt(max(rows, columns)))


_LAWS = {
    "normal_": _normal,
    "randn": lambda v, w: Asked("normal", 0.0, 1.0),
    "uniform_": lambda v, w: uniform(float(v.get("a", 0.0)), float(v.get("b", 1.0))),
    "rand": lambda v, w: uniform(0.0, 1.0),
    "trunc_normal_": _truncated,
    "constant_": lambda v, w: constant(float(v["val"])),
    "zeros_": lambda v, w: constant(0.0),
    "ones_": lambda v, w: constant(1.0),
    "kaiming_normal_": _kaiming_normal,
    "kaiming_uniform_": _kaiming_uniform,
    "xavier_normal_": _xavier_normal,
    "xavier_uniform_": _xavier_uniform,
    "orthogonal_": _orthogonal,
}


def _truncated_variance(a: float, b: float) -> float:
    """Variance of a standard normal cut to [a, b]."""

    def density(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    mass = 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))
    if mass <= 0:
        return 1.0
    mean = (density(a) - density(b)) / mass
    return 1 + (a * density(a) - b * density(b)) / mass - mean * mean
