"""Sums, means, variances and norms over axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fanin.signal.state import CLOSED, Average, State
from fanin.signal.table import Table, product
from fanin.signal.transfer.call import Call, Gradients, backward, dims_of, forward
from fanin.signal.transfer.sampled import sampled

_MANY = 16


def _dims(call: Call) -> tuple[int, ...]:
    """The dimensions that are reduced."""
    return dims_of(call.node.get("dim"), len(call.first.shape))


def _keepdim(call: Call) -> bool:
    """Whether reduced dimensions stay with size 1."""
    return bool(call.node.get("keepdim", False))


@forward("sum", "mean")
def _sum(call: Call) -> State:
    x, dims = call.first, _dims(call)
    table = x.table.sum(dims, _keepdim(call))
    count = prod(x.shape[d] for d in dims)
    if call.node.name == "mean":
        table = table * (1 / count)
    known = (x.gaussian and x.function is None) or count >= _MANY
    average = _provenance(call, x) if call.node.name == "mean" else None
    return State(
        table, CLOSED, call.token(), gaussian=known and not x.nonnegative, roots=x.roots,
        nonnegative=x.nonnegative, average=average,
    )  # fmt: skip


def _provenance(call: Call, x: State) -> Average:
    """What an average is the average of: a tensor, or the square of one."""
    node = call.graph.producer(call.node.inputs[0])
    while node is not None and node.view and node.name in ("_to_copy", "clone", "alias"):
        node = call.graph.producer(node.inputs[0])
    if node is not None:
        squared = (node.name == "pow" and node.get("exponent") == 2) or node.name == "square"
        squared = squared or (
            node.name == "mul" and len(set(node.inputs)) == 1 and len(node.inputs) == 2
        )
        if squared:
            inner = call.states[node.inputs[0]]
            return Average(frozenset({inner.token}), True, inner.table)
    return Average(frozenset({x.token}), False, x.table)


@backward("sum", "mean")
def _sum_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    x, dims = call.first, _dims(call)
    if not _keepdim(call):
        for d in dims:
            g = g.unsqueeze(d)
    if call.node.name == "mean":
        g = g * (1 / prod(x.shape[d] for d in dims))
    yield call.node.inputs[0], g._expanded(x.table.dims)


@forward("var", "std", "var_mean", "linalg_vector_norm", "norm")
def _var(call: Call) -> State | list[State]:
    x, dims, keep = call.first, _dims(call), _keepdim(call)
    norm = "norm" in call.node.name
    table = x.table if norm else x.table.centred(dims)
    count = prod(x.shape[d] for d in dims)
    average = _mean_square(x, table, dims)
    if not keep:
        for d in reversed(dims):
            average = average.squeeze(d)
    correction = call.node.get("correction", 1)
    correction = 1 if correction is None else float(correction)
    factor = count if norm else count / max(count - correction, 1e-9)
    table = average * factor
    root = norm or call.node.name == "std"
    if root:
        level = np.sqrt(table.mean)
        k = level.ndim
        pairs = np.broadcast_to(level.reshape((1,) * k + level.shape) ** 2, table.pairs.shape)
        table = Table(table.dims, level, pairs)
    tokens = frozenset({x.token, ("centred", x.token)})
    state = State(
        table, CLOSED, call.token(), nonnegative=True, roots=x.roots,
        average=Average(tokens, True, x.table),
    )  # fmt: skip
    if call.node.name == "var_mean":
        mean = State(x.table.average_over(dims, keep), CLOSED, call.token(1), roots=x.roots,
                     average=Average(frozenset({x.token}), False, x.table))  # fmt: skip
        return [state, mean]
    return state


def _mean_square(x: State, table: Table, dims: tuple[int, ...]) -> Table:
    """The average of x^2 over dimensions, kept as size 1, with the spread of a Gaussian's."""
    k = len(table.factors)
    kept = [a for a in range(k) if a not in table.axes(dims)]
    level = table.same.mean(axis=tuple(a for a in range(k) if a not in kept))
    size = (1,) * len(kept)
    pairs = np.broadcast_to(
        level.reshape(size + level.shape) ** 2, (2,) * len(kept) + level.shape
    ).copy()
    count = prod(x.shape[d] for d in dims)
    pairs[(0,) * len(kept)] *= 1 + 2 / count
    left = tuple(() if d in dims else dim for d, dim in enumerate(table.dims))
    return Table(left, level, pairs)


@backward("var", "std", "linalg_vector_norm", "norm")
def _var_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    x, dims = call.first, _dims(call)
    if not _keepdim(call):
        for d in dims:
            g = g.unsqueeze(d)
    norm = "norm" in call.node.name
    table = x.table if norm else x.table.centred(dims)
    count = prod(x.shape[d] for d in dims)
    scale = 1.0 if norm else 2.0 / max(count - 1, 1)
    if norm or call.node.name == "std":
        level = call.states[call.node.outputs[0]].second_moment ** 0.5
        scale = scale / max(level, 1e-300) * (1.0 if norm else 0.5)
    yield call.node.inputs[0], product(g, table) * scale


@forward("amax", "amin", "max", "min", "topk", "sort", "logsumexp", "cumsum", "cumprod", "prod")
def _ordered(call: Call) -> Sequence[State]:
    """Order statistics, running sums and products: run on draws."""
    return sampled(call)
