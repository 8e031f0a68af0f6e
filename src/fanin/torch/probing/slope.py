"""The slope of an activation where the network uses it: dead units, saturation, stability."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fanin.torch.probing.statistics import places

SAMPLES = 32
"""At most this many samples of the batch are looked at."""
COLUMNS = 128
"""At most this many values of each sample are looked at."""
FLAT = 0.01
"""A slope below this share of the activation's largest passes no gradient worth the name."""

_GRID = torch.linspace(-30.0, 30.0, 1201, dtype=torch.float64)


class Slope:
    """One activation call, ready to be called again beside the model.

    Args:
        function: what was called.
        args: its positional arguments after the input.
        kwargs: its keyword arguments.
    """

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        # As they are now: an optimizer may write over a parameter before the slope is looked at.
        self._function = function
        self._args = tuple(_copy(a) for a in args)
        self._kwargs = {k: _copy(v) for k, v in kwargs.items() if k != "inplace"}
        size = self.at(_GRID)[1].abs()
        self.largest = float(size[300:901].max())  # over |z| <= 15
        ends = size[[0, -1]].max()
        # Powers and exponentials: "flat beside its steepest" says nothing where there is no bound.
        bounded = bool(size.isfinite().all() and ends <= 1.1 * self.largest)
        steep = size[[598, 602]] >= FLAT * self.largest  # just below and just above 0
        # What is flat on both sides of 0 is flat because its input is small, which others tell.
        self.tells = bounded and bool(steep.any())
        # What is flat on one side, such as ReLU6, is flat for half of all values by its nature.
        flat_tails = self.largest > 0 and self._tail(size) < FLAT * self.largest
        self.flat_tails = flat_tails and bool(steep.all())

    @staticmethod
    def _tail(size: torch.Tensor) -> float:
        return float(torch.cat([size[:50], size[-50:]]).max())

    def at(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f(z) and f'(z); z is copied first, so that an in-place function writes into nothing."""
        args = [a.to(z) if isinstance(a, torch.Tensor) else a for a in self._args]
        named = {k: a.to(z) if isinstance(a, torch.Tensor) else a for k, a in self._kwargs.items()}
        # A checkpoint around the activation counts what is saved, and is not to see this.
        apart = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        with torch.enable_grad(), apart:
            point = z.detach().clone().requires_grad_()
            value = self._function(point * 1, *args, **named)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), slope


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    """What autograd saves, saved as it is."""
    return tensor


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class Glimpse:
    """A few values that an activation reads, kept until all of its kind are looked at together.

    Args:
        slope: the activation.
        z: the values in float64, samples by places.
        units: the unit of each place, counted from 0; None where places are units.
        count: number of units among them.
    """

    slope: Slope
    z: torch.Tensor
    units: torch.Tensor | None
    count: int


def glimpse(slope: Slope, before: torch.Tensor, batch: int, channels_first: bool) -> Glimpse:
    """Values at random places of some samples.

    Args:
        slope: the activation.
        before: its input, with the batch first.
        batch: number of samples.
        channels_first: whether units lie on axis 1 of three or more, else on the last.
    """
    table = before.detach().reshape(batch, -1)
    rows = min(batch, SAMPLES)
    table = table[:: batch // rows][:rows]
    width = table.shape[1]
    if width > COLUMNS:
        table = table.index_select(1, places(width, COLUMNS, table.device))
    units, count = None, table.shape[1]
    if before.dim() > 2:
        units, count = _units(tuple(before.shape[1:]), channels_first)
        units = units.to(table.device)
    return Glimpse(slope, table.to(torch.float64, copy=True), units, count)


def look(glimpses: Sequence[Glimpse]) -> list[torch.Tensor]:
    r"""Shares of dead units and of saturated values, and the log-slope, as a tensor for each.

    *Definition*: with g = |f'(z)| / max |f'| at the values z: a unit is dead if g < FLAT at each
    of its values; a value is saturated if g < FLAT; the log-slope is
    d log E[f^2] / d log E[z^2] = E[z f f'] / E[f^2].

    Args:
        glimpses: of any activations; each is called once for all that it reads.
    """
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for i, seen in enumerate(glimpses):
        groups.setdefault((id(seen.slope), seen.z.device), []).append(i)
    found: dict[int, torch.Tensor] = {}
    for indices in groups.values():
        read = [glimpses[i].z.reshape(-1) for i in indices]
        values, slopes = glimpses[indices[0]].slope.at(torch.cat(read))
        sizes = [len(z) for z in read]
        for i, f, slope in zip(indices, values.split(sizes), slopes.split(sizes), strict=True):
            found[i] = _shares(glimpses[i], f, slope)
    return [found[i] for i in range(len(glimpses))]


def _shares(seen: Glimpse, f: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The three numbers of `look` for one call of an activation."""
    log_slope = torch.dot(seen.z.reshape(-1) * f, slope) / torch.dot(f, f)
    if not seen.slope.tells:
        nan = torch.full_like(log_slope, torch.nan)
        return torch.stack([nan, nan, log_slope])
    low = slope.abs() < FLAT * seen.slope.largest
    dead = low.reshape(seen.z.shape).all(0)
    if seen.units is not None:
        alive = torch.zeros(seen.count, device=low.device)
        dead = alive.index_add_(0, seen.units, (~dead).float()) == 0
    return torch.stack([dead.double().mean(), low.double().mean(), log_slope])


@functools.lru_cache(maxsize=256)
def _units(shape: tuple[int, ...], channels_first: bool) -> tuple[torch.Tensor, int]:
    """The unit of each place that is looked at, counted from 0, and how many there are."""
    width = math.prod(shape)
    flat = places(width, COLUMNS, torch.device("cpu")) if width > COLUMNS else torch.arange(width)
    units = (flat // math.prod(shape[1:])) % shape[0] if channels_first else flat % shape[-1]
    seen, where = units.unique(return_inverse=True)
    return where, len(seen)
