"""Normalisations: what is shared along the normalised axes goes, and the rest gets unit size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from fanin.signal.state import CLOSED, State
from fanin.signal.table import Table, add, align, product
from fanin.signal.transfer.call import Call, Gradients, amplitude, backward, forward, reduced_to
from fanin.signal.transfer.laws import linear_in_z

_MOST = 0.5  # a group of fewer than 4 degrees of freedom has no mean gradient to speak of


def level_of(table: Table, dims: Sequence[int], eps: float) -> np.ndarray:
    """(mean square over dims + eps)^(-1/2) as a profile over the factors of the table."""
    axes = table.axes(dims)
    mean_square = table.same.mean(axis=axes, keepdims=True) if axes else table.same
    return np.asarray(1.0 / np.sqrt(np.maximum(mean_square, 0.0) + eps))


def normalised(
    x: State, dims: Sequence[int], eps: float, centre: bool, token: object
) -> tuple[State, Table]:
    """(x - average) / root mean square over dims, and the table of the factor that was applied.

    *Definition.* E over a group of n elements of x_hat^2 is v / (v + eps) exactly, v the expected
    variance in the group; the pairs lose what the group shares and scale alike.
    """
    table = x.table.centred(dims) if centre else x.table
    level = level_of(table, dims, eps)
    factor = amplitude(table, level)
    out = product(table, factor)
    steady = level.size == 1 and centre and _shared_is_mean(x.table, dims)
    if linear_in_z(x):
        state = State(out, CLOSED, token, gaussian=x.gaussian, roots=x.roots)
    elif steady or (not centre and level.size == 1):
        shift, scale = (x.mean if centre else 0.0), float(level.mean())
        inner = x.function
        assert inner is not None

        def function(z: np.ndarray) -> np.ndarray:
            return (inner(z) - shift) * scale

        state = replace(x, table=out, how=CLOSED, token=token, function=function, data=None,
                        nonnegative=x.nonnegative and not centre, average=None)  # fmt: skip
    else:
        state = State(out, CLOSED, token, roots=x.roots)
    return state, factor


def _shared_is_mean(table: Table, dims: Sequence[int]) -> bool:
    """Whether the groups' averages are all the same number."""
    average = table.average_over(dims)
    spread = average.second_moment - average.average**2
    return bool(spread < 1e-3 * table.second_moment)


def scaled(
    state: State, weight: State | None, bias: State | None, dims: Sequence[int], token: object
) -> State:
    """A learned scale and shift along dims of the normalised tensor."""
    for part, name in ((weight, "weight"), (bias, "bias")):
        if part is None:
            continue
        shape = [state.shape[d] if d in dims else 1 for d in range(len(state.shape))]
        number = part.value
        if number == (1.0 if name == "weight" else 0.0):
            continue
        laid = part.table.reshape(shape)
        if name == "weight":
            table = product(state.table, laid)
            latent = (
                product(state.latent, laid)
                if state.latent is not None and linear_in_z(state)
                else None
            )
            state = replace(state, table=table, latent=latent,
                            function=None if latent is None else state.function,
                            gaussian=state.gaussian and linear_in_z(state))  # fmt: skip
        else:
            state = replace(state, table=add(state.table, laid), latent=None, function=None,
                            gaussian=state.gaussian and linear_in_z(state))  # fmt: skip
        state = replace(state, roots=state.roots | part.roots, nonnegative=False)
    return replace(state, token=token)


def _back(g: Table, normal: Table, factor: Table, dims: Sequence[int], centre: bool) -> Table:
    """The gradient of a normalisation: scaled, without its average and its part along x_hat.

    *Definition.* What goes is m x_hat with m the group's average of g x_hat; g and x_hat are
    independent, and m is large where both are alike all over the group.
    """
    left = g.centred(dims) if centre else g
    along = product(left, normal).average_over(dims, keepdim=True).expand(g.shape)
    part = product(normal, along)
    left, part = align(left, part)
    pairs = left.pairs - part.pairs
    kept = Table(left.dims, left.mean, pairs)
    level = np.clip(kept.same / np.maximum(left.same, 1e-300), 0.0, 1.0).mean()
    if kept.same.min() < 0:
        kept = left * float(np.sqrt(level))
    return product(kept, factor) * float(np.sqrt(_inverse_excess(normal, dims)))


