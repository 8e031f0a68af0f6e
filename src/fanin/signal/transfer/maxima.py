"""Max pooling: order statistics of windows, and the winners that their gradients go to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from fanin.signal.joint import sample
from fanin.signal.state import CLOSED, State, Varied, integrate, law
from fanin.signal.table import Table, align, concatenate, paired, product
from fanin.signal.transfer.call import Call, Term, backward, forward
from fanin.signal.transfer.pool import windows

if TYPE_CHECKING:
    from fanin.signal.graph import Node
    from fanin.signal.state import Function

_DRAWS = 2048
_PARTS = 8  # channels of so many different laws are drawn one law at a time; more as one

_MAXIMA = (
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "mkldnn_max_pool2d"
)


@forward(*_MAXIMA.split())
def _maximum(call: Call) -> list[State]:
    """Windows drawn from the state and their maxima measured, for each number of taps inside.

    The maximum of maxima is one over what their windows cover together, and channels of different
    laws are pooled side by side.
    """
    x, found = _covered(call)
    wide = tuple(d for d, _ in found)
    latent, function, _, _ = law(x)
    counts = [(index >= 0).sum(1) for _, index in found]
    sizes = sorted({int(np.prod(c)) for c in _products(counts)})
    channel, generator, made, errors = min(wide) - 1, call.generator(), [], [0.0]
    for part in _parts(latent, channel):
        own = latent if part is None else latent.gather(channel, part)
        tables = {n: _largest(own, function, wide, n, generator) for n in sizes}
        shape = tuple(own.shape[d] if d == channel else n for d, n in enumerate(call.shape))
        made.append(_placed(x.shape, shape, tables, counts, wide))
        errors += [error for *_, error in tables.values()]
    table = made[0] if len(made) == 1 else concatenate(made, channel)._compact()
    rest = [
        State(Table.constant(call.output(i).shape, 0.0), CLOSED, call.token(i))
        for i in range(1, len(call.node.outputs))
    ]
    how = f"sampled ± {max(errors):.1%}"
    return [State(table, how, call.token(), nonnegative=x.nonnegative, roots=call.roots), *rest]


def _covered(call: Call) -> tuple[State, list[tuple[int, np.ndarray]]]:
    """The tensor behind one or more max pools in a row, and the windows of them all on it."""
    x, found = call.first, windows(call)
    node: Node | None = call.graph.producer(call.node.inputs[0])
    while node is not None and node.name in _MAXIMA.split():
        before = Call(node, call.graph, call.states)
        inner = dict(windows(before))
        if inner.keys() != dict(found).keys():
            break
        found = [(d, _composed(index, inner[d])) for d, index in found]
        x, node = before.first, call.graph.producer(node.inputs[0])
    return x, found


def _composed(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The taps of windows over windows: index [output, tap], -1 outside."""
    rows = [np.unique(inner[row[row >= 0]]) for row in outer]
    rows = [row[row >= 0] for row in rows]
    index = np.full((len(rows), max(len(row) for row in rows)), -1)
    for o, row in enumerate(rows):
        index[o, : len(row)] = row
    return index


def _parts(latent: Table, channel: int) -> list[np.ndarray | None]:
    """Runs of channels that have one law; None where all are taken as alike."""
    if channel < 0 or latent.shape[channel] == 1:
        return [None]
    own = latent.own(channel)
    (a,) = own.axes((channel,))
    others = tuple(i for i in range(len(own.factors)) if i != a)
    level = np.broadcast_to(own.same.mean(others), (own.factors[a],))
    mean = np.broadcast_to(own.mean.mean(others), level.shape)
    steps = np.abs(np.diff(np.stack([level, mean]))) > 1e-9 * np.abs(level).max()
    edges = np.flatnonzero(steps.any(0)) + 1
    if not 0 < len(edges) < _PARTS:
        return [None]
    return list(np.split(np.arange(len(level)), edges))


def _products(counts: Sequence[np.ndarray]) -> set[tuple[int, ...]]:
    """All combinations of taps inside along each axis."""
    found: set[tuple[int, ...]] = {()}
    for c in counts:
        found = {(*f, int(n)) for f in found for n in np.unique(c)}
    return found


def _largest(
    latent: Table,
    function: Function | None,
    wide: Sequence[int],
    taps_inside: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, float, float]:
    """Pairs (by differing axes outside the window and by differing windows), mean and error.

    Two windows are drawn for each other axis, so that the maxima's covariances are measured too.
    """
    flat = latent.flat()
    flat = flat.coarse(tuple(range(len(flat.dims))))
    k, inside = len(flat.factors), flat.axes(wide)
    others = [a for a in range(k) if a not in inside]
    shape = (_DRAWS, *(2 for _ in others), 2, max(taps_inside, 1))
    pairs = np.full((2,) * len(shape), flat.average**2)
    for mask in np.ndindex(*(2,) * (len(others) + 2)):
        differs = dict(zip(others, mask, strict=False))
        moved = int(any(mask[-2:]))
        entry = tuple(moved if a in inside else differs[a] for a in range(k))
        pairs[(0, *mask)] = flat.pairs.reshape((2,) * k)[entry]
    small = Table(
        tuple((n,) for n in shape),
        np.full((1,) * len(shape), flat.average),
        pairs.reshape((2,) * len(shape) + (1,) * len(shape)),
    )
    z = sample(small, generator).reshape(shape)
    top = (z if function is None else np.asarray(function(z))).max(-1)
    level = (top**2).mean(axis=tuple(range(1, top.ndim)))
    found = np.empty((2,) * (top.ndim - 1))
    for mask in np.ndindex(*found.shape):
        other = np.flip(top, tuple(1 + a for a, m in enumerate(mask) if m))
        found[mask] = (top * other).mean()
    error = float(level.std() / np.sqrt(_DRAWS) / max(level.mean(), 1e-300))
    return found, float(top.mean()), error


