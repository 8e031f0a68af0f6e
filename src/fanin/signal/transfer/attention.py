"""Softmax and scaled dot-product attention: how sharp the weights are, and what averaging leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np

from fanin.signal.state import CLOSED, QUADRATURE, Mask, State
from fanin.signal.table import Table, product
from fanin.signal.transfer.call import Call, Gradients, backward, dims_of, forward, reduced_to
from fanin.signal.transfer.linear import matmul, transposed


@lru_cache(maxsize=256)
def _transforms(variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log t, and E[exp(-t e^l)], E[e^(2l) exp(-t e^l)] for l ~ N(0, variance)."""
    s = sqrt(variance)
    z = np.linspace(-8, 8, 161)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    u = np.linspace(-25 - 9 * s, 8 + 9 * s, 700)
    grown = np.exp(s * z)
    decay = np.exp(-np.exp(np.clip(u, -700, 700))[:, None] * grown)
    return u, decay @ weight, (decay * grown**2) @ weight


@lru_cache(maxsize=1024)
def concentration(variance: float, keys: int) -> float:
    """E[sum_j a_j^2] for the softmax a of `keys` independent logits from N(0, variance).

    *Definition.* n * integral of t E[e^(2l) e^(-t e^l)] E[e^(-t e^l)]^(n-1) dt.

    *Accuracy.* 1e-6 relative for variances up to 25.

    Example:
        >>> round(concentration(1.0, 64), 6), concentration(0.0, 4), concentration(2.0, 1)
        (0.040211, 0.25, 1.0)
    """
    if keys <= 1 or variance <= 0:
        return 1.0 / max(keys, 1)
    u, first, second = _transforms(round(min(variance, 100.0), 6))
    with np.errstate(divide="ignore", under="ignore"):
        power = np.exp((keys - 1) * np.log(np.maximum(first, 1e-300)))
    step = u[1] - u[0]
    value = keys * float(np.sum(np.exp(2 * u) * second * power) * step)
    return min(max(value, 1.0 / keys), 1.0)


def overlap(base: np.ndarray, sharp: np.ndarray, shared: float, own: float) -> np.ndarray:
    """E[sum_j a_j a'_j] of two rows whose logits have covariance `shared` out of variance `own`.

    Between the exact ends, `base` for independent rows and `sharp` for equal ones, it grows as
    the moment E[e^(l + l')] of a lognormal does.
    """
    if own <= 0:
        return base
    part = np.expm1(np.clip(shared, -own, own)) / np.expm1(own)
    return np.maximum(base + (sharp - base) * part, 0.0)


def softmaxed(logits: State, dim: int, token: object) -> State:
    """The state of softmax(logits) along a dimension, masked entries having weight zero."""
    dim %= len(logits.shape)
    keys = logits.shape[dim]
    query = _query(logits.allowed, dim, len(logits.shape))
    table = logits.table.own(dim).flat()
    if query is not None:
        table = table.own(query)
    (j,) = table.axes((dim,))
    k = len(table.factors)
    pairs = table.pairs.reshape((2,) * k)
    keep = _rows(logits.allowed, keys, table.shape[query] if query is not None else 1)
    counts = keep.sum(1).astype(int)
    own = max(float((pairs.take(0, j) - pairs.take(1, j))[(0,) * (k - 1)]), 0.0)
    sharp = np.array([concentration(own, int(n)) if n else 0.0 for n in counts])
    total = (counts > 0).astype(float)
    alone = 1.0 / np.maximum(counts, 1) * total
    between, both = _between(keep, counts)
    i = table.axes((query,))[0] if query is not None else None
    size = [1] * k
    if i is not None:
        size[i] = len(counts)
    out = np.zeros((2,) * k + tuple(size))
    apart = max(keys - 1, 1)
    for mask in np.ndindex(*(2,) * (k - 1)):
        shared = float((pairs.take(0, j) - pairs.take(1, j))[mask])
        same_row = i is None or not mask[i - (j < i)]
        if not any(mask):
            value, whole = sharp, total
        elif same_row:
            value, whole = overlap(alone, sharp, shared, own), total
        else:
            met = overlap(np.array(between), np.array(sharp.mean()), shared, own)
            value, whole = np.full(len(counts), float(met)), np.full(len(counts), both)
        place = list(mask)
        for differs in (0, 1):
            where = tuple(place[:j] + [differs] + place[j:])
            entry = value / keys if not differs else np.maximum(whole - value, 0) / (keys * apart)
            out[where] = entry.reshape(size)
    mean = (total / keys).reshape(size)
    result = Table(table.dims, mean, out)._compact()
    if keys == 1:
        result = result.gather(dim, np.array([0]))
    return State(result, QUADRATURE, token, nonnegative=True, roots=logits.roots)


