"""Plain networks as modules, and many of them as one stack that trains in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.reproduce.images import CLASSES
from fanin.reproduce.networks import Stack

if TYPE_CHECKING:
    from jaxtyping import Float

    Inputs = Float[Tensor, "network image input"]
    Outputs = Float[Tensor, "network image output"]

Norm = Literal["layer", "batch"]
Elementwise = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """Linear layers with an activation between them, and a norm before it if one is named.

    Args:
        inputs: numbers in an image.
        width: units of a layer.
        depth: nonlinear layers.
        activation: between the layers.
        norm: `layer`, `batch` or none.
    """

    def __init__(
        self, inputs: int, width: int, depth: int, activation: Elementwise, norm: Norm | None = None
    ) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth, CLASSES]
        self.activation, self.norm = activation, norm
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        kind = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, None: nn.Identity}[norm]
        self.norms = nn.ModuleList(kind(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = self.activation(norm(layer(x)))
        return self.layers[-1](x)


class NormedStack:
    """Plain networks with norms, one after another in the first axis of every array.

    Args:
        models: of one shape.
    """

    def __init__(self, models: Sequence[Plain]) -> None:
        self.inner = Stack.of([list(m.layers) for m in models], models[0].activation)
        norms = list(zip(*[m.norms for m in models], strict=True))
        with torch.no_grad():
            self.gains = [torch.stack([n.weight[None] for n in each]) for each in norms]
            self.shifts = [torch.stack([n.bias[None] for n in each]) for each in norms]
        self.kind = models[0].norm
        flat = self.gains[0].numel()
        self.running = [(torch.zeros(flat), torch.ones(flat)) for _ in norms]

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def parameters(self) -> list[Tensor]:
        """All weights and biases, then the norms' own."""
        return [*self.inner.parameters, *self.gains, *self.shifts]

    def __call__(self, x: Inputs) -> Outputs:
        """Each network on its own images."""
        *hidden, last = zip(self.inner.weights, self.inner.biases, strict=True)
        for i, (weight, bias) in enumerate(hidden):
            x = self.inner.activation(self._normed(i, torch.baddbmm(bias, x, weight)))
        return torch.baddbmm(last[1], x, last[0])

    def _normed(self, i: int, x: Tensor) -> Tensor:
        gain, shift = self.gains[i], self.shifts[i]
        if self.kind == "layer":
            return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), gain)
        # The features of all networks side by side are the features of one batch norm; it takes
        # the statistics of the batch where gradients are on, and the running ones where not.
        flat = x.transpose(0, 1).reshape(x.shape[1], -1)
        learns = torch.is_grad_enabled()
        flat = F.batch_norm(flat, *self.running[i], gain.flatten(), shift.flatten(), learns)
        return flat.view(x.shape[1], len(x), -1).transpose(0, 1)


def stacked(models: Sequence[Plain]) -> Stack | NormedStack:
    """The fastest form of these networks: batched matrix products, written out."""
    if models[0].norm is None:
        return Stack.of([list(m.layers) for m in models], models[0].activation)
    return NormedStack(models)
