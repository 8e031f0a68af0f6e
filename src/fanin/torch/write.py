"""Drawn values into torch tensors, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fanin import draw
from fanin.errors import ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS = {1: torch.uint8, 2: torch.uint16}


@torch.no_grad()
def write_(
    tensor: torch.Tensor, distribution: draw.Distribution, *, seed: int, name: str
) -> torch.Tensor:
    """Draw a tensor's values in place, as a function of (seed, name, position) alone.

    Args:
        tensor: of any floating type.
        distribution: what to draw.
        seed: an integer in [0, 2^64).
        name: the tensor's full name in the model.

    Returns:
        `tensor`.

    Raises:
        ArgumentTypeError: the tensor's type cannot be drawn.

    Example:
        >>> w = write_(torch.empty(3, 2, dtype=torch.bfloat16), draw.Normal(), seed=0, name="w")
        >>> bool(w.isfinite().all())
        True
    """
    if not tensor.is_floating_point():
        raise ArgumentTypeError("write_(tensor)", expected="a floating type", got=str(tensor.dtype))
    plain = tensor.detach()
    draw.fill(_array(plain), distribution, seed=seed, name=name, dtype=str(plain.dtype)[6:])
    return tensor


def _array(tensor: torch.Tensor) -> NDArray[np.generic]:  # type: ignore[name-defined]  # noqa: F821
    """The tensor's memory as a NumPy array; narrow types as their bits."""
    narrow = tensor.dtype not in (torch.float32, torch.float64)
    return (tensor.view(_BITS[tensor.element_size()]) if narrow else tensor).numpy()
