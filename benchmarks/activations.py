"""The twelve activations of the tables, as a model would write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def square(x: Tensor) -> Tensor:
    """x^2."""
    return x * x


def mish_by_hand(x: Tensor) -> Tensor:
    """Mish as two functions and a product, which some tools take for three activations."""
    return x * torch.tanh(F.softplus(x))


BY_HAND = "x tanh(softplus(x))"

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "elu": F.elu,
    "mish": F.mish,
    "sin": torch.sin,
    "hardswish": F.hardswish,
    "square": square,
    BY_HAND: mish_by_hand,
}
