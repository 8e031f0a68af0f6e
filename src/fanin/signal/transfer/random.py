"""Operations that draw random numbers, and those that make constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr, ndtr

from fanin.signal.state import CLOSED, State
from fanin.signal.table import Table, align, paired, product
from fanin.signal.transfer.call import Call, Gradients, backward, forward

_LEAST = -1.7580993408473766  # what SELU tends to at the far left


@forward("alpha_dropout", "feature_alpha_dropout")
def _alpha_dropout(call: Call) -> State:
    """m (a x + b) + (1 - m) c, with a mask m, such that N(0, 1) stays N(0, 1) (SELU's own)."""
    x, p = call.first, float(call.node["p"])
    if not call.node["train"] or p == 0:
        return x
    q = 1 - p
    scale = 1 / np.sqrt(q + q * p * _LEAST**2)
    value, mask = align(x.table * scale + -scale * _LEAST * p, _mask(call) * q)
    least = scale * _LEAST * q
    one, other = paired(value.mean, value)
    both = mask.pairs
    pairs = both * value.pairs + (q - both) * least * (one + other) + (1 - 2 * q + both) * least**2
    table = Table(value.dims, q * value.mean + p * least, pairs)
    return State(table, CLOSED, call.token(), roots=x.roots)


@backward("alpha_dropout", "feature_alpha_dropout")
def _alpha_dropout_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g, p = grads[0], float(call.node["p"])
    assert g is not None
    if call.node["train"] and p:
        g = product(g, _mask(call) * (1 - p)) * (1 / np.sqrt((1 - p) * (1 + p * _LEAST**2)))
    yield call.node.inputs[0], g


@forward("native_dropout", "dropout", "feature_dropout", "_fused_dropout")
def _dropout(call: Call) -> list[State] | State:
    """x m / (1 - p) with m = 1 with probability 1 - p: E[x^2] grows, E[x] stays."""
    x, mask = call.first, _mask(call)
    states = [
        State(
            product(x.table, mask), CLOSED, call.token(), nonnegative=x.nonnegative, roots=x.roots
        )
    ]
    if mask.second_moment == 1:
        states = [x]
    for position in range(1, len(call.node.outputs)):
        keep = 1 - float(call.node["p"])
        states.append(
            State(Table.iid(call.output(position).shape, keep, keep), CLOSED, call.token(position))
        )
    return states if len(states) > 1 else states[0]


def _mask(call: Call) -> Table:
    """The table of the mask over its kept share."""
    p = float(call.node["p"])
    trains = call.node.get("train", call.node.get("training", True))
    if trains is False or p == 0:
        return Table.constant(call.shape, 1.0)
    if p == 1:
        return Table.constant(call.shape, 0.0)
    shape = call.shape
    if "feature" in call.node.name:
        return (
            Table.iid(shape[:2], 1.0, 1 / (1 - p))
            .reshape((*shape[:2], *(1,) * (len(shape) - 2)))
            .expand(shape)
        )
    return Table.iid(shape, 1.0, 1 / (1 - p))


@backward("native_dropout", "dropout", "feature_dropout", "_fused_dropout")
def _dropout_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is not None:
        yield call.node.inputs[0], product(g, _mask(call))


@forward("bernoulli")
def _bernoulli(call: Call) -> State:
    p = call.node.get("p")
    p = call.first.mean if p is None else float(p)
    return State(Table.iid(call.shape, p, p), CLOSED, call.token(), nonnegative=True)


@forward("rand", "rand_like", "uniform")
def _uniform(call: Call) -> State:
    low, high = float(call.node.get("from", 0.0) or 0.0), float(call.node.get("to", 1.0) or 1.0)
    mean, second = (low + high) / 2, (low * low + low * high + high * high) / 3

    def function(z: np.ndarray) -> np.ndarray:
        return np.asarray(low + (high - low) * ndtr(z))

    token = call.token()
    return State(
        Table.iid(call.shape, mean, second), CLOSED, token, Table.iid(call.shape), function,
        ("normal", token), gaussian=True, nonnegative=low >= 0, roots=frozenset({token}),
    )  # fmt: skip


@forward("exponential")
def _exponential(call: Call) -> State:
    rate, token = float(call.node.get("lambd", 1.0)), call.token()
    return State(
        Table.iid(call.shape, 1 / rate, 2 / rate**2), CLOSED, token, Table.iid(call.shape),
        lambda z: -log_ndtr(z) / rate, ("normal", token), gaussian=True, nonnegative=True,
        roots=frozenset({token}),
    )  # fmt: skip


@forward("randn", "randn_like", "normal", "normal_functional")
def _normal(call: Call) -> State:
    mean, std = call.node.get("mean"), call.node.get("std")
    m = float(mean) if isinstance(mean, (int, float)) else 0.0
    s = float(std) if isinstance(std, (int, float)) else 1.0
    return State(Table.iid(call.shape, m, m * m + s * s), CLOSED, call.token(), gaussian=True)


@forward(
    "zeros",
    "zeros_like",
    "new_zeros",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "zero",
    "zeros.default",
)
def _zeros(call: Call) -> State:
    return State(Table.constant(call.shape, 0.0), CLOSED, call.token())


@forward("ones", "ones_like", "new_ones")
def _ones(call: Call) -> State:
    return State(Table.constant(call.shape, 1.0), CLOSED, call.token())


@forward("full", "full_like", "new_full", "fill", "scalar_tensor")
def _full(call: Call) -> State:
    number = next((call[n] for n in ("fill_value", "value", "s") if n in call.node.args), 0.0)
    value = number.mean if isinstance(number, State) else float(number)
    return State(
        Table.constant(call.shape, value if np.isfinite(value) else 0.0), CLOSED, call.token()
    )


_MAKERS = (
    "bernoulli exponential rand rand_like uniform randn randn_like normal normal_functional "
    "zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided "
    "new_empty_strided ones ones_like new_ones full full_like new_full fill scalar_tensor"
)


@backward(*_MAKERS.split())
def _nothing(call: Call, grads: Sequence[Table | None]) -> Gradients:
    return ()
