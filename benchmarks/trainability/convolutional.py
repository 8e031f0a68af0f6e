"""Plain convolutional and residual networks on images of 14 x 14, and any modules as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from benchmarks.trainability.networks import Elementwise, Norm
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fanin.reproduce.images import CLASSES

if TYPE_CHECKING:
    from jaxtyping import Float

    Inputs = Float[Tensor, "network image pixel"]
    Outputs = Float[Tensor, "network image output"]

_SIDE = 28
_AREA = (_SIDE // 4) ** 2


def _norm(kind: Norm | None, channels: int) -> nn.Module:
    """Batch norm, layer norm over channels and positions, or nothing."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


class Conv(nn.Module):
    """3 x 3 convolutions at 7 x 7 positions, an activation after each, then a linear layer.

    Args:
        channels: of every layer.
        depth: nonlinear layers.
        activation: after every convolution.
        norm: before every activation: `layer`, `batch` or none.
    """

    def __init__(
        self, channels: int, depth: int, activation: Elementwise, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        rest = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth - 1)]
        self.layers = nn.ModuleList([first, *rest])
        self.norms = nn.ModuleList(_norm(norm, channels) for _ in range(depth))
        self.head = nn.Linear(channels * _AREA, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x.view(-1, 1, _SIDE, _SIDE), 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return self.head(x.flatten(1))


class Residual(nn.Module):
    """A convolution, then blocks x + conv(f(conv(f(x)))), then a linear layer on f(x).

    Args:
        channels: of every layer.
        depth: convolutions, two in a block, and the first.
        activation: before every convolution but the first.
        norm: before every activation: `layer`, `batch` or none.
    """

    def __init__(
        self, channels: int, depth: int, activation: Elementwise, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        count = (depth - 1) // 2 * 2
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)
        )
        self.norms = nn.ModuleList(_norm(norm, channels) for _ in range(count))
        self.head = nn.Linear(channels * _AREA, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.avg_pool2d(x.view(-1, 1, _SIDE, _SIDE), 2))
        for i in range(0, len(self.layers), 2):
            inner = self.layers[i](self.activation(self.norms[i](x)))
            x = x + self.layers[i + 1](self.activation(self.norms[i + 1](inner)))
        return self.head(self.activation(x).flatten(1))


class Stacked:
    """Any modules of one shape as one stack, by `torch.func`.

    Args:
        models: with the same code; buffers count as state of each.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.base, self.count = models[0], len(models)
        named, self.buffers = stack_module_state(list(models))
        self.named = {name: p.detach() for name, p in named.items()}

    def __len__(self) -> int:
        return self.count

    @property
    def parameters(self) -> list[Tensor]:
        """Of all networks, the network first."""
        return list(self.named.values())

    def __call__(self, x: Inputs) -> Outputs:
        """Each network on its own images; norms learn their statistics where gradients are on."""
        self.base.train(torch.is_grad_enabled())
        return vmap(self._one)(self.named, self.buffers, x)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.base, (parameters, buffers), (x,))
        return out