def _inverse_excess(normal: Table, dims: Sequence[int]) -> float:
    """E[1 / v] E[v] for the variance v that a group of Gaussian elements happens to have.

    *Definition.* k / (k - 2) for a v that is distributed as chi^2 with k degrees of freedom, where
    2 / k = 2 sum_pq T_pq^2 / (sum_p T_pp)^2 over all pairs of the group.
    """
    table = normal.coarse(dims).folded(normal.axes(dims))
    k, axes = len(table.factors), table.axes(dims)
    squares = table.pairs**2
    for a in range(k):
        if a in axes:
            n = table.factors[a]
            squares = (squares.take([0], a) + (n - 1) * squares.take([1], a)) / n
        else:
            squares = squares.take([0], a)
    wobble = 2.0 * float(squares.mean()) / max(table.second_moment, 1e-300) ** 2
    return 1.0 / (1.0 - float(min(wobble, _MOST)))


# --- over the features of one sample --------------------------------------------------------------


@forward("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def _layer_norm(call: Call) -> list[State]:
    x, dims, centre = call.first, _last(call), "rms" not in call.node.name
    eps = call.node.get("eps")
    eps = 1.2e-7 if eps is None else float(eps)
    state, factor = normalised(x, dims, eps, centre, ("normalised", call.token()))
    out = scaled(state, call["weight"], call.node.get("bias") and call["bias"], dims, call.token())
    return [out, *_statistics(call, x, factor, dims, centre)]


def _last(call: Call) -> tuple[int, ...]:
    """The dimensions of the normalised shape."""
    n = len(call.first.shape)
    return tuple(range(n - len(call.node["normalized_shape"]), n))


def _statistics(
    call: Call, x: State, factor: Table, dims: Sequence[int], centre: bool
) -> list[State]:
    """The further outputs: the averages, and one over the standard deviations."""
    rest = []
    average = x.table.average_over(tuple(dims), keepdim=True)
    inverse = factor.sum(tuple(dims), keepdim=True) * (1 / prod(x.shape[d] for d in dims))
    tables = [average, inverse] if centre else [inverse]
    for position in range(1, len(call.node.outputs)):
        shape = call.output(position).shape
        if prod(shape) != prod(average.shape) or position > len(tables):
            rest.append(State(Table.constant(shape, 0.0), CLOSED, call.token(position)))
        else:
            table = tables[position - 1].reshape(shape)
            rest.append(State(table, CLOSED, call.token(position), roots=x.roots))
    return rest


def _affine_back(
    call: Call,
    g: Table,
    normal: Table,
    weight: State | None,
    bias: State | None,
    dims: Sequence[int],
) -> tuple[Table, list[tuple[int, Table]]]:
    """The gradient before scale and shift, and those of scale and shift."""
    found = []
    others = [d for d in range(len(g.dims)) if d not in dims]
    if bias is not None:
        found.append((call.index("bias"), g.sum(others).reshape(bias.shape)))
    if weight is not None:
        found.append((call.index("weight"), product(g, normal).sum(others).reshape(weight.shape)))
        shape = [g.shape[d] if d in dims else 1 for d in range(len(g.dims))]
        g = product(g, weight.table.reshape(shape))
    return g, found


@backward("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def _layer_norm_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    x, dims, centre = call.first, _last(call), "rms" not in call.node.name
    eps = call.node.get("eps")
    eps = 1.2e-7 if eps is None else float(eps)
    state, factor = normalised(x, dims, eps, centre, None)
    bias = call["bias"] if call.node.get("bias") is not None else None
    g, found = _affine_back(call, g, state.table, call["weight"], bias, dims)
    yield from found
    yield call.node.inputs[0], _back(g, state.table, factor, dims, centre)


# --- over the batch -------------------------------------------------------------------------------

_BATCH = (
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _native_batch_norm_legit_no_training "
    "_batch_norm_with_update batch_norm _batch_norm_no_update"
)


def _trains(call: Call) -> bool:
    """Whether the statistics are those of the batch."""
    if "no_training" in call.node.name or call.node.name == "_batch_norm_no_update":
        return False
    return bool(call.node.get("training", True)) or call.node.get("running_mean") is None


def _over(call: Call) -> tuple[int, ...]:
    """All dimensions but the channels'."""
    return tuple(d for d in range(len(call.first.shape)) if d != 1)


def _running(call: Call) -> tuple[Table, Table]:
    """In eval mode: the running mean and the factor 1 / sqrt(running variance + eps)."""
    x = call.first
    shape = [x.shape[1] if d == 1 else 1 for d in range(len(x.shape))]
    mean, variance = call["running_mean"], call["running_var"]
    eps = float(call.node.get("eps", 1e-5))
    if variance.data is not None:
        factor = Table.measured(1.0 / np.sqrt(np.asarray(variance.data, dtype=float) + eps))
    else:
        factor = Table.constant(variance.shape, 1.0 / np.sqrt(max(variance.mean, 0.0) + eps))
    return mean.table.reshape(shape), factor.reshape(shape)


@forward(*_BATCH.split())
def _batch_norm(call: Call) -> list[State]:
    x, dims = call.first, _over(call)
    eps = float(call.node.get("eps") or call.node.get("epsilon") or 1e-5)
    if _trains(call):
        state, factor = normalised(x, dims, eps, True, ("normalised", call.token()))
        rest = _statistics(call, x, factor, dims, True)
    else:
        mean, factor = _running(call)
        table = product(add(x.table, mean, -1.0), factor)
        known = x.gaussian and linear_in_z(x)
        state = State(table, CLOSED, call.token(), gaussian=known, roots=x.roots)
        rest = [
            State(Table.constant(call.output(i).shape, 0.0), CLOSED, call.token(i))
            for i in range(1, len(call.node.outputs))
        ]
    out = scaled(state, call["weight"], call["bias"], (1,), call.token())
    return [replace(out, size=x.size, reach=x.reach), *rest]


@backward(*_BATCH.split())
def _batch_norm_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    x, dims = call.first, _over(call)
    eps = float(call.node.get("eps") or call.node.get("epsilon") or 1e-5)
    if _trains(call):
        state, factor = normalised(x, dims, eps, True, None)
        normal = state.table
    else:
        mean, factor = _running(call)
        normal = product(add(x.table, mean, -1.0), factor)
    g, found = _affine_back(call, g, normal, call["weight"], call["bias"], (1,))
    yield from found
    if _trains(call):
        yield call.node.inputs[0], _back(g, normal, factor, dims, True)
    else:
        yield call.node.inputs[0], product(g, factor)


# --- over groups of channels ----------------------------------------------------------------------


def _grouped(call: Call, table: Table) -> Table:
    """[N, C, ...] as [N, groups, C / groups, ...]."""
    n, c, *rest = call.first.shape
    groups = call.node.get("group") or call.node.get("num_groups")
    return table.reshape((n, groups, c // groups, *rest))


@forward("native_group_norm", "group_norm")
def _group_norm(call: Call) -> list[State]:
    x = call.first
    dims = tuple(range(2, len(x.shape) + 1))
    parted = x.through(lambda t: _grouped(call, t), "groups")
    state, factor = normalised(
        parted, dims, float(call.node["eps"]), True, ("normalised", call.token())
    )
    whole = state.through(lambda t: t.reshape(x.shape), "joined")
    out = scaled(whole, call["weight"], call["bias"], (1,), call.token())
    return [out, *_statistics(call, parted, factor, dims, True)]


@backward("native_group_norm", "group_norm")
def _group_norm_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    g = grads[0]
    if g is None:
        return
    x = call.first
    dims = tuple(range(2, len(x.shape) + 1))
    parted = x.through(lambda t: _grouped(call, t), "groups")
    state, factor = normalised(parted, dims, float(call.node["eps"]), True, None)
    normal = state.table.reshape(x.shape)
    g, found = _affine_back(call, g, normal, call["weight"], call["bias"], (1,))
    yield from found
    back = _back(_grouped(call, g), state.table, factor, dims, True)
    yield call.node.inputs[0], reduced_to(back.reshape(x.shape), x.shape)
