"""Max pooling: order statistics of windows, and the winners that their gradients go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from fanin.signal.joint import sample
from fanin.signal.state import CLOSED, State, integrate, law
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
    chance, apart = _chance(latent, wide, sizes), _own(latent, wide)
    alone = _chance(apart, wide, sizes)

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


def _own(latent: Table, wide: Sequence[int]) -> Table:
    """What an element does not share with the other positions: this alone decides who wins."""
    latent = latent.folded()
    shared = latent.pairs
    for a in latent.axes(wide):
        shared = shared.take([1], a)
    one, other = paired(latent.mean, latent)
    return Table(latent.dims, latent.mean, latent.pairs - shared + one * other)


def _chance(latent: Table, wide: Sequence[int], sizes: Sequence[int]) -> Function:
    """P(z is the largest of its window): n - 1 others that have one correlation with it.

    *Definition.* With z_i = sqrt(rho) c + sqrt(1 - rho) e_i and c ~ N(sqrt(rho) z, 1 - rho) given
    z, the mean over c of Phi((z - sqrt(rho) c) / sqrt(1 - rho))^(n - 1).
    """
    mean, variance = latent.average, max(latent.variance, 1e-300)
    weight = np.ones(1)
    shared = np.zeros(1)
    for n in sizes:  # pairs of taps by the axes in which they differ
        weight = np.multiply.outer(weight, [1.0, n - 1.0]).ravel()
    for i, mask in enumerate(np.ndindex(*(2,) * len(wide))):
        differs = [d for d, m in zip(wide, mask, strict=True) if m]
        if differs:
            shared = shared + weight[i] * (latent.covariance(*differs) - mean**2)
    others = int(np.prod(sizes)) - 1
    rho = float(np.clip(shared.item() / max(others, 1) / variance, 0.0, 0.999))
    nodes = np.linspace(-5, 5, 101)
    mass = np.exp(-nodes * nodes / 2)
    z = np.linspace(-8, 8, 401)
    centre = np.sqrt(rho) * z[:, None] + np.sqrt(1 - rho) * nodes
    below = ndtr((z[:, None] - np.sqrt(rho) * centre) / np.sqrt(1 - rho))
    level = below**others @ (mass / mass.sum())
    return lambda x: np.asarray(np.interp((x - mean) / np.sqrt(variance), z, level))


def _shared_out(g: Table, found: Sequence[tuple[int, np.ndarray]], shape: Sequence[int]) -> Table:
    """Gradients that go each to one element of its window, any of them alike.

    *Definition.* With M_oi = P(i wins window o), E[g_i g_j] is the sum over pairs of different
    windows of M_oi M_pj E[g_o g_p]; one window has one winner, which adds M_oi E[g_o^2] to i = j.
    """
    for d, _ in found:
        g = g.own(d)
    first = (0,) * len(g.factors)
    others, alone = g.pairs.copy(), np.zeros_like(g.pairs)
    others[first], alone[first] = 0.0, g.pairs[first]
    rest, single = Table(g.dims, g.mean, others), Table(g.dims, g.mean * 0.0, alone)
    for d, index in found:
        chance = np.zeros((shape[d], index.shape[0]))
        rows, columns = np.nonzero(index >= 0)
        chance[index[rows, columns], rows] = 1.0 / (index >= 0).sum(1)[rows]
        rest, single = rest.mixed(d, chance), single.mixed(d, np.sqrt(chance))
    whole, single = align(rest, single)
    pairs = np.broadcast_to(whole.pairs, np.broadcast_shapes(whole.pairs.shape, single.pairs.shape))
    pairs = pairs.copy()
    pairs[(0,) * len(whole.factors)] += single.pairs[(0,) * len(whole.factors)]
    return Table(whole.dims, whole.mean, pairs)
