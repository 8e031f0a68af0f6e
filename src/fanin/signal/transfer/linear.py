"""Products of matrices: a product of tables and a sum over the contracted axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fanin.signal.draws import alike
from fanin.signal.state import ASSUMED, CLOSED, Mixed, State, law
from fanin.signal.table import Table, add, product
from fanin.signal.transfer.call import Call, Gradients, Term, backward, forward, reduced_to
from fanin.signal.transfer.causal import averaged, matmul, returned, transposed
from fanin.signal.transfer.mask import hidden
from fanin.signal.transfer.sampled import joint, sampled, sampled_back

# From this many independent terms on a sum counts as Gaussian.
_MANY = 8


def contracted(call: Call, table: Table, terms: int, parts: Sequence[State]) -> State:
    """The state of a sum of products; fresh where one of the two has zero mean."""
    token = call.token()
    fresh = any(abs(p.mean) <= 1e-12 * (p.second_moment**0.5 + 1e-300) for p in parts)
    roots = frozenset({token}) if fresh else call.roots
    known = any(p.gaussian and p.function is None for p in parts)
    how = f"{ASSUMED}: independent operands" if alike(call, *_factors(call)) else CLOSED
    return State(table, how, token, gaussian=known or terms >= _MANY, roots=roots)


def of_few(state: State, terms: int, dim: int) -> State:
    """A sum over few weights that is no Gaussian, since their squares do not average out.

    Elements with one index along `dim` have the same weights.
    """
    table = state.table.own(dim)
    (a,) = table.axes((dim,))
    pairs = np.ones((2,) * len(table.factors))
    np.moveaxis(pairs, a, 0)[1] = 0.0
    ones = (1,) * len(table.factors)
    shared = Table(table.dims, np.ones(ones), pairs.reshape(*pairs.shape, *ones))
    latent = Mixed(table.dims, table.mean, table.pairs, terms, shared)
    return replace(state, table=table, latent=latent, source=state.token)


def plus(state: State, bias: State | None, scale: float = 1.0) -> State:
    """A bias added to a sum of products, broadcast from the right."""
    if bias is None:
        return state
    table = add(state.table, bias.table, scale)
    return replace(state, table=table, roots=state.roots | bias.roots)


@forward("linear")
def _linear(call: Call) -> State:
    x, w = call["input"], call["weight"]
    if len(x.shape) == 1:
        table = matmul(x.table.unsqueeze(0), transposed(w.table)).squeeze(0)
    else:
        table = matmul(x.table, transposed(w.table))
    return plus(contracted(call, table, w.shape[-1], (x, w)), call["bias"])


@backward("linear")
def _linear_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    x, w = call["input"], call["weight"]
    g = g if len(x.shape) > 1 else g.unsqueeze(0)
    seen = x.table if len(x.shape) > 1 else x.table.unsqueeze(0)
    back = matmul(g, w.table)
    yield call.index("input"), back if len(x.shape) > 1 else back.squeeze(0)
    yield call.index("weight"), outer(g, seen)
    if call["bias"] is not None:
        yield call.index("bias"), g.sum(tuple(range(len(g.dims) - 1)))


def outer(g: Table, x: Table) -> Table:
    """Sums over all rows of g_o x_i: the gradient of a weight [out, in]."""
    whole = product(g.unsqueeze(len(g.dims)), x.unsqueeze(len(x.dims) - 1))
    return whole.sum(tuple(range(len(whole.dims) - 2)))


def along_own(call: Call, terms: Sequence[Term], fan_in: int) -> float:
    """What the gradient of a weight has more along the weight itself, on average over its elements.

    *Definition.* Of the sum of g x over rows the part along w_o is the sum of g h / |w|, with
    h = w_o x. Where g = r f'(h) it is no product of independent numbers, and over many rows its
    mean adds up: (E[(sum g h)^2] - the same for g and h independent) / (fan_in |w|^2).
    """
    whole, weight = call.states[call.node.outputs[0]], call["weight"]
    latent, function, source, _ = law(whole)
    if function is not None or not whole.gaussian or abs(weight.mean) > 0:
        return 0.0
    mean, extra = whole.mean, 0.0
    channel = 1 if "conv" in call.node.name else len(whole.shape) - 1
    rows = tuple(d for d in range(len(whole.shape)) if d != channel)
    for term in terms:
        if term.slope is None or term.source != source:
            continue
        joint = term.times(lambda z: z - mean).resolved().sum(rows)
        apart = product(term.resolved(), latent + -mean).sum(rows)
        extra += joint.second_moment - apart.second_moment
    return float(extra / (fan_in**2 * max(weight.variance, 1e-300)))


@forward("mm", "bmm", "matmul")
def _mm(call: Call) -> State:
    x, y = call["self"], call["mat2"] or call["other"]
    if len(x.shape) < 2 or len(y.shape) < 2:
        return _vector(call, x, y)
    if _own(call):
        return sampled(call)[0]
    table = averaged(x.table, y.table) if x.causal else matmul(x.table, y.table)
    return contracted(call, table, x.shape[-1], (x, y))


def _own(call: Call) -> bool:
    """Whether both factors of a product are made of one tensor, as in x x^T, and can be drawn."""
    return alike(call, *_factors(call)) and joint(call)


def _factors(call: Call) -> tuple[int, ...]:
    """The two values that are multiplied."""
    added = call.node.name in ("addmm", "baddbmm", "addbmm")
    return call.node.inputs[1:3] if added else call.node.inputs[:2]


@forward("dot", "mv")
def _dot(call: Call) -> State:
    return _vector(call, call.operands[0], call.operands[1])


def _vector(call: Call, x: State, y: State) -> State:
    """A product with a vector on either side."""
    a = x.table.unsqueeze(0) if len(x.shape) == 1 else x.table
    b = y.table.unsqueeze(1) if len(y.shape) == 1 else y.table
    table = matmul(a, b).reshape(call.shape)
    return contracted(call, table, x.shape[-1], (x, y))


@backward("mm", "bmm", "matmul", "dot", "mv")
def _mm_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    if _own(call):
        yield from sampled_back(call, grads)
        return
    x, y = call.operands
    a = x.table.unsqueeze(0) if len(x.shape) == 1 else x.table
    b = y.table.unsqueeze(1) if len(y.shape) == 1 else y.table
    lead = max(len(a.dims), len(b.dims)) - 2
    g = g.reshape((*call.shape[:lead], a.shape[-2], b.shape[-1]))
    first, second = call.node.inputs
    yield first, reduced_to(matmul(g, transposed(b)), a.shape).reshape(x.shape)
    gathered = returned(a, g) if x.causal else matmul(transposed(a), g)
    yield second, reduced_to(gathered, b.shape).reshape(y.shape)


@forward("addmm", "baddbmm", "addbmm")
def _addmm(call: Call) -> State:
    x = call["mat1"] or call["batch1"]
    y = call["mat2"] or call["batch2"]
    alpha, beta = float(call["alpha"] or 1), float(call.node.get("beta", 1))
    if _own(call):
        return sampled(call)[0]
    state = contracted(call, matmul(x.table, y.table) * alpha, x.shape[-1], (x, y))
    if not beta:
        return state
    return hidden(state, call["self"], call.token()) or plus(state, call["self"], beta)


@backward("addmm", "baddbmm")
def _addmm_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    if _own(call):
        yield from sampled_back(call, grads)
        return
    batched = call["mat1"] is None
    x, y = (call["batch1"], call["batch2"]) if batched else (call["mat1"], call["mat2"])
    names = ("batch1", "batch2") if batched else ("mat1", "mat2")
    alpha, beta = float(call["alpha"] or 1), float(call.node.get("beta", 1))
    yield call.index("self"), reduced_to(g * beta, call["self"].shape)
    yield call.index(names[0]), matmul(g, transposed(y.table)) * alpha
    yield call.index(names[1]), matmul(transposed(x.table), g) * alpha
