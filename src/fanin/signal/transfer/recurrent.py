"""Recurrent layers and cells: the mean field of their units, laid out as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.recurrence import CELLS, Path, Slopes, Units, Weights, back, run
from fanin.signal.state import State
from fanin.signal.table import Table, concatenate
from fanin.signal.transfer.call import Call, Gradients, backward, forward
from fanin.signal.transfer.sampled import sampled, sampled_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_LAYERS = tuple(f"{name}.input" for name in CELLS)
_CELLS = tuple(f"{name}_cell" for name in CELLS)


@dataclass(frozen=True)
class _Layout:
    """A call of a recurrent operation, one cell or a stack of layers, in one form.

    Args:
        kind: name of the cell.
        x: input [batch, steps, features].
        start: initial states [layers x directions, batch, units], for each kind of state.
        parameters: operands of each layer and direction: weights of input and state, two biases.
        slots: the values that these parameters are.
        drop: share of the outputs that is dropped between layers.
    """

    kind: str
    x: Table
    start: tuple[Table, ...]
    parameters: tuple[tuple[State, ...], ...]
    slots: tuple[tuple[int, ...], ...]
    directions: int
    drop: float

    @property
    def width(self) -> int:
        """Number of units."""
        return self.start[0].shape[-1]

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.x.shape[0]


def _layout(call: Call) -> _Layout:
    """The call in one form."""
    cell, states = call.node.name.endswith("_cell"), call["hx"]
    states = states if isinstance(states, tuple) else (states,)
    if cell:
        names = [n for n in ("w_ih", "w_hh", "b_ih", "b_hh") if call[n] is not None]
        parameters = (tuple(call[n] for n in names),)
        slots = (tuple(call.index(n) for n in names),)
        start = tuple(s.table.unsqueeze(0) for s in states)
        kind = call.node.name.removesuffix("_cell")
        return _Layout(kind, call["input"].table.unsqueeze(1), start, parameters, slots, 1, 0.0)
    x = call["input"].table
    x = x if call["batch_first"] else x.permute([1, 0, 2])
    whole, each = call["params"], 4 if call["has_biases"] else 2
    places = [r.value for r in call.node["params"]]
    parts = range(0, len(whole), each)
    return _Layout(
        call.node.name,
        x,
        tuple(s.table for s in states),
        tuple(tuple(whole[i : i + each]) for i in parts),
        tuple(tuple(places[i : i + each]) for i in parts),
        2 if call["bidirectional"] else 1,
        float(call["dropout"]) if call["train"] else 0.0,
    )


def _projected(call: Call) -> bool:
    """Whether outputs are projections of the units, which is run on draws."""
    states = call["hx"]
    return isinstance(states, tuple) and states[0].shape[-1] != states[-1].shape[-1]


# --- tables to moments and back ------------------------------------------------------------------


def _units(table: Table) -> Units:
    """The moments of [batch, steps, features] over steps."""
    table = table.coarse((0, 1, 2))
    for d in range(3):
        table = table if table.dims[d] else table.own(d)
    table = table.unfolded((1,))
    pairs = table.pairs.mean(axis=(3, 5))
    steps = table.shape[1]
    mean = np.broadcast_to(table.mean.mean(axis=(0, 2)), (steps,))
    (gram, apart) = (np.stack([p[0] + p[1], p[0] - p[1]]) for p in np.moveaxis(pairs, 2, 0))
    return Units(table.shape[2], mean, gram, apart)


def _table(parts: Sequence[Units], batch: int) -> Table:
    """[batch, steps, directions x units]; units of different directions share their means alone."""
    count, steps, n = parts[0].count, len(parts[0].mean), len(parts)
    mean = np.stack([u.mean for u in parts], -1)
    pairs = np.empty((2, steps, n, 2, steps, n))  # sample, step, direction, unit; profile
    for i in range(n):
        for j in range(n):
            u, level = parts[i], np.outer(mean[:, j], mean[:, i])
            for unit, modes in enumerate((u.gram, u.apart)):
                a, b = (modes[0] + modes[1]) / 2, (modes[0] - modes[1]) / 2
                pairs[:, :, j, unit, :, i] = np.stack([a, b]) if i == j else level
    if n == 2:  # the same direction, or the other
        pairs = np.stack([pairs[..., i][:, :, [i, 1 - i]] for i in (0, 1)], -1)
    if steps == 2:
        pairs = np.stack([pairs[..., i, :][:, [i, 1 - i]] for i in (0, 1)], -2)
    pairs = pairs[:, :, :, :, None, :, :, None]
    mean = mean[None, :, :, None]
    dims, axis = [], 3
    sizes = ((batch,), (steps,), (n, count))
    for dim in reversed(sizes):
        kept: tuple[int, ...] = ()
        for size in reversed(dim):
            if size == 1:
                k = mean.ndim
                pairs = pairs.take(0, axis).mean(axis=k - 1 + axis)
                mean = mean.mean(axis=axis)
            else:
                kept = (size, *kept)
            axis -= 1
        dims.append(kept)
    return Table(tuple(reversed(dims)), mean, pairs)._compact()


def _last(finals: Sequence[Units], batch: int) -> Table:
    """[layers x directions, batch, units] of the moments at one step each."""
    tables = [_table([u], batch).permute([1, 0, 2]) for u in finals]
    return concatenate(tables, 0) if len(tables) > 1 else tables[0]


def _at(units: Units, step: int) -> Units:
    """The moments at one step."""
    one = slice(step, step + 1 or None)
    return replace(
        units, mean=units.mean[one], gram=units.gram[:, one, one], apart=units.apart[:, one, one]
    )


def _reversed(units: Units) -> Units:
    """The steps in the other order."""
    back_to_front = slice(None, None, -1)
    return Units(
        units.count,
        units.mean[back_to_front],
        units.gram[:, back_to_front, back_to_front],
        units.apart[:, back_to_front, back_to_front],
    )


def _block(state: State, rows: slice) -> Table:
    """A block of rows of a parameter."""
    if state.data is not None:
        return Table.measured(np.asarray(state.data)[rows])
    return state.table.gather(0, np.arange(rows.start, rows.stop))


def _weights(kind: str, parameters: Sequence[State], width: int) -> Weights:
    """What the parameters of one direction make of second moments."""
    cell = CELLS[kind]

    def block(place: int, index: int | None) -> Table | None:
        if index is None or place >= len(parameters):
            return None
        return _block(parameters[place], slice(index * width, (index + 1) * width))

    def matrix(place: int, indices: Sequence[int | None]) -> Array:
        tables = [block(place, i) for i in indices]
        return np.array([(t.second_moment, t.covariance(1)) if t else (0.0, 0.0) for t in tables])

    biases = np.zeros((len(cell.odd), 2))
    for place, indices in ((2, cell.inputs), (3, cell.hidden)):
        tables = [block(place, i) for i in indices]
        biases += [(t.average, max(t.variance, 0.0)) if t else (0.0, 0.0) for t in tables]
    return Weights(matrix(0, cell.inputs), matrix(1, cell.hidden), biases)


def _starts(layout: _Layout, place: int) -> Array:
    """Mean and variances of the modes of the initial states of one layer and direction."""
    found = []
    for table in layout.start:
        one = _units(table.gather(0, np.array([place])).permute([1, 0, 2]))
        mean = float(one.mean[0])
        whole = one.gram[:, 0, 0] - (2 * mean * mean, 0.0)
        found.append([mean, *np.maximum(whole, 0.0)])
    return np.array(found)


# --- forward -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One layer that was run: what it read, its paths and what they made, by direction."""

    x: Units
    paths: tuple[Path, ...]
    made: tuple[Units, ...]


