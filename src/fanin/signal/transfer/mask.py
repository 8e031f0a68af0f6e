"""Masks: entries of attention logits that a softmax does not see."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from fanin.signal.state import CLOSED, Mask, State
from fanin.signal.table import Table, add, product
from fanin.signal.transfer.call import Call, Gradients, backward, broadcast, forward, reduced_to

HIDDEN = -30.0  # an added number below this hides an entry from a softmax
SLIGHT = 0.1  # the share of a variance that leaves a Gaussian one


def masked(call: Call) -> State | None:
    """Logits with a mask added or filled in: the moments stay those of the seen entries."""
    if call.node.name == "where":
        return _masked_where(call)
    if len(call.operands) != 2:
        return None
    first, second = call.operands
    if call.node.name == "add":
        for logits, mask in ((first, second), (second, first)):
            if (found := hidden(logits, mask, call.token())) is not None:
                return found
    if call.node.name == "masked_fill" and second.data is not None:
        fill = call["value"]
        fill = fill.value if isinstance(fill, State) else float(fill)
        if fill is not None and fill < HIDDEN:
            state = replace(broadcast(first, call.shape), token=call.token())
            return replace(state, allowed=Mask(~second.data.astype(bool), fill))
    return None


def hidden(logits: State, mask: State, token: Hashable) -> State | None:
    """Logits with a known mask added; None where it is none."""
    data = mask.data
    if data is None or logits.data is not None or np.min(data, initial=0) > HIDDEN:
        return None
    keep, seen = data > HIDDEN, added(mask)
    assert seen is not None
    state = State(add(logits.table, seen), CLOSED, token, roots=logits.roots)
    plain = logits.gaussian and seen.variance <= SLIGHT * logits.table.variance
    return replace(state, gaussian=plain, allowed=Mask(keep, float(data.min())))


def added(mask: State) -> Table | None:
    """What a bias or mask adds to the logits that it leaves to be seen; None: nothing."""
    data = mask.data
    if data is None:
        return mask.table
    if data.dtype == bool:
        return None
    keep = data > HIDDEN
    return Table.measured(np.where(keep, data, data[keep].mean() if keep.any() else 0.0))


def _masked_where(call: Call) -> State | None:
    """where(known condition, logits, a number that hides): the same as a mask filled in."""
    condition, x, fill = call.operands
    if condition.data is None or fill.data is None or x.data is not None:
        return None
    number = float(np.max(fill.data, initial=-np.inf))
    if number >= HIDDEN:
        return None
    state = replace(broadcast(x, call.shape), token=call.token())
    return replace(state, allowed=Mask(condition.data.astype(bool), number))


@forward("masked_fill")
def _masked_fill(call: Call) -> State:
    if (found := masked(call)) is not None:
        return found
    x, mask = call["self"], call["mask"]
    value = call["value"]
    number = value.mean if isinstance(value, State) else float(value)
    keep = mask.table * -1.0 + 1.0
    table = add(product(x.table, keep), (mask.table * number).expand(call.shape))
    return State(table, CLOSED, call.token(), roots=call.roots)


@backward("masked_fill")
def _masked_fill_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    x, mask = call["self"], call["mask"]
    if x.allowed is None and mask.data is not None and call.states[call.node.outputs[0]].allowed:
        yield call.index("self"), reduced_to(g, x.shape)
    else:
        yield call.index("self"), reduced_to(product(g, mask.table * -1.0 + 1.0), x.shape)
