"""Operations that move elements: views, slices, joins, padding, and choices by known index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from fanin.signal.slices import slice_of
from fanin.signal.state import ASSUMED, CLOSED, State
from fanin.signal.table import Table, add, concatenate
from fanin.signal.transfer.call import Call, Gradients, backward, dims_of, forward, reduced_to
from fanin.signal.transfer.embedding import looked_up, looked_up_back

Change = Callable[[Table], Table]

_SAME = "alias detach lift_fresh clone contiguous to positive resolve_conj resolve_neg"
_RESHAPES = (
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze view_as "
    "squeeze_ unsqueeze_"
)


@forward(*_SAME.split())
def _same(call: Call) -> State:
    return call.first


@backward("_to_copy", *(name for name in _SAME.split() if name != "detach"))
def passed_on(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """The gradient of a copy is the gradient."""
    (g,) = grads
    if g is not None:
        yield call.node.inputs[0], g


@backward("detach")
def _stopped(call: Call, grads: Sequence[Table | None]) -> Gradients:
    return ()


@forward(*_RESHAPES.split())
def _reshape(call: Call) -> State:
    shape = call.shape
    return call.first.through(lambda t: t.reshape(shape), ("view", shape))


@backward(*_RESHAPES.split())
def _reshape_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.node.inputs[0], g.reshape(call.first.shape)


def _order(call: Call) -> tuple[int, ...]:
    """The permutation that permute, transpose or t makes."""
    n = len(call.first.shape)
    if call.node.name in ("permute", "movedim"):
        return tuple(d % n for d in call.node["dims"])
    order = list(range(n))
    if call.node.name in ("transpose", "swapaxes"):
        a, b = call.node["dim0"], call.node["dim1"]
    else:
        a, b = (0, 1) if n > 1 and call.node.name == "t" else (-1, -2)
    if n > 1:
        order[a], order[b] = order[b], order[a]
    return tuple(order)


@forward("permute", "transpose", "t", "mT", "numpy_T", "swapaxes")
def _permute(call: Call) -> State:
    order = _order(call)
    return call.first.through(lambda t: t.permute(order), ("permute", order))


@backward("permute", "transpose", "t", "mT", "numpy_T", "swapaxes")
def _permute_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.node.inputs[0], g.permute([int(i) for i in np.argsort(_order(call))])


@forward("expand", "expand_as", "broadcast_to")
def _expand(call: Call) -> State:
    shape = call.shape
    return call.first.through(lambda t: t.expand(shape), ("expand", shape))


@backward("expand", "expand_as", "broadcast_to")
def _expand_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.node.inputs[0], reduced_to(g, call.first.shape)


# --- picks along one dimension -------------------------------------------------------------------


def picks(call: Call) -> list[tuple[int, np.ndarray]]:
    """For each dimension that the operation picks from: the dimension and the indices."""
    node, shape = call.node, call.first.shape
    n = len(shape)
    name = node.name
    if name in ("slice", "select", "narrow"):
        d = node["dim"] % n
        size = shape[d]
        if name == "select":
            return [(d, np.array([node["index"] % size]))]
        if name == "narrow":
            start = node["start"] % size if node["start"] < 0 else node["start"]
            return [(d, np.arange(start, start + node["length"]))]
        return [(d, np.arange(size)[node.get("start") : node.get("end") : node.get("step") or 1])]
    if name == "flip":
        return [(d, np.arange(shape[d])[::-1]) for d in dims_of(node["dims"], n)]
    if name == "roll":
        dims = dims_of_ordered(node.get("dims"), n)
        shifts = node["shifts"] if isinstance(node["shifts"], tuple) else (node["shifts"],)
        return [
            (d, (np.arange(shape[d]) - s) % shape[d]) for d, s in zip(dims, shifts, strict=True)
        ]
    if name == "repeat":
        times = node["repeats"]
        return [
            (d, np.tile(np.arange(s), r))
            for d, (s, r) in enumerate(zip(shape, times[len(times) - n :], strict=True))
            if r > 1
        ]
    if name == "upsample_nearest" or name.startswith(("upsample_nearest", "_upsample_nearest")):
        out = call.shape
        return [(d, np.arange(out[d]) * shape[d] // out[d]) for d in range(2, n)]
    return _padding(call)


def dims_of_ordered(dim: object, n: int) -> tuple[int, ...]:
    """Dimensions in the order given."""
    dims = dim if isinstance(dim, tuple) else (dim,)
    return tuple(d % n for d in dims if isinstance(d, int))


def _padding(call: Call) -> list[tuple[int, np.ndarray]]:
    """Indices of constant, reflection, replication and circular padding."""
    node, shape = call.node, call.first.shape
    pad = node.get("pad") or node.get("padding")
    name, n, found = node.name, len(shape), []
    for i in range(len(pad) // 2):
        low, high, d = pad[2 * i], pad[2 * i + 1], n - 1 - i
        if not low and not high:
            continue
        index = np.arange(-low, shape[d] + high)
        size = shape[d]
        if name == "constant_pad_nd":
            index = np.where((index >= 0) & (index < size), index, -1)
        elif "reflection" in name:
            index = (size - 1) - np.abs((size - 1) - np.abs(index))
        elif "replication" in name:
            index = np.clip(index, 0, size - 1)
        else:
            index = index % size
        found.append((d, index))
    return found


_PICKS = (
    "slice select narrow flip roll repeat upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact2d constant_pad_nd reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "_pad_circular"
)


@forward(*_PICKS.split())
def _pick(call: Call) -> State:
    moves = picks(call)
    fill = float(call.node.get("value") or 0.0) if call.node.name == "constant_pad_nd" else 0.0
    shape = call.shape
    padded = any((index < 0).any() for _, index in moves)

    def change(table: Table) -> Table:
        if len(shape) > len(table.dims):  # repeat with new dimensions in front
            table = table.expand((1,) * (len(shape) - len(table.dims)) + table.shape)
        for d, index in moves:
            table = table.gather(d - len(call.first.shape), index, fill)
        return table.expand(shape) if call.node.name == "repeat" else table.reshape(shape)

    key = (call.node.name, *((d, *_brief(index)) for d, index in moves))
    made = call.first.through(change, key, same_law=not padded)
    if call.node.name != "select" or not call.output().floating:
        return made
    ((d, index),) = moves
    parent = (call.first.token, "sliced", d)
    return replace(made, slices=slice_of(parent, call.first.table, d, int(index[0])))


def _brief(index: np.ndarray) -> tuple[int, ...]:
    """A picked range as a key that does not grow with it."""
    return (len(index), int(index[0]), int(index[-1]), hash(index.tobytes())) if len(index) else ()


@backward(*_PICKS.split())
def _pick_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    shape = call.first.shape
    if call.node.name == "select":
        g = g.unsqueeze(call.node["dim"] % len(shape))
    if len(g.dims) > len(shape):
        g = g.sum(tuple(range(len(g.dims) - len(shape))))
    for d, index in picks(call):
        g = scattered(g, d, index, shape[d])
    yield call.node.inputs[0], g


def scattered(g: Table, dim: int, index: np.ndarray, size: int) -> Table:
    """The adjoint of a pick: each element gets the sum of what was taken from it."""
    kept = index[index >= 0]
    if len(np.unique(kept)) == len(kept):
        inverse = np.full(size, -1)
        inverse[kept] = np.flatnonzero(index >= 0)
        return g.gather(dim, inverse)
    matrix = np.zeros((size, len(index)))
    matrix[kept, np.flatnonzero(index >= 0)] = 1.0
    return g.mixed(dim, matrix)


# --- several parts -------------------------------------------------------------------------------

_SPLITS = ("split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk",
           "unsafe_split_with_sizes", "tensor_split")  # fmt: skip


@forward(*_SPLITS)
def _split(call: Call) -> list[State]:
    d = (call.node.get("dim") or 0) % len(call.first.shape)
    found, start = [], 0
    for position in range(len(call.node.outputs)):
        shape = call.output(position).shape
        size = 1 if call.node.name == "unbind" else shape[d]
        index = np.arange(start, start + size)

        def change(t: Table, index: np.ndarray = index, shape: tuple[int, ...] = shape) -> Table:
            return t.gather(d, index).reshape(shape)

        found.append(call.first.through(change, ("slice", d, *_brief(index), shape)))
        start += size
    return found


@backward(*_SPLITS)
def _split_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    d = (call.node.get("dim") or 0) % len(call.first.shape)
    parts = []
    for position, g in enumerate(grads):
        shape = list(call.output(position).shape)
        if call.node.name == "unbind":
            shape.insert(d, 1)
        parts.append(Table.constant(shape, 0.0) if g is None else g.reshape(shape))
    yield call.node.inputs[0], concatenate(parts, d)


@forward("cat", "stack", "concat", "hstack", "vstack")
def _cat(call: Call) -> State:
    parts = [s for s in call["tensors"] if prod(s.shape)]
    d = call.node.get("dim") or 0
    n = len(call.shape)
    d %= n
    tables = [p.table.unsqueeze(d) if call.node.name == "stack" else p.table for p in parts]
    table = concatenate(tables, d, _shared(parts, tables, d))
    alike = all(p.gaussian and p.function is None for p in parts)
    return State(table, CLOSED, call.token(), gaussian=alike, roots=call.roots,
                 nonnegative=all(p.nonnegative for p in parts))  # fmt: skip


def _shared(
    parts: Sequence[State], tables: Sequence[Table], dim: int
) -> Callable[[int, int], np.ndarray | None]:
    """E[x y] of two parts that are picked from one tensor: pairs that differ along the pick."""

    def cross(i: int, j: int) -> np.ndarray | None:
        if parts[i].token == parts[j].token and tables[i].dims == tables[j].dims:
            table = tables[i].own(dim)
            _, same, differ, _, a = table._parts(dim)
            n = table.factors[a]
            return np.asarray(((same + (n - 1) * differ) / n).mean(-1, keepdims=True))
        return None

    return cross


@backward("cat", "stack", "concat")
def _cat_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    d = (call.node.get("dim") or 0) % len(call.shape)
    start = 0
    for index in call.node.inputs:
        shape = call.states[index].shape
        if not prod(shape):
            continue
        size = 1 if call.node.name == "stack" else shape[d]
        yield index, g.gather(d, np.arange(start, start + size)).reshape(shape)
        start += size


@forward("copy")
def _copied(call: Call) -> State:
    """What is written over a tensor, spread to its shape."""
    shape = call.shape
    return call.states[call.index("src")].through(lambda t: t.expand(shape), ("copy", shape))


@backward("copy")
def _copied_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    yield call.index("src"), reduced_to(g, call["src"].shape)


def _written(call: Call) -> tuple[int, np.ndarray]:
    """The dimension and the places that a slice overwrites."""
    node, shape = call.node, call.shape
    d = (node.get("dim") or 0) % len(shape)
    return d, np.arange(shape[d])[node.get("start") : node.get("end") : node.get("step") or 1]


@forward("slice_scatter")
def _scattered_in(call: Call) -> State:
    """A slice overwritten: what stays, and what is written, side by side and in order."""
    whole, part = call.states[call.index("self")], call.states[call.index("src")]
    d, places = _written(call)
    stay = np.setdiff1d(np.arange(call.shape[d]), places)
    if not len(stay):
        return part.through(lambda t: t.reshape(call.shape), ("written", call.token()))
    kept = whole.table.gather(d, stay)
    table = concatenate([kept, part.table], d).gather(d, np.argsort(np.r_[stay, places]))
    alike = all(s.gaussian and s.function is None for s in (whole, part))
    return State(table, CLOSED, call.token(), gaussian=alike, roots=call.roots)


@backward("slice_scatter")
def _scattered_in_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    d, places = _written(call)
    outside = np.arange(call.shape[d])
    outside[places] = -1
    yield call.index("self"), g.gather(d, outside)
    yield call.index("src"), g.gather(d, places)


def _crossed(call: Call) -> list[tuple[int, np.ndarray]]:
    """For indices of several neighbouring dimensions that cross like a grid: each with its own."""
    if "indices" not in call.node.args:
        return []
    given = [(d, s.data) for d, s in enumerate(call["indices"]) if s is not None]
    m, first = len(given), given[0][0] if given else 0
    if m < 2 or any(data is None or data.dtype == bool for _, data in given):
        return []
    for i, (d, data) in enumerate(given):
        wide = (1,) * (m - data.ndim) + data.shape
        if d != first + i or len(wide) != m or any(n != 1 for j, n in enumerate(wide) if j != i):
            return []
    return [(d, data.ravel() % call.first.shape[d]) for d, data in given]


@forward("index_select", "index", "_unsafe_index")
def _index(call: Call) -> State:
    if moves := _crossed(call):

        def change(table: Table) -> Table:
            for d, index in moves:
                table = table.gather(d, index)
            return table

        key = ("grid", *((d, *_brief(index)) for d, index in moves))
        return call.first.through(change, key)
    d, index = _chosen(call)
    if index is None or index.ndim == 1 or d:
        if index is None or index.ndim != 1:
            return _unknown_rows(call)
        return call.first.through(lambda t: t.gather(d, index), ("pick", d, *_brief(index)))
    table = looked_up(call.first.table, index)
    return State(table, CLOSED, call.token(), gaussian=call.first.gaussian, roots=call.first.roots)


def _unknown_rows(call: Call) -> State:
    """Rows picked by an index that depends on the data: like any others."""
    shape = call.shape
    whole = call.first.table.flat()
    table = Table.iid(shape, whole.average, whole.second_moment)
    how = f"{ASSUMED}: rows picked by data are like any others"
    return State(table, how, call.token(), gaussian=call.first.gaussian, roots=call.roots)


def _chosen(call: Call) -> tuple[int, np.ndarray | None]:
    """The dimension that is indexed and the indices, if they are known and there is one."""
    node = call.node
    if node.name == "index_select":
        return node["dim"] % len(call.first.shape), call["index"].data
    known = [(d, s) for d, s in enumerate(call["indices"]) if s is not None]
    if len(known) != 1:
        return 0, None
    d, state = known[0]
    data = state.data
    if data is not None and data.dtype == bool:
        data = np.flatnonzero(data) if data.ndim == 1 else None
    return d, data


@backward("index_select", "index", "_unsafe_index")
def _index_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    source = call.node.inputs[0]
    if moves := _crossed(call):
        for d, index in moves:
            g = scattered(g, d, index, call.first.shape[d])
        yield source, g
        return
    d, rows = _chosen(call)
    if rows is not None and rows.ndim == 1:
        yield source, scattered(g, d, rows % call.first.shape[d], call.first.shape[d])
    elif rows is not None and d == 0:
        yield source, looked_up_back(g, rows, call.first.shape)
    else:
        share = prod(call.shape) / max(prod(call.first.shape), 1)
        yield source, Table.iid(call.first.shape, 0.0, g.second_moment * share)


@forward("index_add")
def _added_at(call: Call) -> State:
    """Slices of a source added where an index says, or anywhere if it depends on the data."""
    x, source, (d, index) = call["self"], call["source"], _places(call)
    size, how = call.shape[d], CLOSED
    if index is None:
        table, how = _anywhere(source.table, d, size), f"{ASSUMED}: added at places drawn uniformly"
    else:
        table = scattered(source.table, d, index, size)
    alpha = float(call.node.get("alpha") or 1.0)
    return State(add(x.table, table, alpha), how, call.token(), roots=call.roots)


def _anywhere(source: Table, dim: int, size: int) -> Table:
    """The sums of n slices at places drawn uniformly among N.

    *Definition.* At a place there are n/N slices in the mean and n(n - 1)/N^2 ordered pairs of two;
    so many are there of one slice here and one at another place.
    """
    opened, n = source.own(dim), source.shape[dim]
    mean, same, differ, _, _ = opened._parts(dim)
    mean, same, differ = (x.mean(-1, keepdims=True) for x in (mean, same, differ))
    single, pairs = n / size, n * (n - 1) / size**2
    return opened._with(dim, size, single * mean, single * same + pairs * differ, pairs * differ)


@backward("index_add")
def _added_at_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    (d, index), source = _places(call), call["source"]
    yield call.index("self"), reduced_to(g, call["self"].shape)
    picked = Table.iid(source.shape, g.average, g.second_moment)
    if index is not None:
        picked = g.gather(d, index)
    yield call.index("source"), picked * float(call.node.get("alpha") or 1.0)


def _places(call: Call) -> tuple[int, np.ndarray | None]:
    """The dimension that is added to and the places, where they are known."""
    d, data = call.node["dim"] % len(call.shape), call["index"].data
    return d, None if data is None else np.asarray(data).ravel() % call.shape[d]
