"""Taking the mean of what a layer reads out of its output, by the bias or by the weight itself."""

from __future__ import annotations

import math

import torch

from fanin.planning.plan import Centre
from fanin.torch.fans import by_group, row_sums_by


def centre_(tensor: torch.Tensor, centre: Centre, weight: torch.Tensor | None) -> None:
    """What a plan's centre asks of a tensor that was just drawn.

    A bias subtracts the mean times the row sums of its weight, part by part; a weight (no other is
    given) gets inputs that sum to zero at every tap, part by part, at the variance that it was
    drawn with.
    """
    if weight is None:
        tensor.copy_(_zero_sums(tensor, centre))
        return
    blocks, means = [weight], [centre.mean]
    if centre.parts:
        axis = centre.axes.split().index("in")
        blocks = list(_gathered(weight, axis).split(list(centre.parts), axis))
        means = list(centre.means)
    shifted = tensor.double()
    for block, mean in zip(blocks, means, strict=True):
        sums = row_sums_by(block, centre.axes, centre.groups, centre.shared_by)
        shifted = shifted - mean * sums.reshape(tensor.shape)
    tensor.copy_(shifted)


def _zero_sums(weight: torch.Tensor, centre: Centre) -> torch.Tensor:
    """The weight less its mean over the inputs at every tap, as large as before."""
    drawn, words = by_group(weight.double(), centre.axes, centre.groups)
    inputs = [i for i, word in enumerate(words) if word == "in"]
    if not centre.parts:
        return _apart(drawn, inputs).reshape(weight.shape)
    blocks = _gathered(drawn, inputs[0]).split(list(centre.parts), inputs[0])
    return torch.cat([_apart(block, inputs) for block in blocks], inputs[0])


def _apart(drawn: torch.Tensor, inputs: list[int]) -> torch.Tensor:
    """What is left of a block without its mean over the inputs, as large as it was."""
    n = math.prod(drawn.shape[i] for i in inputs)
    apart = drawn - drawn.mean(inputs, keepdim=True)
    return apart * math.sqrt(n / (n - 1))


def _gathered(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """A weight with an axis whole on every rank, since torch cuts none whose parts are uneven."""
    if not (hasattr(weight, "placements") and hasattr(weight, "redistribute")):
        return weight
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if getattr(p, "dim", None) == axis else p for p in weight.placements]
    gathered: torch.Tensor = weight.redistribute(placements=whole)
    return gathered
