"""Softmax and dot-product attention: how sharp the weights are, and what averaging leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod, sqrt

import numpy as np

from fanin.signal.draws import alike
from fanin.signal.graph import Node
from fanin.signal.state import ASSUMED, CLOSED, QUADRATURE, Mask, State
from fanin.signal.table import Table, add, align, product
from fanin.signal.transfer.call import (
    Call,
    Gradients,
    amplitude,
    backward,
    dims_of,
    forward,
    reduced_to,
)
from fanin.signal.transfer.causal import averaged, matmul, returned, transposed
from fanin.signal.transfer.gram import deviations, spread
from fanin.signal.transfer.laws import linear_in_z
from fanin.signal.transfer.linear import outer
from fanin.signal.transfer.mask import HIDDEN, SLIGHT, added
from fanin.signal.transfer.sampled import joint, sampled, sampled_back


@lru_cache(maxsize=256)
def _transforms(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """u = log t, and the rows E[e^(p l) exp(-t e^l)] for p = 0, 2, 3, 4 and l ~ N(0, variance)."""
    s = sqrt(variance)
    z = np.linspace(-8, 8, 161)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    u = np.linspace(-25 - 9 * s, 8 + 9 * s, 700)
    grown = np.exp(s * z)
    decay = np.exp(-np.exp(np.clip(u, -700, 700))[:, None] * grown)
    return u, np.stack([decay @ (weight * grown**p) for p in (0, 2, 3, 4)])


@lru_cache(maxsize=4096)
def concentration(variance: float, keys: int, power: int = 2) -> float:
    """E[sum_j a_j^p] for the softmax a of `keys` independent logits from N(0, variance).

    *Definition.* n / (p-1)! times the integral of t^(p-1) E[e^(pl) e^(-t e^l)] E[e^(-t e^l)]^(n-1).

    *Accuracy.* 1e-6 relative for variances up to 25; p is 2 or 3.

    Example:
        >>> round(concentration(1.0, 64), 6), concentration(0.0, 4), concentration(2.0, 1)
        (0.038804, 0.25, 1.0)
    """
    if keys <= 1 or variance <= 0:
        return float(max(keys, 1)) ** (1 - power)
    u, rows = _transforms(round(min(variance, 100.0), 6))
    rest = np.exp((keys - 1) * np.log(np.maximum(rows[0], 1e-300)))
    value = keys / (power - 1) * np.sum(np.exp(power * u) * rows[power - 1] * rest)
    return float(np.clip(value * (u[1] - u[0]), float(keys) ** (1 - power), 1.0))


@lru_cache(maxsize=4096)
def jitter(variance: float, keys: int) -> float:
    """E[sum_j a_j^2 (x_j - sum_k a_k x_k)^2] for independent x of mean 0 and variance 1.

    *Definition.* E[sum a^2 - 2 sum a^3 + (sum a^2)^2], the last from E[sum_i a_i^4] and
    E[a_i^2 a_j^2] = 1/6 times the integral of t^3 E[e^(2l) e^(-t e^l)]^2 E[e^(-t e^l)]^(n-2).

    Example:
        >>> jitter(0.0, 4), jitter(1.0, 1)
        (0.1875, 0.0)
    """
    if keys <= 1:
        return 0.0
    if variance <= 0:
        return (1 - 1 / keys) / keys
    u, rows = _transforms(round(min(variance, 100.0), 6))
    rest = np.exp((keys - 2) * np.log(np.maximum(rows[0], 1e-300)))
    both = (keys - 1) * rows[1] ** 2 + rows[3] * rows[0]
    fourth = keys / 6 * float(np.sum(np.exp(4 * u) * both * rest)) * (u[1] - u[0])
    second, third = (concentration(variance, keys, p) for p in (2, 3))
    return float(max(second - 2 * third + fourth, 0.0))


def overlap(base: np.ndarray, sharp: np.ndarray, shared: float, own: float) -> np.ndarray:
    """E[sum_j a_j a'_j] of two rows whose logits have covariance `shared` out of variance `own`.

    Between the exact ends, `base` for independent rows and `sharp` for equal ones, it grows as
    the moment E[e^(l + l')] of a lognormal does.
    """
    if own <= 0:
        return base
    own = min(own, 100.0)
    part = np.expm1(np.clip(shared, -own, own)) / np.expm1(own)
    return np.asarray(np.maximum(base + (sharp - base) * part, 0.0))


class Rows:
    """The rows of logits: which keys each sees, and how the logits vary within and across rows.

    Args:
        logits: the state; `dim` is the keys' dimension.
    """

    def __init__(self, logits: State, dim: int) -> None:
        self.dim = dim % len(logits.shape)
        self.keys = logits.shape[self.dim]
        self.query = _query(logits.allowed, self.dim, len(logits.shape))
        table = logits.table.own(self.dim).flat()
        self.table = table if self.query is None else table.own(self.query)
        (self.j,) = self.table.axes((self.dim,))
        self.k = len(self.table.factors)
        pairs = self.table.pairs.reshape((2,) * self.k)
        queries = 1 if self.query is None else self.table.shape[self.query]
        self.masks, self.shares = _masks(logits.allowed, self.keys, queries)
        self.counts = self.masks.sum(2).astype(int)
        # covariances within the keys of a row: what all keys share does not matter
        self.within = pairs.take(0, self.j) - pairs.take(1, self.j)
        self.own = max(float(self.within[(0,) * (self.k - 1)]), 0.0)

    def moment(self, of: Callable[[float, int], float]) -> np.ndarray:
        """A number of each row from the variance of its logits and how many keys it sees."""
        own = {n: of(self.own, int(n)) for n in np.unique(self.counts)}
        return self.mean(np.vectorize(lambda n: own[n] if n else 0.0)(self.counts))

    def mean(self, by_mask: np.ndarray) -> np.ndarray:
        """The average over the masks of what each row has."""
        return np.asarray(self.shares @ by_mask)

    def laid(self, x: np.ndarray) -> np.ndarray:
        """Numbers of the rows as a profile of the table."""
        size = [1] * self.k
        if self.query is not None:
            (i,) = self.table.axes((self.query,))
            size[i] = len(x)
        return x.reshape(size)


def softmaxed(logits: State, dim: int, token: object) -> State:
    """The state of softmax(logits) along a dimension, masked entries having weight zero."""
    rows = Rows(logits, dim)
    keys, k, j = rows.keys, rows.k, rows.j
    sharp, total = rows.moment(concentration), rows.mean(rows.counts > 0)
    alone = rows.mean((rows.counts > 0) / np.maximum(rows.counts, 1))
    between, both = (rows.mean(np.stack(x)) for x in zip(*map(_between, rows.masks), strict=True))
    i = rows.table.axes((rows.query,))[0] if rows.query is not None else None
    out = np.zeros((2,) * k + rows.laid(total).shape)
    for mask in np.ndindex(*(2,) * (k - 1)):
        shared = float(rows.within[mask])
        value, whole = sharp, total
        if i is not None and mask[i - (j < i)]:
            value, whole = (
                overlap(between, sharp * between.mean() / alone.mean(), shared, rows.own),
                both,
            )
        elif any(mask):
            value = overlap(alone, sharp, shared, rows.own)
        rest = np.maximum(whole - value, 0) / max(keys - 1, 1)
        for differs, entry in enumerate((value, rest)):
            out[(*mask[:j], differs, *mask[j:])] = rows.laid(entry / keys)
    result = Table(rows.table.dims, rows.laid(total / keys), out)._compact()
    if keys == 1:
        result = result.gather(rows.dim, np.array([0]))
    prefix = rows.query is not None and _is_causal(rows.masks)
    how = _how(logits, QUADRATURE)
    return State(result, how, token, nonnegative=True, roots=logits.roots, causal=prefix)


def _how(logits: State, exact: str) -> str:
    """How the softmax of logits is known: they count as Gaussian."""
    derived = logits.gaussian and linear_in_z(logits)
    return exact if derived else f"{ASSUMED}: Gaussian logits"


def _is_causal(masks: np.ndarray) -> bool:
    """Whether each position sees itself and what came before."""
    square = len(masks) == 1 and masks.shape[1] == masks.shape[2]
    return square and np.array_equal(masks[0], np.tril(np.ones(masks[0].shape, dtype=bool)))


def _query(mask: Mask | None, dim: int, ndim: int) -> int | None:
    """The dimension along which rows are masked differently: the one before the keys'."""
    if mask is None or mask.keep.ndim < 2 or mask.keep.shape[-2] == 1 or dim != ndim - 1:
        return None
    return ndim - 2


def _masks(mask: Mask | None, keys: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The different masks [mask, query, key] of samples, heads and windows, and their shares."""
    if mask is None:
        return np.ones((1, queries, keys), dtype=bool), np.ones(1)
    keep = np.atleast_2d(mask.keep)
    keep = np.broadcast_to(keep, (*keep.shape[:-2], queries, keys)).reshape(-1, queries, keys)
    found: dict[bytes, int] = {}
    for one in keep:
        found[one.tobytes()] = found.get(one.tobytes(), 0) + 1
    masks = np.frombuffer(b"".join(found), dtype=bool).reshape(-1, queries, keys)
    return masks, np.array(list(found.values())) / len(keep)


def _between(keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row beside another, with equal logits: E[sum_j a_j a'_j], and P(both see keys)."""
    counts = keep.sum(1)
    n, seen = len(counts), (counts > 0).astype(float)
    alone = keep / np.maximum(counts, 1)[:, None]
    if n < 2:
        return (alone**2).sum(1), seen
    met = (alone @ alone.sum(0) - (alone**2).sum(1)) / (n - 1)
    return met, seen * (seen.sum() - seen) / (n - 1)


@forward("_softmax", "softmax", "_safe_softmax")
def _softmax(call: Call) -> State:
    return softmaxed(call.first, call.node["dim"], call.token())


def softmax_back(g: Table, weights: Table, logits: State, dim: int) -> Table:
    """The gradient of the logits, a_j (g_j - sum_k a_k g_k).

    *Definition.* With gamma what of g differs between keys, the sum over a row of its square is
    gamma E[sum a^2 - 2 sum a^3 + (sum a^2)^2]; each row sums to zero.
    """
    rows = Rows(logits, dim)
    if rows.keys == 1:
        return g * 0.0
    left = rows.moment(jitter) / np.maximum(rows.moment(concentration), 1e-300)
    g, weights = align(g, weights)
    g, weights = g.own(rows.dim), weights.own(rows.dim)
    _, same, differ, _, _ = g._parts(rows.dim)
    _, squares, _, _, _ = weights._parts(rows.dim)
    varies = Table(g.dims, g.mean * 0.0, g.pairs)._with(
        rows.dim, rows.keys, np.moveaxis(g.mean * 0.0, g.axes((rows.dim,))[0], -1),
        (same - differ) * squares, -(same - differ) * squares / (rows.keys - 1),
    )  # fmt: skip
    factor = Table(rows.table.dims, rows.laid(np.sqrt(left)), rows.table.pairs)
    return product(varies, amplitude(factor, factor.mean))


@backward("_softmax", "softmax", "_safe_softmax")
def _softmax_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    weights = call.states[call.node.outputs[0]].table
    yield call.node.inputs[0], softmax_back(g, weights, call.first, call.node["dim"])


# --- scaled dot-product attention in one operation -----------------------------------------------

_FUSED = (
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable "
    "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps"
)


def _parts(call: Call) -> tuple[State, State, State, State, State, float]:
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
    seen = added(bias) if isinstance(bias, State) else None
    table = table if seen is None else add(table, seen)
    known = isinstance(bias, State) and bias.data is not None
    plain = not known or seen is None or seen.variance <= SLIGHT * table.variance
    logits = State(table, CLOSED, ("logits", call.token()), gaussian=plain, roots=call.roots,
                   allowed=mask)  # fmt: skip
    return q, k, v, logits, softmaxed(logits, -1, None), scale


def _mask(call: Call, queries: int, keys: int) -> Mask | None:
    """The mask of a fused attention: causal, given, or none."""
    if call.node.get("is_causal"):
        return Mask(np.tril(np.ones((queries, keys), dtype=bool)), -np.inf)
    given = call["attn_mask"] if "attn_mask" in call.node.args else call["attn_bias"]
    if isinstance(given, State) and given.allowed is not None:
        return given.allowed
    if isinstance(given, State) and given.data is not None:
        data = given.data
        return Mask(data if data.dtype == bool else data > HIDDEN, -np.inf)
    return None


def _own(call: Call) -> bool:
    """Whether queries and keys are one tensor, without weights of their own, and can be drawn."""
    return alike(call, call.index("query"), call.index("key")) and joint(call)


@forward(*_FUSED.split())
def _attention(call: Call) -> list[State]:
    if _own(call):
        return sampled(call)
    q, k, v, logits, weights, _ = _parts(call)
    table = product(weights.table, _kept(call, weights.shape))
    out = averaged(table, v.table) if weights.causal else matmul(table, v.table)
    found = _projected(call)
    if found is not None and q.shape == v.shape:
        out = add(out, _leaning(q.table, v.table, Rows(logits, -1), found[2]))
    fresh = abs(v.mean) <= 1e-9 * (v.second_moment**0.5 + 1e-300)
    token = call.token()
    roots = frozenset({token}) if fresh else call.roots
    how = _how(logits, QUADRATURE)
    states = [State(out, how, token, gaussian=v.gaussian, roots=roots)]
    for position in range(1, len(call.node.outputs)):
        shape = call.output(position).shape
        states.append(_log_sum(call, position, shape, k.shape[-2]))
    return states


def _projected(call: Call) -> tuple[Node, Node, float] | None:
    """The layers that make keys and values, and the spread of the input that both read."""
    made_by = [call.graph.producer(call.graph.origin(call.index(n))) for n in ("key", "value")]
    if any(n is None or n.name != "linear" for n in made_by):
        return None
    key, value = (n for n in made_by if n is not None)
    source, shape = call.graph.values[key.inputs[0]], call["key"].shape
    rows = prod(shape) // (shape[-1] * (shape[-3] if len(shape) == 4 else 1))
    whole = source.size == rows * source.shape[-1]
    if key.inputs[0] != value.inputs[0] or len(shape) not in (3, 4) or not whole:
        return None
    return key, value, spread(call, source.index)


def _apart(rows: Rows) -> float:
    """What centring leaves of pairs of keys: the mean of 1 - a_i - a_j, weighed by a_i a_j."""
    return max(1.0 - 2.0 * float(rows.moment(concentration).mean()), 0.0)


def _leaning(query: Table, values: Table, rows: Rows, width: float) -> Table:
    """What an average of values has along its query: keys near the query have values alike.

    *Definition.* With logits of variance s^2 and the spread 1/d of x, a part of variance
    s^2 Var(v) / d, which two rows share as they share their queries.
    """
    varies = max(values.second_moment - values.covariance(-2), 0.0)
    part = width * _apart(rows) * rows.own * varies
    return query * sqrt(part / max(query.second_moment, 1e-300))


def _kept(call: Call, shape: Sequence[int]) -> Table:
    """The dropout mask of the weights over its kept share."""
    share = float(call.node.get("dropout_p") or 0.0)
    return Table.iid(shape, 1.0, 1 / (1 - share)) if share < 1 else Table.constant(shape, 0.0)


def _log_sum(call: Call, position: int, shape: Sequence[int], keys: int) -> State:
    """The logarithm of the sum of exponentials that a fused kernel also returns."""
    q, k, _, _, _, scale = _parts(call)
    variance = q.second_moment * k.second_moment * q.shape[-1] * scale**2
    mask = _mask(call, q.shape[-2], keys)
    counts = _masks(mask, keys, q.shape[-2])[0].sum(2)
    levels = np.log(np.maximum(counts, 1)) + variance / 2
    second = float((levels**2).mean())
    return State(
        Table.iid(tuple(shape), float(levels.mean()), second), CLOSED, call.token(position)
    )


@backward(*_FUSED.split())
def _attention_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    if _own(call):
        yield from sampled_back(call, grads)
        return
    q, k, v, logits, weights, scale = _parts(call)
    kept = _kept(call, weights.shape)
    to_weights = product(matmul(g, transposed(v.table)), kept)
    to_logits = softmax_back(to_weights, weights.table, logits, -1) * scale
    to_query = matmul(to_logits, k.table)
    found = _projected(call)
    if found is not None:
        key, value, width = found
        rows, features = Rows(logits, -1), (-3, -1)[4 - len(q.shape) :]
        near = matmul(g, transposed(deviations(v.table, features, -2, width)))
        near = product(weights.table, product(near, kept)) * (sqrt(_apart(rows)) * scale)
        to_query = add(to_query, matmul(near, deviations(k.table, features, -2, width)))
        to_key = _ungrouped(matmul(transposed(near), q.table), call["key"].shape)
        x = call.states[key.inputs[0]].table
        alike = x.reshape((*_joined(to_key).shape[:2], x.shape[-1]))
        yield key.inputs[1], _beside(call, key, to_key, deviations(alike, (-1,), -2, width))
        if q.shape == v.shape == call["value"].shape:
            leaning = _joined(_leaning(q.table, alike, rows, width))
            yield value.inputs[1], _beside(call, value, g, leaning)
    yield call.index("query"), reduced_to(to_query, q.shape)
    yield call.index("key"), _ungrouped(matmul(transposed(to_logits), q.table), call["key"].shape)
    used = product(weights.table, kept)
    gathered = returned(used, g) if weights.causal else matmul(transposed(used), g)
    yield call.index("value"), _ungrouped(gathered, call["value"].shape)
    bias = "attn_mask" if "attn_mask" in call.node.args else "attn_bias"
    if isinstance(call[bias], State) and call.graph.values[call.index(bias)].depends:
        yield call.index(bias), reduced_to(to_logits * (1 / scale), call[bias].shape)


def _joined(x: Table) -> Table:
    """[samples, heads, positions, features] as a layer makes it, [samples, positions, all]."""
    if len(x.dims) == 4:
        x = x.permute((0, 2, 1, 3))
        return x.reshape((*x.shape[:2], x.shape[2] * x.shape[3]))
    return x


def _beside(call: Call, layer: Node, g: Table, x: Table) -> Table:
    """What the weight of a layer gets more from these gradients of its outputs and inputs."""
    shape, g = call.graph.values[layer.inputs[1]].shape, _joined(g)
    return Table.iid(shape, 0.0, outer(g, x).second_moment * g.shape[-1] / shape[0])


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
    keepdim, how = call.node.name != "logsumexp", _how(logits, CLOSED)
    spread = table.centred((dim,)).second_moment
    level = np.log(keys) + spread / 2 - _shortfall(spread, keys)
    if keepdim:
        return State(table.centred((dim,)) + -level, how, call.token(), roots=logits.roots)
    average = table.average_over((dim,), bool(call.node.get("keepdim")))
    return State(average + level, how, call.token(), roots=logits.roots)


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
