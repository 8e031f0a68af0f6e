"""The slope of an activation where the network uses it: dead units, saturation, stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        self._function, self._args = function, args
        self._kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        size = self.at(_GRID)[1].abs()
        self.largest = float(size[300:901].max())  # over |z| <= 15
        ends = size[[0, -1]].max()
        # Powers and exponentials: "flat beside its steepest" says nothing where there is no bound.
        self.bounded = bool(size.isfinite().all() and ends <= 1.1 * self.largest)
        self.flat_tails = bool(self.largest > 0 and self._tail(size) < FLAT * self.largest)

    @staticmethod
    def _tail(size: torch.Tensor) -> float:
        return float(torch.cat([size[:50], size[-50:]]).max())

    def at(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f(z) and f'(z); z is copied first, so that an in-place function writes into nothing."""
        moved = [a.to(z) if isinstance(a, torch.Tensor) else a for a in self._args]
        with torch.enable_grad():
            point = z.detach().clone().requires_grad_()
            value = self._function(point * 1, *moved, **self._kwargs)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), slope


def look(slope: Slope, before: torch.Tensor, batch: int, channels_first: bool) -> torch.Tensor:
    r"""Share of dead units, share of saturated values, and the log-slope, as one small tensor.

    *Definition*: with g = |f'(z)| / max |f'| at sampled inputs z: a unit is dead if g < FLAT at
    each of its values; a value is saturated if g < FLAT; the log-slope is
    d log E[f^2] / d log E[z^2] = E[z f f'] / E[f^2].

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
    flat = torch.arange(width, device=table.device)
    if width > COLUMNS:
        flat = places(width, COLUMNS, table.device)
        table = table.index_select(1, flat)
    z = table.double()
    f, derivative = slope.at(z)
    low = derivative.abs() < FLAT * slope.largest
    dead = low.all(0)
    if before.dim() > 2:
        seen, where = _units(before, flat, channels_first).unique(return_inverse=True)
        alive = torch.zeros(len(seen), device=z.device).index_add_(0, where, (~dead).float())
        dead = alive == 0
    log_slope = (z * f * derivative).mean() / f.square().mean()
    shares = [dead.double().mean(), low.double().mean()]
    if not slope.bounded:
        shares = [torch.full_like(log_slope, torch.nan)] * 2
    return torch.stack([*shares, log_slope])


def _units(before: torch.Tensor, flat: torch.Tensor, channels_first: bool) -> torch.Tensor:
    """The unit of each flat place of a sample."""
    if channels_first:
        inner = 1
        for size in before.shape[2:]:
            inner *= size
        return (flat // inner) % before.shape[1]
    return flat % before.shape[-1]
