"""Fourier transforms: what two positions share goes to frequency 0, all else spreads evenly.

A complex tensor z has the table of E[z_i conj(z_j)]. Along an axis of n elements with second
moments s_a and the mean product D of two of them, X_k = sum_a x_a w^(ka), w^n = 1, has

    E|X_k|^2 = sum_a s_a - n D + n^2 D [k = 0],
    sum_l E[X_k conj(X_l)] = n (s_0 - D) + n^2 D [k = 0].

For alike elements different frequencies are uncorrelated, and a second transform leads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fanin.signal.state import CLOSED, State
from fanin.signal.table import Table, align
from fanin.signal.transfer.call import Call, Gradients, backward, forward, reduced_to

_MANY = 16  # from so many terms on a sum counts as Gaussian


def _dims(call: Call) -> list[int]:
    """The dimensions that are transformed; the last of them is halved."""
    return [d % len(call.first.shape) for d in call.node["dim"]]


def _scale(call: Call) -> float:
    """The factor of the norm convention: 1, 1 / sqrt(n) or 1 / n."""
    longest = max(call.first.shape, call.shape, key=prod)  # of a spectrum and its half
    count = prod(longest[d] for d in _dims(call))
    return float(count ** -(call.node["normalization"] / 2))


def _transformed(table: Table, dim: int) -> Table:
    """The table of the sums over one dimension of x_a w^(ka)."""
    n = table.shape[dim]
    if n == 1:
        return table
    mean, same, differ, _, _ = table.own(dim)._parts(dim)
    together = differ.mean(-1, keepdims=True)
    first = np.arange(n) == 0
    level = n * same.mean(-1, keepdims=True) - n * together + n**2 * together * first
    whole = n * (same[..., :1] - together) + n**2 * together * first
    rest = (n * mean.mean(-1, keepdims=True) - mean[..., :1]) / (n - 1)
    constant = mean[..., :1] - rest + n * rest * first
    return table.own(dim)._with(dim, n, constant, level, (whole - level) / (n - 1))


def _resized(table: Table, dim: int, index: np.ndarray, weight: np.ndarray | float = 1.0) -> Table:
    """Entries of a dimension by index, 0 where it is -1, times a factor; copies are uncorrelated.

    A spectrum and its mirror image have equal size, and as complex numbers nothing in common.
    """
    opened = table.own(dim)
    mean, same, differ, _, _ = opened._parts(dim)

    def picked(x: np.ndarray) -> np.ndarray:
        wide = np.broadcast_to(x, (*x.shape[:-1], table.shape[dim]))
        return np.asarray(np.where(index >= 0, wide[..., np.maximum(index, 0)], 0.0))

    return opened._with(
        dim, len(index), picked(mean) * weight, picked(same) * weight**2, picked(differ) * weight**2
    )


def _half(n: int) -> np.ndarray:
    """The frequencies that are kept of n."""
    return np.arange(n // 2 + 1)


def _mirrored(n: int) -> np.ndarray:
    """For each of n frequencies the one of the half that it mirrors."""
    return np.minimum(np.arange(n), n - np.arange(n))


def _doubled(n: int) -> np.ndarray:
    """How often each frequency of the half stands in the whole.

    Twice the square where only the real part counts: half of it is lost at the real tensor.
    """
    k = _half(n)
    return np.where((k == 0) | (2 * k == n), 2**0.5, 2.0)


def _made(call: Call, table: Table) -> State:
    """The state of a transform."""
    x = call.first
    many = prod(x.shape[d] for d in _dims(call)) >= _MANY
    gaussian = many or (x.gaussian and x.function is None)
    return State(table * _scale(call), CLOSED, call.token(), gaussian=gaussian, roots=x.roots)


@forward("_fft_c2c", "_fft_r2c")
def _fft(call: Call) -> State:
    table = call.first.table
    for d in _dims(call):
        table = _transformed(table, d)
    if call.node.get("onesided"):
        d = _dims(call)[-1]
        table = _resized(table, d, _half(call.first.shape[d]))
    return _made(call, table)


@backward("_fft_c2c", "_fft_r2c")
def _fft_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """The adjoint; what arrives at a real tensor is the real part, half of it."""
    (g,) = grads
    assert g is not None
    if call.node.get("onesided"):
        d = _dims(call)[-1]
        n = call.first.shape[d]
        g = _resized(g, d, np.where(np.arange(n) <= n // 2, np.arange(n), -1))
    for d in _dims(call):
        g = _transformed(g, d)
    yield call.node.inputs[0], g * (_scale(call) * (0.5**0.5 if _of_real(call) else 1.0))


def _of_real(call: Call) -> bool:
    """Whether a real tensor is transformed, or a complex copy of one."""
    graph = call.graph
    source = graph.producer(call.node.inputs[0])
    copied = source is not None and source.name == "_to_copy"
    index = source.inputs[0] if source is not None and copied else call.node.inputs[0]
    return not graph.values[index].complex


@forward("_fft_c2r")
def _back_to_real(call: Call) -> State:
    table, dims = call.first.table, _dims(call)
    for d in dims[:-1]:
        table = _transformed(table, d)
    table = _resized(table, dims[-1], _mirrored(call.shape[dims[-1]]))
    return _made(call, _transformed(table, dims[-1]))


@backward("_fft_c2r")
def _back_to_real_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    dims = _dims(call)
    for d in dims:
        g = _transformed(g, d)
    n = call.shape[dims[-1]]
    yield call.node.inputs[0], _resized(g, dims[-1], _half(n), _doubled(n)) * _scale(call)


# --- the parts of a complex tensor ----------------------------------------------------------------


@forward("view_as_real")
def _parts(call: Call) -> State:
    """Real and imaginary part: alike, but where the transform of a real tensor is real."""
    x = call.first
    share = real_shares(call)
    opened = laid(x.table.unsqueeze(len(x.shape)), x.shape).own(len(x.shape))
    mean, same, differ, _, _ = opened._parts(len(x.shape))
    zero = np.zeros_like(differ)
    table = opened._with(len(x.shape), 2, mean * np.array([1.0, 0.0]), same * share, zero)
    return State(table, CLOSED, call.token(), gaussian=x.gaussian, roots=x.roots)


@backward("view_as_real")
def _parts_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """Twice as much where only the real part counts: half of it is lost at the real tensor."""
    (g,) = grads
    assert g is not None
    n = len(call.first.shape)
    opened = laid(g, call.first.shape).own(n)
    mean, same, differ, _, _ = opened._parts(n)
    g = opened._with(n, 2, 0 * mean, 2 * same * real_shares(call), 0 * differ)
    yield call.node.inputs[0], _joined(g)


def laid(table: Table, shape: Sequence[int]) -> Table:
    """The table with one factor for each dimension of `shape`; dimensions behind them stay."""
    return table.refactored([*((n,) if n > 1 else () for n in shape), *table.dims[len(shape) :]])


def real_shares(call: Call) -> np.ndarray:
    """Shares of the two parts in each element, as a profile of its factors and, last, the parts.

    Half each, but for the elements that are real numbers.
    """
    shape = call.first.shape
    real = np.full(shape, 0.5)
    real[_real_places(call, shape)] = 1.0
    real = real.reshape([n for n in shape if n > 1])
    for a, n in enumerate(real.shape):
        if not np.ptp(real, axis=a).any():
            real = real.take([0], a) if n > 1 else real
    return np.stack([real, 1 - real], -1)


def _real_places(call: Call, shape: tuple[int, ...]) -> tuple[np.ndarray, ...] | tuple[()]:
    """Where a chain of transforms of a real tensor is real: 0 or half of n along each of them."""
    graph, index, dims = call.graph, call.node.inputs[0], list[tuple[int, int]]()
    place = list(range(len(shape)))  # where a dimension of what is looked at ends up
    while graph.values[index].complex:
        node = graph.producer(index)
        scaled = node is not None and node.pointwise and len(node.inputs) == 1
        if node is None or not (
            scaled or node.name in ("_fft_c2c", "_fft_r2c", "_to_copy", "_conj", "transpose")
        ):
            return (np.zeros(0, dtype=int),) * len(shape)
        if "fft" in node.name:
            sizes = graph.values[node.inputs[0]].shape
            dims += [(place[d % len(sizes)], sizes[d]) for d in node["dim"]]
        if node.name == "transpose":
            a, b = (node[name] % len(place) for name in ("dim0", "dim1"))
            place[a], place[b] = place[b], place[a]
        index = node.inputs[0]
    places = [np.arange(n) for n in shape]
    for d, n in dims:
        places[d] = places[d][(2 * places[d]) % n == 0]
    return np.ix_(*places)


@forward("view_as_complex")
def _joined_parts(call: Call) -> State:
    x = call.first
    return State(_joined(x.table), CLOSED, call.token(), gaussian=x.gaussian, roots=x.roots)


@backward("view_as_complex")
def _joined_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """Half of it to each part."""
    (g,) = grads
    assert g is not None
    apart = g.unsqueeze(len(g.dims)).own(len(g.dims))
    mean, same, differ, _, _ = apart._parts(len(g.dims))
    yield (
        call.node.inputs[0],
        apart._with(len(g.dims), 2, 0 * mean, same / 2, np.zeros_like(differ)),
    )


def _joined(table: Table) -> Table:
    """The complex numbers whose two parts stand along the last dimension."""
    n = len(table.dims) - 1
    opened = table.own(n)
    mean, same, _, _, _ = opened._parts(n)
    whole = np.broadcast_to(same, (*same.shape[:-1], 2)).sum(-1)
    return Table(opened.dims[:-1], mean[..., 0], whole)


@forward("complex")
def _composed(call: Call) -> State:
    real, imaginary = call["real"], call["imag"]
    one, other = align(real.table, imaginary.table)
    gaussian = all(s.gaussian and s.function is None for s in (real, imaginary))
    table = Table(one.dims, one.mean, one.pairs + other.pairs)
    return State(table, CLOSED, call.token(), gaussian=gaussian, roots=call.roots)


@backward("complex")
def _composed_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    for index in call.node.inputs:
        yield index, reduced_to(g * 0.5**0.5, call.states[index].shape)


@forward("_conj", "_conj_physical", "conj_physical")
def _conjugate(call: Call) -> State:
    return call.first


@backward("_conj", "_conj_physical", "conj_physical")
def _conjugate_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.node.inputs[0], g
