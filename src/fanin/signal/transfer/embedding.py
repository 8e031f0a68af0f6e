"""Tables of rows looked up by index: equal indices give equal rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fanin.signal.state import ASSUMED, CLOSED, State
from fanin.signal.table import Table, product
from fanin.signal.transfer.call import Call, Gradients, backward, forward
from fanin.signal.transfer.causal import matmul, transposed
from fanin.signal.transfer.linear import contracted
from fanin.signal.transfer.sampled import sampled


def coincidence(index: np.ndarray) -> np.ndarray:
    """How often two indices are equal, by the axes of the index in which the two differ.

    Returns an array with one axis of size 2 for each axis of `index` that is longer than 1.
    """
    index = index.reshape([n for n in index.shape if n != 1])
    k = index.ndim
    _, compact = np.unique(index, return_inverse=True)
    compact = compact.reshape(index.shape).astype(np.int64)
    shares = np.empty((2,) * k)
    for mask in np.ndindex(*shares.shape):
        kept = [a for a in range(k) if not mask[a]]
        place = np.zeros(index.shape, dtype=np.int64)
        for a in kept:
            line = np.arange(index.shape[a]).reshape([-1 if b == a else 1 for b in range(k)])
            place = place * index.shape[a] + line
        _, counts = np.unique(place * (compact.max(initial=0) + 1) + compact, return_counts=True)
        rows = int(np.prod([index.shape[a] for a in kept], dtype=np.int64))
        shares[mask] = (counts.astype(float) ** 2).sum() * rows / index.size**2
    for a, n in enumerate(index.shape):
        kept_share, mixed = shares.take(0, a), shares.take(1, a)
        shares = np.stack([kept_share, (n * mixed - kept_share) / (n - 1)], a)
    return np.asarray(shares)


def looked_up(weight: Table, index: np.ndarray) -> Table:
    """Rows of a table [rows, ...] at known indices."""
    rows = weight.own(0).flat()
    equal = coincidence(index)
    j = equal.ndim
    k = len(rows.factors) - 1
    same, other = rows.pairs[0], rows.pairs[1]
    same, other = (x.reshape(x.shape[:k]) for x in (same, other))
    pairs = np.multiply.outer(equal, same) + np.multiply.outer(1 - equal, other)
    dims = tuple((n,) if n != 1 else () for n in index.shape) + rows.dims[1:]
    size = (1,) * (j + k)
    return Table(dims, np.full(size, rows.average), pairs.reshape((2,) * (j + k) + size))


def looked_up_back(g: Table, index: np.ndarray, shape: Sequence[int]) -> Table:
    """The gradient of the rows: sums over the places where the index is the same."""
    equal = coincidence(index)
    j = equal.ndim
    flat = g.refactored([(n,) if n > 1 else () for n in index.shape] + list(g.dims[index.ndim :]))
    flat = flat.flat()
    counts = np.ones(())
    for n in (n for n in index.shape if n != 1):
        counts = np.multiply.outer(counts, np.array([1.0, n - 1.0]))
    within = flat.pairs.reshape((2,) * len(flat.factors))
    total = (equal * counts)[(...,) + (None,) * (within.ndim - j)] * within
    total = total.sum(axis=tuple(range(j))) * index.size / shape[0]
    second = float(total[(0,) * total.ndim])
    return Table.iid(tuple(shape), 0.0, max(second, 0.0))


@forward("embedding")
def _embedding(call: Call) -> State:
    weight, indices = call["weight"], call["indices"]
    rows = weight.shape[0]
    if indices.data is not None:
        table, how = looked_up(weight.table, np.asarray(indices.data)), CLOSED
    else:
        table, how = _by_chance(weight.table, indices, rows), f"{ASSUMED}: uniform indices"
    return State(
        table, how, call.token(), gaussian=weight.gaussian, roots=weight.roots | indices.roots
    )


def _by_chance(weight: Table, indices: State, rows: int) -> Table:
    """Rows at unknown indices, uniform and independent."""
    table = weight.own(0).flat()
    other = table.pairs[0] / rows + table.pairs[1] * (1 - 1 / rows)
    k = len(table.factors) - 1
    lead = [n for n in indices.shape if n != 1]
    pairs = np.broadcast_to(
        other.reshape(other.shape[:k]), (2,) * len(lead) + other.shape[:k]
    ).copy()
    pairs[(0,) * len(lead)] = table.pairs[0].reshape(other.shape[:k])
    dims = tuple((n,) if n != 1 else () for n in indices.shape) + table.dims[1:]
    size = (1,) * (len(lead) + k)
    return Table(dims, np.full(size, table.average), pairs.reshape((2,) * len(size) + size))


@backward("embedding")
def _embedding_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    weight, indices = call["weight"], call["indices"]
    if indices.data is not None:
        found = looked_up_back(g, np.asarray(indices.data), weight.shape)
    else:
        uses = float(np.prod(indices.shape)) / weight.shape[0]
        found = Table.iid(weight.shape, 0.0, g.second_moment * uses)
    yield call.index("weight"), found


# --- bags: sums or averages of rows ---------------------------------------------------------------

_SUM, _MEAN = 0, 1  # modes


def _bag(call: Call) -> int | None:
    """The number of rows in each bag, if it is one number; None where it is not, or unknown."""
    offsets = call["offsets"].data
    bags, rows = call.shape[0], call["indices"].shape[0]
    if offsets is None:
        return rows // bags if rows % bags == 0 else None
    sizes = np.diff(np.append(np.asarray(offsets)[:bags], rows))
    return int(sizes[0]) if (sizes == sizes[0]).all() and sizes[0] > 0 else None


@forward("embedding_bag", "_embedding_bag")
def _bags(call: Call) -> list[State]:
    size, weights = _bag(call), call.node.get("per_sample_weights")
    if size is None or call.node["mode"] not in (_SUM, _MEAN) or weights is not None:
        return sampled(call)
    weight, indices = call["weight"], call["indices"]
    if indices.data is not None:
        rows, how = looked_up(weight.table, np.asarray(indices.data)), CLOSED
    else:
        rows, how = (
            _by_chance(weight.table, indices, weight.shape[0]),
            f"{ASSUMED}: uniform indices",
        )
    table = rows.reshape((call.shape[0], size, call.shape[1])).sum((1,))
    table = table * (1 / size) if call.node["mode"] == _MEAN else table
    roots = weight.roots | indices.roots
    return [State(table, how, call.token(), gaussian=weight.gaussian, roots=roots)]


@backward("embedding_bag", "_embedding_bag")
def _bags_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    assert g is not None
    rows, weight = call["indices"].shape[0], call["weight"]
    scale = call.shape[0] / rows if call.node["mode"] == _MEAN else 1.0
    uses = rows / weight.shape[0] * scale**2
    yield call.index("weight"), Table.iid(weight.shape, 0.0, g.second_moment * uses)


# --- experts: each token multiplies the matrix of its own group ----------------------------------


def _experts(call: Call, tokens: int, groups: int) -> np.ndarray:
    """The expert of each token, from the offsets where groups end; equal groups if not known."""
    offsets = call["offs"]
    ends = offsets.data if isinstance(offsets, State) else None
    if ends is None or int(np.max(ends, initial=0)) != tokens:
        return np.arange(tokens) * groups // max(tokens, 1)
    return np.searchsorted(np.asarray(ends), np.arange(tokens), side="right")


@forward("_grouped_mm")
def _grouped(call: Call) -> State:
    x, w = call["self"], call["mat2"]
    if len(x.shape) == len(w.shape):
        return contracted(call, matmul(x.table, w.table), x.shape[-1], (x, w))
    chosen = looked_up(w.table, _experts(call, x.shape[0], w.shape[0]))
    table = matmul(x.table.unsqueeze(1), chosen).squeeze(1)
    return contracted(call, table, x.shape[-1], (x, w))


@backward("_grouped_mm")
def _grouped_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    x, w = call["self"], call["mat2"]
    if len(x.shape) == len(w.shape):
        yield call.index("self"), matmul(g, transposed(w.table))
        yield call.index("mat2"), matmul(transposed(x.table), g)
        return
    index = _experts(call, x.shape[0], w.shape[0])
    chosen = looked_up(w.table, index)
    yield call.index("self"), matmul(g.unsqueeze(1), transposed(chosen)).squeeze(1)
    outer = product(x.table.unsqueeze(2), g.unsqueeze(1))
    yield call.index("mat2"), looked_up_back(outer, index, w.shape)
