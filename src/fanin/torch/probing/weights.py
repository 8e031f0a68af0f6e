"""The parameters of a model and the gradients that reached them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set

import torch
from torch import nn

from fanin.torch.probing.measurement import Weight
from fanin.torch.probing.statistics import square_sum
from fanin.torch.probing.untouched import local

Gradients = Mapping[str, torch.Tensor]


def weights(model: nn.Module, squares: Mapping[str, float]) -> dict[str, Weight]:
    """Every parameter once; of a sharded one the part on this rank.

    Args:
        model: whose parameters.
        squares: mean square of each gradient that arrived.
    """
    return {name: _weight(name, p, squares.get(name)) for name, p in model.named_parameters()}


def _weight(name: str, parameter: nn.Parameter, gradient: float | None) -> Weight:
    values = local(parameter)
    size = max(values.numel(), 1)
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    real = parts if parts.is_floating_point() else parts.float()  # |w|^2 has both squares
    second = float(square_sum(real)) / size
    return Weight(
        name,
        tuple(parameter.shape),
        str(parameter.dtype).removeprefix("torch."),
        parameter.requires_grad,
        float(real.mean()) if values.numel() else 0.0,
        second,
        not math.isfinite(second),
        equal_rows(values),
        gradient,
    )


def mean_square(gradient: torch.Tensor) -> torch.Tensor:
    """Mean square of a gradient, of a sharded one of the part on this rank, on its device."""
    inside = local(gradient)
    return square_sum(inside) / max(inside.numel(), 1)


def equal_rows(matrix: torch.Tensor) -> bool:
    """Whether two or more output units start with the same weights, and stay the same for ever."""
    if matrix.dim() < 2 or len(matrix) < 2 or matrix.dim() > 5 or not matrix.numel():
        return False
    if not torch.equal(matrix[0], matrix[1]):
        return False
    return bool((matrix == matrix[:1]).all()) and bool(matrix[0].any())


def never_trains(
    model: nn.Module, zero: Set[str], gradients: Gradients, again: Callable[[], Gradients]
) -> tuple[str, ...]:
    """Zero weights that get no gradient whatever the others do: a closed pair of gates.

    A single gate at zero has a gradient and opens after one step, which may open others behind
    it. So gates with a gradient are opened and the gradients taken again, until nothing changes.

    Args:
        model: whose parameters; `untouched` puts their values back.
        zero: names of the parameters that are all zero.
        gradients: of the run that was measured.
        again: takes the gradients of another run.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and p.dim() >= 2}
    closed = {n for n in zero if n in trainable and n in gradients and not _any(gradients[n])}
    opened: set[str] = set()
    while closed:
        gates = {
            n: p
            for n, p in model.named_parameters()
            if n in gradients and n in zero and n not in opened and n not in closed
        }
        if not gates:
            break
        with torch.no_grad():
            for name, gate in gates.items():
                slope = gradients[name]
                gate.sub_(slope / slope.abs().max().clamp_min(torch.finfo(slope.dtype).tiny))
        opened |= set(gates)
        gradients = again()
        closed = {n for n in closed if n in gradients and not _any(gradients[n])}
    return tuple(n for n in trainable if n in closed)


def _any(gradient: torch.Tensor) -> bool:
    return bool(local(gradient).any())