def _placed(
    source: Sequence[int],
    shape: Sequence[int],
    tables: dict[int, tuple[np.ndarray, float, float]],
    counts: Sequence[np.ndarray],
    wide: Sequence[int],
) -> Table:
    """The maxima of windows with different numbers of taps, each at its place."""
    inside = np.ones(())
    for c in counts:
        inside = np.multiply.outer(inside, c)
    dims = tuple((n,) if n > 1 else () for n in shape)
    axes = [d for d in range(len(shape)) if shape[d] > 1]
    kept_dims = [d for d, n in enumerate(source) if n > 1 and d not in wide and shape[d] > 1]
    k = len(axes)
    profile = [shape[d] if d in wide else 1 for d in axes]
    kept = inside.reshape(profile) if len(tables) > 1 else np.full((1,) * k, inside.flat[0])
    pick = {n: i for i, n in enumerate(tables)}
    place = np.vectorize(pick.get)(kept.astype(int))
    values = list(tables.values())
    pairs = np.empty((2,) * k + kept.shape)
    for mask in np.ndindex(*(2,) * k):
        differs = dict(zip(axes, mask, strict=True))
        moved = int(any(differs.get(d, 0) for d in wide))
        entry = (*(differs.get(d, 0) for d in kept_dims), moved)
        pairs[mask] = np.array([v[0][entry] for v in values])[place]
    mean = np.array([v[1] for v in values])[place]
    return Table(dims, mean, pairs)._compact()


@backward(*_MAXIMA.split())
def _maximum_back(call: Call, grads: Sequence[Table | None]) -> Iterator[tuple[int, Term]]:
    """Each output's gradient goes to the largest of its window.

    The slope carries the root of an element's chance to be it, so that an activation in front is
    seen at the winners and not at the average. What all positions share takes no part in who wins:
    in two windows any two elements win together with the product of their chances.
    """
    g = grads[0]
    if g is None:
        return
    found = windows(call)
    g = _shared_out(g, found, call.first.shape)
    wide, sizes = [d for d, _ in found], [index.shape[1] for _, index in found]
    latent, _, source, _ = law(call.first)
    latent, apart = (_by_law(t, wide) for t in (latent, _own(latent, wide)))
    chance, alone = (_chance(t, wide, sizes) for t in (latent, apart))

    def winning(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.prod(sizes) * chance(z)))

    root, _ = integrate(winning, latent)
    both, _ = integrate(lambda z: np.prod(sizes) * alone(z), apart)
    one, both = align(root, both)
    first, second = paired(both.mean, both)
    pairs = both.pairs / np.maximum(first * second * one.pairs, 1e-300)
    pairs[(0,) * len(one.factors)] = 1.0 / np.maximum(one.same, 1e-300)
    arriving = product(g, Table(one.dims, one.mean * 0.0, pairs))
    yield call.node.inputs[0], Term((call.node.index, 0), arriving, winning, latent, source)


def _by_law(latent: Table, wide: Sequence[int]) -> Table:
    """A Gaussian whose positions are alike; channels may have laws of their own."""
    flat = latent.coarse(wide).flat(wide)
    mean = np.broadcast_arrays(flat.mean, flat.same)[0]
    differ = tuple(a for a, n in enumerate(mean.shape) if n > 1)
    return Varied(flat.dims, mean, flat.pairs, differ) if differ else flat


def _own(latent: Table, wide: Sequence[int]) -> Table:
    """What an element does not share with the other positions: this alone decides who wins."""
    latent = latent.folded()
    shared = latent.pairs
    for a in latent.axes(wide):
        shared = shared.take([1], a)
    one, other = paired(latent.mean, latent)
    return Table(latent.dims, latent.mean, latent.pairs - shared + one * other)


def _chance(latent: Table, wide: Sequence[int], sizes: Sequence[int]) -> Function:
    """P(z is the largest of its window), element by element of a Gaussian with alike positions."""
    std = np.sqrt(np.maximum(latent.same - latent.mean**2, 1e-300))
    rho = np.broadcast_to(_correlation(latent, wide, sizes), std.shape)
    levels, others = np.unique(rho), int(np.prod(sizes)) - 1
    if len(levels) > _PARTS:
        levels = rho.mean(keepdims=True).ravel()
    curves = [_won(float(r), others) for r in levels]
    single = not isinstance(latent, Varied)
    mean, std, rho = (x.ravel() if single else x[..., None] for x in (latent.mean, std, rho))

    def chance(z: np.ndarray) -> np.ndarray:
        found = [np.interp((z - mean) / std, _PLACES, curve) for curve in curves]
        if len(found) == 1:
            return np.asarray(found[0])
            return np.asarray(found[0])
        return np.asarray(sum((rho == r) * x for r, x in zip(levels, found, strict=True)))

    return chance