def _query(mask: Mask | None, dim: int, ndim: int) -> int | None:
    """The dimension along which rows are masked differently: the one before the keys'."""
    if mask is None or mask.keep.ndim < 2 or mask.keep.shape[-2] == 1 or dim != ndim - 1:
        return None
    return ndim - 2


def _rows(mask: Mask | None, keys: int, queries: int) -> np.ndarray:
    """Which keys each query sees, [queries, keys]; masks of several samples are averaged by row."""
    if mask is None:
        return np.ones((1, keys), dtype=bool)
    keep = mask.keep
    keep = np.broadcast_to(keep, (*keep.shape[:-1], keys))
    if keep.ndim == 1:
        return keep[None]
    lead = keep.reshape(-1, *keep.shape[-2:])
    return np.asarray(np.broadcast_to(lead[0], (queries, keys)))


def _between(keep: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """For two different rows with equal logits everywhere: E[sum_j a_j a'_j], and P(both see)."""
    n = len(counts)
    alone = keep / np.maximum(counts, 1)[:, None]
    seen = float((counts > 0).sum())
    if n < 2:
        return float((alone**2).sum()), 1.0
    column = alone.sum(0)
    met = float((column**2).sum() - (alone**2).sum()) / (n * (n - 1))
    return met, seen * (seen - 1) / (n * (n - 1))


@forward("_softmax", "softmax", "_safe_softmax")
def _softmax(call: Call) -> State:
    return softmaxed(call.first, call.node["dim"], call.token())


def softmax_back(g: Table, weights: Table, dim: int) -> Table:
    """a (g - sum_j a_j g_j): what of the gradient differs between keys, times the weights."""
    dim %= len(weights.dims)
    keys = weights.shape[dim]
    sharp = min(weights.second_moment * keys, 1.0)
    g = g.own(dim) if keys > 1 else g
    if keys > 1:
        (j,) = g.axes((dim,))
        shared = np.expand_dims(g.pairs.take(1, j), j)
        g = Table(g.dims, g.mean * 0, g.pairs - shared)
        differ = [slice(None)] * g.pairs.ndim
        differ[j] = slice(1, 2)
        pairs = g.pairs.copy()
        same = [slice(None)] * g.pairs.ndim
        same[j] = slice(0, 1)
        pairs[tuple(differ)] = -pairs[tuple(same)] / (keys - 1)
        g = Table(g.dims, g.mean, pairs)
    return product(g, weights) * sqrt(max(1 - sharp, 0.0))


@backward("_softmax", "softmax", "_safe_softmax")
def _softmax_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    weights = call.states[call.node.outputs[0]].table
    yield call.node.inputs[0], softmax_back(g, weights, call.node["dim"])


# --- scaled dot-product attention in one operation -------------------------------------------------

_FUSED = (
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable "
    "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps"
).split()


def _parts(call: Call) -> tuple[State, State, State, State, float]:
    """Queries, keys, values (heads repeated for grouped queries), the weights, and the scale."""
    q, k, v = (call[name] for name in ("query", "key", "value"))
    heads = q.shape[-3] if len(q.shape) > 3 else 1
    if len(q.shape) > 3 and k.shape[-3] != heads:
        times = np.arange(heads) // (heads // k.shape[-3])
        k, v = (s.through(lambda t: t.gather(-3, times), "heads") for s in (k, v))
    scale = call.node.get("scale")
    scale = 1 / sqrt(q.shape[-1]) if scale is None else float(scale)
    table = matmul(q.table, transposed(k.table)) * scale
    mask = _mask(call, q.shape[-2], k.shape[-2])
    bias = call["attn_mask"] if "attn_mask" in call.node.args else call["attn_bias"]
    if isinstance(bias, State) and bias.data is None:
        from fanin.signal.table import add

        table = add(table, bias.table)
    logits = State(table, CLOSED, ("logits", call.token()), roots=call.roots, allowed=mask)
    return q, k, v, softmaxed(logits, -1, None), scale


def _mask(call: Call, queries: int, keys: int) -> Mask | None:
    """The mask of a fused attention: causal, given, or none."""
    if call.node.get("is_causal"):
        return Mask(np.tril(np.ones((queries, keys), dtype=bool)), -np.inf)
    given = call["attn_mask"] if "attn_mask" in call.node.args else call["attn_bias"]
    if isinstance(given, State) and given.data is not None:
        data = given.data
        return Mask(data if data.dtype == bool else data > -1e9, -np.inf)
    return None


@forward(*_FUSED)
def _attention(call: Call) -> list[State]:
    _, k, v, weights, _ = _parts(call)
    share = float(call.node.get("dropout_p") or 0.0)
    table = weights.table
    if share:
        table = product(table, Table.iid(weights.shape, 1.0, 1 / (1 - share)))
    out = matmul(table, v.table)
    fresh = abs(v.mean) <= 1e-9 * (v.second_moment**0.5 + 1e-300)
    token = call.token()
    roots = frozenset({token}) if fresh else call.roots
    states = [State(out, QUADRATURE, token, gaussian=v.gaussian, roots=roots)]
    for position in range(1, len(call.node.outputs)):
        shape = call.output(position).shape
        states.append(_log_sum(call, position, shape, k.shape[-2]))
    return states


def _log_sum(call: Call, position: int, shape: Sequence[int], keys: int) -> State:
    """The logarithm of the sum of exponentials that a fused kernel also returns."""
    q, k, _, _, scale = _parts(call)
    variance = q.second_moment * k.second_moment * q.shape[-1] * scale**2
    mask = _mask(call, q.shape[-2], keys)
    counts = _rows(mask, keys, q.shape[-2]).sum(1)
    levels = np.log(np.maximum(counts, 1)) + variance / 2
    second = float((levels**2).mean())
    return State(
        Table.iid(tuple(shape), float(levels.mean()), second), CLOSED, call.token(position)
    )


@backward(*_FUSED)
def _attention_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    q, k, v, weights, scale = _parts(call)
    to_weights = matmul(g, transposed(v.table))
    to_logits = softmax_back(to_weights, weights.table, -1) * scale
    yield call.index("query"), reduced_to(matmul(to_logits, k.table), q.shape)
    yield call.index("key"), _ungrouped(matmul(transposed(to_logits), q.table), call["key"].shape)
    yield call.index("value"), _ungrouped(matmul(transposed(weights.table), g), call["value"].shape)


def _ungrouped(g: Table, shape: tuple[int, ...]) -> Table:
    """Gradients of repeated heads summed over the copies."""
    if g.shape == shape:
        return g
    copies = g.shape[-3] // shape[-3]
    parted = g.reshape((*shape[:-2], copies, *shape[-2:]))
    return parted.sum((len(shape) - 2,))


@forward("_log_softmax", "log_softmax", "logsumexp")
def _log_softmax(call: Call) -> State:
    logits = call.first
    (dim,) = dims_of(call.node["dim"], len(logits.shape))
    keys = logits.shape[dim]
    table = logits.table
    keepdim = call.node.name != "logsumexp"
    spread = table.centred((dim,)).second_moment
    level = np.log(keys) + spread / 2 - _shortfall(spread, keys)
    if keepdim:
        return State(table.centred((dim,)) + -level, CLOSED, call.token(), roots=logits.roots)
    average = table.average_over((dim,), bool(call.node.get("keepdim")))
    return State(average + level, CLOSED, call.token(), roots=logits.roots)


def _shortfall(variance: float, keys: int) -> float:
    """What E[log mean exp] of finitely many logits lacks to variance / 2, to second order."""
    return float(np.log1p(np.expm1(min(variance, 50.0)) / keys) / 2)


@backward("_log_softmax", "log_softmax")
def _log_softmax_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.node.inputs[0], g


@backward("logsumexp")
def _logsumexp_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    (dim,) = dims_of(call.node["dim"], len(call.first.shape))
    weights = softmaxed(call.first, dim, None).table
    g = g if call.node.get("keepdim") else g.unsqueeze(dim)
    yield call.node.inputs[0], product(g, weights)