def _dropped(modes: Array, share: float) -> Array:
    """Second moments behind a dropout, which differs between samples, steps and units."""
    if not share:
        return modes
    same = np.diagonal(modes.sum(0) / 2)
    return np.asarray(modes + np.diag(same * share / (1 - share)))


def _joined(parts: Sequence[Units]) -> Units:
    """The units of both directions as one layer of alike ones."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    n = first.count
    cross = np.outer(first.mean, second.mean)
    met = np.stack([cross + cross.T, np.zeros_like(cross)])
    apart = ((n - 1) * (first.apart + second.apart) + 2 * n * met) / (2 * (2 * n - 1))
    return Units(2 * n, (first.mean + second.mean) / 2, (first.gram + second.gram) / 2, apart)


def _layers(call: Call, layout: _Layout) -> Iterator[_Layer]:
    """The layers, from the input up; the same draws in every run."""
    generator, cell = call.generator(), CELLS[layout.kind]
    x = _units(layout.x)
    for first in range(0, len(layout.parameters), layout.directions):
        paths, made = [], []
        for way in range(layout.directions):
            weights = _weights(layout.kind, layout.parameters[first + way], layout.width)
            seen, start = _reversed(x) if way else x, _starts(layout, first + way)
            paths.append(run(cell, weights, seen, layout.width, start, generator))
            units = paths[-1].units(layout.width)
            made.append(_reversed(units) if way else units)
        yield _Layer(x, tuple(paths), tuple(made))
        x = _joined(made)
        x = replace(x, gram=_dropped(x.gram, layout.drop))


@forward(*_LAYERS, *_CELLS)
def _recurrent(call: Call) -> Sequence[State]:
    """The mean field of the units; an old state of a cell is taken as Gaussian."""
    if _projected(call):
        return sampled(call)
    layout = _layout(call)
    layers = list(_layers(call, layout))
    paths = [p for layer in layers for p in layer.paths]
    finals = [
        _last([_at(p.units(layout.width, i), -1) for p in paths], layout.batch)
        for i in range(len(layout.start))
    ]
    if call.node.name.endswith("_cell"):
        tables = [t.squeeze(0) for t in finals]
    else:
        output = _table(layers[-1].made, layout.batch)
        tables = [output if call["batch_first"] else output.permute([1, 0, 2]), *finals]
    error = max(p.error for p in paths)
    means = max(abs(u.mean).max() / (np.sqrt(u.gram[0].max()) + 1e-300) for u in layers[-1].made)
    fresh = frozenset({call.token()})
    roots = fresh if means < 1e-9 else fresh | call.roots
    how = f"mean field ± {error:.1%}"
    return [State(t, how, call.token(i), roots=roots) for i, t in enumerate(tables)]


# --- backward ------------------------------------------------------------------------------------


@backward(*_LAYERS, *_CELLS)
def _recurrent_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """The gradient back through the same units, layer by layer."""
    if _projected(call):
        yield from sampled_back(call, grads)
        return
    layout = _layout(call)
    arriving, last = _arriving(call, layout, grads)
    generator, width = np.random.default_rng([0xFB, call.node.index]), layout.width
    layers = list(_layers(call, layout))
    begins = np.zeros((len(layout.start), len(layout.slots), 2))
    for depth in range(len(layers) - 1, -1, -1):
        layer, x = layers[depth], np.zeros_like(layers[depth].x.gram)
        for way, path in enumerate(layer.paths):
            place = depth * layout.directions + way
            step = -1 if way else 1
            come = arriving[way][:, ::step, ::step]
            slopes = back(path, come, last[:, place], width, generator)
            begins[:, place] = slopes.start
            reach = width * path.weights.inputs[:, 0, None, None, None]
            x = x + (reach * slopes.pre).sum(0)[:, ::step, ::step]
            seen = _reversed(layer.x) if way else layer.x
            tables = _weight_gradients(layout, path, slopes, seen)
            yield from zip(layout.slots[place], tables, strict=False)
        arriving = [_dropped(x, layout.drop)] * layout.directions
    yield call.index("input"), _input_gradient(call, x, layout)
    yield from _start_gradients(call, layout, begins)


def _arriving(
    call: Call, layout: _Layout, grads: Sequence[Table | None]
) -> tuple[list[Array], Array]:
    """Gradients in the output by direction [mode, steps, steps], and in the last states."""
    steps, width = layout.x.shape[1], layout.width
    cell = call.node.name.endswith("_cell")
    found = [np.zeros((2, steps, steps)) for _ in range(layout.directions)]
    g = None if cell else grads[0]
    if g is not None:
        g = g if call["batch_first"] else g.permute([1, 0, 2])
        for way in range(layout.directions):
            own = np.arange(way * width, (way + 1) * width)
            part = g.gather(2, own) if layout.directions > 1 else g
            found[way] = _units(part).gram
    last = np.zeros((len(layout.start), len(layout.slots), 2))
    for i, table in enumerate(grads if cell else grads[1:]):
        if table is not None:
            table = table.unsqueeze(0) if cell else table
            for place in range(len(layout.slots)):
                one = _units(table.gather(0, np.array([place])).permute([1, 0, 2]))
                last[i, place] = np.maximum(one.gram[:, 0, 0], 0.0)
    return found, last


def _weight_gradients(layout: _Layout, path: Path, slopes: Slopes, x: Units) -> Iterator[Table]:
    """Gradients of the weights and biases of one layer and direction."""
    cell, width, states = CELLS[layout.kind], layout.width, path.before(layout.width)
    ones = np.stack([np.full_like(x.gram[0], 2.0), np.zeros_like(x.gram[0])])
    reads = ((cell.inputs, x.gram, (x.count,)), (cell.hidden, states.gram, (width,)),
             (cell.inputs, ones, ()), (cell.hidden, ones, ()))  # fmt: skip
    for rows, seen, columns in reads:
        level = np.zeros(sum(r is not None for r in rows))
        for p, row in enumerate(rows):
            if row is not None:
                level[row] = _met(slopes.pre[p], seen, layout.batch)
        parts = [Table.iid((width, *columns), 0.0, float(v)) for v in level]
        yield concatenate(parts, 0) if len(parts) > 1 else parts[0]


def _met(d: Array, x: Array, batch: int) -> float:
    """E[(sum over samples and steps of d x)^2], from the modes of both."""
    (d_same, d_other), (x_same, x_other) = (((m[0] + m[1]) / 2, (m[0] - m[1]) / 2) for m in (d, x))
    same, other = float((d_same * x_same).sum()), float((d_other * x_other).sum())
    return max(batch * (same + (batch - 1) * other), 0.0)


def _input_gradient(call: Call, gram: Array, layout: _Layout) -> Table:
    """The gradient in the input, laid out as it is."""
    steps = gram.shape[-1]
    units = Units(layout.x.shape[2], np.zeros(steps), gram, np.zeros_like(gram))
    table = _table([units], layout.batch)
    if call.node.name.endswith("_cell"):
        return table.squeeze(1)
    return table if call["batch_first"] else table.permute([1, 0, 2])


def _start_gradients(call: Call, layout: _Layout, begins: Array) -> Gradients:
    """The gradients in the initial states."""
    places = call.node["hx"]
    places = places if isinstance(places, tuple) else (places,)
    for place, levels in zip(places, begins, strict=True):
        zero = np.zeros((2, 1, 1))
        parts = [Units(layout.width, np.zeros(1), m[:, None, None], zero) for m in levels]
        table = _last(parts, layout.batch)
        yield place.value, table.squeeze(0) if call.node.name.endswith("_cell") else table
