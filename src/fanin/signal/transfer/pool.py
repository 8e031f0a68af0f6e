"""Pooling and resampling: averages are linear maps, maxima are order statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from fanin.signal.joint import sample
from fanin.signal.state import CLOSED, State, integrate, law
from fanin.signal.table import Table, align, product
from fanin.signal.transfer.call import Call, Gradients, Term, backward, forward
from fanin.signal.transfer.convolution import _each, taps

if TYPE_CHECKING:
    from fanin.signal.state import Function

_DRAWS = 2048


def _windows(call: Call) -> list[tuple[int, np.ndarray]]:
    """For each pooled dimension its windows: index [output, tap], -1 outside."""
    node, shape, out = call.node, call.first.shape, call.shape
    nd = int(node.name[node.name.index("pool") + 4])
    first = len(shape) - nd
    if "adaptive" in node.name:
        return [(d, _adaptive(shape[d], out[d])) for d in range(first, len(shape))]
    kernel = _each(node["kernel_size"], nd, 1)
    stride = _each(node.get("stride") or kernel, nd, 1)
    padding, dilation = _each(node.get("padding"), nd, 0), _each(node.get("dilation"), nd, 1)
    found = []
    for i in range(nd):
        d = first + i
        index = taps(shape[d], kernel[i], stride[i], padding[i], dilation[i], out[d])
        found.append((d, index))
    return found


def _adaptive(size: int, outputs: int) -> np.ndarray:
    """Windows of adaptive pooling: from floor(o n / m) to ceil((o + 1) n / m)."""
    starts = [o * size // outputs for o in range(outputs)]
    ends = [-(-(o + 1) * size // outputs) for o in range(outputs)]
    longest = max(e - s for s, e in zip(starts, ends, strict=True))
    index = np.full((outputs, longest), -1)
    for o, (s, e) in enumerate(zip(starts, ends, strict=True)):
        index[o, : e - s] = np.arange(s, e)
    return index


def _matrices(call: Call) -> list[tuple[int, np.ndarray]]:
    """The linear map of each dimension of an average pool or a resampling."""
    node, shape, out = call.node, call.first.shape, call.shape
    if "pool" not in node.name:
        n = len(shape)
        make = _bilinear if "linear" in node.name else _bicubic
        align = bool(node.get("align_corners", False))
        return [(d, make(shape[d], out[d], align)) for d in range(2, n)]
    divisor = node.get("divisor_override")
    found = []
    for i, (d, index) in enumerate(_windows(call)):
        matrix = np.zeros((index.shape[0], shape[d]))
        rows, columns = np.nonzero(index >= 0)
        matrix[rows, index[rows, columns]] = 1.0
        count = (index >= 0).sum(1)
        if divisor:
            count = np.full(len(index), divisor if i == 0 else 1)
        elif "adaptive" not in node.name and node.get("count_include_pad", True):
            count = _padded_count(call, i, shape[d], index)
        found.append((d, matrix / count[:, None]))
    return found


def _padded_count(call: Call, axis: int, size: int, index: np.ndarray) -> np.ndarray:
    """Places of each window inside the padded input: `ceil_mode` lets windows hang over its end."""
    node = call.node
    nd = int(node.name[node.name.index("pool") + 4])
    kernel = _each(node["kernel_size"], nd, 1)
    stride = _each(node.get("stride") or kernel, nd, 1)[axis]
    padding = _each(node.get("padding"), nd, 0)[axis]
    start = np.arange(index.shape[0]) * stride - padding
    return np.minimum(start + kernel[axis], size + padding) - start


def _centres(size: int, outputs: int, align: bool) -> np.ndarray:
    """Where each output lies on the input's grid."""
    if align:
        return np.linspace(0, size - 1, outputs) if outputs > 1 else np.zeros(1)
    return (np.arange(outputs) + 0.5) * size / outputs - 0.5


def _bilinear(size: int, outputs: int, align: bool) -> np.ndarray:
    """Weights of linear interpolation along one axis."""
    place = np.clip(_centres(size, outputs, align), 0, size - 1)
    distance = np.abs(place[:, None] - np.arange(size))
    return np.asarray(np.maximum(0.0, 1.0 - distance))


