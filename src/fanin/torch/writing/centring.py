"""Taking the mean of what a layer reads out of its output, by the bias or by the weight itself."""

from __future__ import annotations

import math

import torch

from fanin.planning.plan import Centre
from fanin.torch.fans import by_group, row_sums_by


def centre_(tensor: torch.Tensor, centre: Centre, weight: torch.Tensor | None) -> None:
    """What a plan's centre asks of a tensor that was just drawn.

    A bias subtracts the mean times the row sums of its weight; a weight (no other is given) gets
    inputs that sum to zero at every tap, at the variance that it was drawn with.
    """
    if weight is None:
        tensor.copy_(_zero_sums(tensor, centre))
        return
    sums = row_sums_by(weight, centre.axes, centre.groups, centre.shared_by)
    tensor.copy_(tensor.double() - centre.mean * sums.reshape(tensor.shape))


def _zero_sums(weight: torch.Tensor, centre: Centre) -> torch.Tensor:
    """The weight less its mean over the inputs at every tap, as large as before."""
    drawn, words = by_group(weight.double(), centre.axes, centre.groups)
    inputs = [i for i, word in enumerate(words) if word == "in"]
    n = math.prod(drawn.shape[i] for i in inputs)
    apart = drawn - drawn.mean(inputs, keepdim=True)
    return (apart * math.sqrt(n / (n - 1))).reshape(weight.shape)