_PLACES = np.linspace(-8, 8, 401)


def _won(rho: float, others: int) -> np.ndarray:
    """P(z_1 is above the others given z_1) at `_PLACES`, all of one correlation.

    *Definition.* With z_i = sqrt(rho) c + sqrt(1 - rho) e_i and c ~ N(sqrt(rho) z, 1 - rho) given
    z, the mean over c of Phi((z - sqrt(rho) c) / sqrt(1 - rho))^(n - 1).
    """
    nodes = np.linspace(-5, 5, 101)
    mass = np.exp(-nodes * nodes / 2)
    z = _PLACES[:, None]
    centre = np.sqrt(rho) * z + np.sqrt(1 - rho) * nodes
    below = ndtr((z - np.sqrt(rho) * centre) / np.sqrt(1 - rho))
    return np.asarray(below**others @ (mass / mass.sum()))


def _correlation(latent: Table, wide: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The average correlation of two different taps of a window, by channel, to three digits."""
    axes = [latent.axes((d,)) for d in wide]
    weights = np.ones(1)
    for n in sizes:  # pairs of taps by the axes in which they differ
        weights = np.multiply.outer(weights, [1.0, n - 1.0]).ravel()
    shared = np.zeros(())
    for weight, mask in zip(weights[1:], list(np.ndindex(*(2,) * len(wide)))[1:], strict=True):
        moved = {a for own, m in zip(axes, mask, strict=True) for a in own if m}
        entry = tuple(int(a in moved) for a in range(len(latent.factors)))
        shared = shared + weight * (latent.pairs[entry] - latent.mean**2)
    variance = np.maximum(latent.same - latent.mean**2, 1e-300)
    rho = shared / max(weights[1:].sum(), 1.0) / variance
    return np.asarray(np.round(np.clip(rho, 0.0, 0.999), 3))


def _shared_out(g: Table, found: Sequence[tuple[int, np.ndarray]], shape: Sequence[int]) -> Table:
    """Gradients that go each to one element of its window, any of them alike.

    *Definition.* For i != j, with M_oi = P(i wins window o) = 1/n, E[g_i g_j] is the sum over pairs
    of different windows of M_oi M_pj E[g_o g_p]. For i = j it is the sum over pairs of windows
    that both hold i of E[g_o g_p] / n_op: i wins both if it is the largest of the n_op in either.
    """
    for d, _ in found:
        g = g.own(d)
    first = (0,) * len(g.factors)
    others, alone = g.pairs.copy(), np.zeros_like(g.pairs)
    others[first], alone[first] = 0.0, g.pairs[first] * _repeated(g, found)
    rest, single = Table(g.dims, g.mean, others), Table(g.dims, g.mean * 0.0, alone)
    for d, index in found:
        chance = np.zeros((shape[d], index.shape[0]))
        rows, columns = np.nonzero(index >= 0)
        chance[index[rows, columns], rows] = 1.0 / (index >= 0).sum(1)[rows]
        rest, single = rest.mixed(d, chance), single.mixed(d, np.sqrt(chance))
    whole, single = align(rest, single)
    pairs = np.broadcast_to(whole.pairs, np.broadcast_shapes(whole.pairs.shape, single.pairs.shape))
    pairs = pairs.copy()
    pairs[(0,) * len(whole.factors)] = single.pairs[(0,) * len(whole.factors)]
    return Table(whole.dims, whole.mean, pairs)


def _repeated(g: Table, found: Sequence[tuple[int, np.ndarray]]) -> float:
    """E[g_i^2] over what windows that do not overlap would give: one element wins several."""
    level, n = g.pairs[(0,) * len(g.factors)].mean(), prod(index.shape[1] for _, index in found)
    whole = 0.0
    for shift in itertools.product(*(_shifts(index) for _, index in found)):
        moved = {a for (d, _), (m, *_) in zip(found, shift, strict=True) if m for a in g.axes((d,))}
        entry = tuple(int(a in moved) for a in range(len(g.factors)))
        held, present = prod(taps for _, taps, _ in shift), prod(share for *_, share in shift)
        whole += float(present * held / (2 * n - held) * g.pairs[entry].mean())
    return whole / float(level) if level > 0 else 1.0


def _shifts(index: np.ndarray) -> list[tuple[int, int, float]]:
    """Windows that overlap along an axis: how far off, taps in both, share that have one there."""
    ends, (count, size) = index.max(1), index.shape
    stride = max(round((ends[-1] - ends[0]) / max(count - 1, 1)), 1)
    reach = min((size - 1) // stride, count - 1)
    return [(m, size - abs(m) * stride, 1 - abs(m) / count) for m in range(-reach, reach + 1)]