def _bicubic(size: int, outputs: int, align: bool) -> np.ndarray:
    """Weights of cubic convolution (a = -0.75) along one axis, the border repeated."""
    place, a = _centres(size, outputs, align), -0.75
    matrix = np.zeros((outputs, size))
    base = np.floor(place).astype(int)
    for step in range(-1, 3):
        x = np.abs(place - (base + step))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(base + step, 0, size - 1)
        np.add.at(matrix, (np.arange(outputs), column), np.where(x <= 1, near, far * (x < 2)))
    return matrix


_LINEAR = (
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
)


@forward(*_LINEAR.split())
def _average(call: Call) -> State:
    table = call.first.table
    for d, matrix in _matrices(call):
        table = table.mixed(d, matrix)
    x = call.first
    known = x.gaussian and x.function is None
    return State(
        table, CLOSED, call.token(), gaussian=known, nonnegative=x.nonnegative, roots=x.roots
    )


@backward(*_LINEAR.split())
def _average_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    for d, matrix in _matrices(call):
        g = g.mixed(d, matrix.T)
    yield call.node.inputs[0], g


_MAXIMA = (
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "mkldnn_max_pool2d"
)


@forward(*_MAXIMA.split())
def _maximum(call: Call) -> list[State]:
    """Windows drawn from the state and their maxima measured, for each number of taps inside."""
    windows = _windows(call)
    x = call.first
    wide = tuple(d for d, _ in windows)
    latent, function, _, _ = law(x)
    counts = [(index >= 0).sum(1) for _, index in windows]
    sizes = sorted({int(np.prod(c)) for c in _products(counts)})
    tables = {n: _largest(latent, function, wide, n, call.generator()) for n in sizes}
    state = _placed(call, tables, counts, wide)
    rest = [
        State(Table.constant(call.output(i).shape, 0.0), CLOSED, call.token(i))
        for i in range(1, len(call.node.outputs))
    ]
    return [replace(state, nonnegative=x.nonnegative), *rest]


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
    call: Call,
    tables: dict[int, tuple[np.ndarray, float, float]],
    counts: Sequence[np.ndarray],
    wide: Sequence[int],
) -> State:
    """The maxima of windows with different numbers of taps, each at its place."""
    shape = call.shape
    inside = np.ones(())
    for c in counts:
        inside = np.multiply.outer(inside, c)
    dims = tuple((n,) if n > 1 else () for n in shape)
    axes = [d for d in range(len(shape)) if shape[d] > 1]
    source = [d for d, n in enumerate(call.first.shape) if n > 1 and d not in wide]
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
        entry = (*(differs.get(d, 0) for d in source), moved)
        pairs[mask] = np.array([v[0][entry] for v in values])[place]
    mean = np.array([v[1] for v in values])[place]
    error = max(v[2] for v in values)
    return State(
        Table(dims, mean, pairs)._compact(),
        f"sampled ± {error:.1%}",
        call.token(),
        roots=call.roots,
    )


@backward(*_MAXIMA.split())
def _maximum_back(call: Call, grads: Sequence[Table | None]) -> Iterator[tuple[int, Term]]:
    """Each output's gradient goes to the largest of its window.

    The slope carries the root of an element's chance to be it, so that an activation in front is
    seen at the winners and not at the average; winners of two windows are independent given both.
    """
    g = grads[0]
    if g is None:
        return
    windows = _windows(call)
    for d, index in windows:
        size = call.first.shape[d]
        g = _shared_out(g, d, size, index.shape[0] / size)
    sizes = [index.shape[1] for _, index in windows]
    latent, _, source, _ = law(call.first)
    chance = _chance(latent, [d for d, _ in windows], sizes)

    def winning(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.prod(sizes) * chance(z)))

    root, _ = integrate(winning, latent)
    one, mean = align(root, integrate(lambda z: winning(z) ** 2, latent)[0])
    pairs = mean.pairs / np.maximum(one.pairs, 1e-300)
    pairs[(0,) * len(one.factors)] = 1.0
    arriving = product(g, Table(one.dims, one.mean * 0.0, pairs))
    yield call.node.inputs[0], Term((call.node.index, 0), arriving, winning, latent, source)


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


def _shared_out(g: Table, dim: int, size: int, share: float) -> Table:
    """Gradients that land at one place in `1 / share`, along one dimension."""
    whole = g.own(dim).flat()
    mean, same, differ, _, _ = whole._parts(dim)
    apart = same * 0.0 if g.shape[dim] == 1 else differ * share**2
    return whole._with(dim, size, mean * share, same * share, apart)
