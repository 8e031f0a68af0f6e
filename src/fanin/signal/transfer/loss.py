"""Losses: what they are at the start, and the gradient that they send back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fanin.signal.state import CLOSED, State
from fanin.signal.table import Table, add
from fanin.signal.transfer.call import Call, Gradients, backward, forward

_SCALARS = {0: "none", 1: "mean", 2: "sum"}


@forward("nll_loss_forward", "nll_loss", "nll_loss2d_forward", "nll_loss2d")
def _nll(call: Call) -> list[State] | State:
    """Minus the log-probability of the target: a pick, then a mean."""
    x = call.first
    picked = x.table.coarse((1,)).gather(1, np.array([0])).squeeze(1) * -1.0
    reduction = _SCALARS[int(call.node.get("reduction", 1))]
    dims = tuple(range(len(picked.dims)))
    if reduction != "none" and dims:
        picked = picked.sum(dims) if reduction == "sum" else picked.average_over(dims)
    state = State(picked, CLOSED, call.token(), nonnegative=True, roots=x.roots)
    if len(call.node.outputs) == 1:
        return state
    weight = float(prod(x.shape) / x.shape[1])
    return [state, State(Table.constant((), weight), CLOSED, call.token(1))]


@backward("nll_loss_forward", "nll_loss", "nll_loss2d_forward", "nll_loss2d")
def _nll_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """The gradient at the logits' log-softmax: softmax minus one-hot, written for the pair.

    The rule of log-softmax passes its gradient on, so the whole is put here:
    E[(p - y)^2] = (1 - 1/C)/C (+ the spread of p, second order) for each logit.
    """
    g = grads[0]
    if g is None:
        return
    x = call.first
    classes = x.shape[1]
    count = prod(x.shape) // classes
    scale = g.second_moment
    if _SCALARS[int(call.node.get("reduction", 1))] == "mean":
        scale /= count**2
    table = Table.iid(x.shape, 0.0, scale * (1 - 1 / classes) / classes)
    if classes > 1:
        (a,) = table.axes((1,))
        pairs = table.pairs.copy()
        place = tuple(1 if b == a else 0 for b in range(len(table.factors)))
        pairs[place] = -table.second_moment / (classes - 1)
        table = Table(table.dims, table.mean, pairs)
    yield call.node.inputs[0], table


@forward("mse_loss")
def _mse(call: Call) -> State:
    x, y = call.operands
    apart = add(x.table, y.table, -1.0)
    level, spread = apart.second_moment, apart.variance
    count = prod(x.shape)
    reduction = _SCALARS[int(call.node.get("reduction", 1))]
    if reduction == "none":
        return State(
            Table.iid(x.shape, level, 3 * spread**2), CLOSED, call.token(), nonnegative=True
        )
    factor = 1.0 if reduction == "mean" else count
    second = (level * factor) ** 2 * (1 + 2 / count)
    table = Table.iid((), level * factor, second)
    return State(table, CLOSED, call.token(), nonnegative=True, roots=x.roots)


@backward("mse_loss")
def _mse_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    x, y = call.operands
    apart = add(x.table, y.table, -1.0)
    scale = 2.0 * np.sqrt(g.second_moment)
    if _SCALARS[int(call.node.get("reduction", 1))] == "mean":
        scale /= prod(x.shape)
    for index in call.node.inputs:
        yield index, apart * float(scale)
