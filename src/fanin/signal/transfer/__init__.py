"""How each kind of operation changes a state, forward and backward: one file a family."""

from __future__ import annotations

from fanin.signal.transfer import (
    attention,
    convolution,
    embedding,
    fourier,
    linear,
    loss,
    mask,
    maxima,
    modulus,
    norm,
    pointwise,
    pool,
    random,
    recurrent,
    reduce,
    sampled,
    shape,
)
from fanin.signal.transfer.call import BACKWARD, FORWARD, Call, backward, forward

__all__ = ["BACKWARD", "FORWARD", "Call", "backward", "forward"]

_FAMILIES = (
    attention, convolution, embedding, fourier, linear, loss, mask, maxima, modulus, norm,
    pointwise, pool, random, recurrent, reduce, sampled, shape,
)  # fmt: skip
