"""An elementwise operation run on arrays: on nodes of the Gaussian behind it, or on draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fanin.signal.joint import measured, sample
from fanin.signal.state import State, Varied, law
from fanin.signal.table import Table, align
from fanin.signal.transfer.call import Call

_DRAWS = 64


def run(call: Call, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The node's operation on arrays."""
    assert call.node.kernel is not None
    with np.errstate(all="ignore"):
        return np.asarray(call.node.kernel(*_typed(call, arrays))[0], dtype=np.float64)


def _typed(call: Call, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Draws of integer and boolean operands as integers and booleans."""
    values = [call.graph.values[i] for i in call.node.inputs]
    return [
        a if v.floating else a > 0.5 if v.dtype == "bool" else np.rint(a).astype(v.dtype)
        for a, v in zip(arrays, values, strict=True)
    ]


def operands(
    states: Sequence[State],
    varying: Sequence[int],
    numbers: dict[int, float],
    z: np.ndarray,
) -> list[np.ndarray]:
    """What the operation reads where the Gaussian behind its operands is z."""
    arrays = []
    for i, state in enumerate(states):
        function = law(state)[1] if i in varying else None
        value = (function(z) if function else z) if i in varying else np.full_like(z, numbers[i])
        arrays.append(np.broadcast_to(value, z.shape))
    return arrays


def derivative(call: Call, arrays: Sequence[np.ndarray], place: int) -> np.ndarray:
    """d result / d operand, element by element."""
    assert call.node.kernel is not None
    shape = np.broadcast_shapes(*(np.shape(a) for a in arrays))
    whole = [np.broadcast_to(a, shape) for a in arrays]
    found = call.node.kernel.vjp(_typed(call, whole), [np.broadcast_to(1.0, shape)])[place]
    if found is None:
        return np.zeros(shape)
    return found if np.isfinite(found).all() else np.nan_to_num(found)


def _small(table: Table) -> Table:
    """The same table with short axes: an elementwise operation does not know their length."""
    flat = table.flat()
    return Table(tuple(tuple(min(n, 6) for n in dim) for dim in flat.dims), flat.mean, flat.pairs)


def drawn(call: Call, states: Sequence[State]) -> State:
    """Operands drawn from their states, the operation run on them, the result measured."""
    arrays, factors = _draw(call, states)
    result = np.nan_to_num(run(call, arrays))
    squares = (result**2).reshape(_DRAWS, -1).mean(1)
    average = measured(result)
    table = Table(factors.dims, average.mean, average.pairs)
    error = float(np.std(squares) / np.sqrt(_DRAWS) / max(np.mean(squares), 1e-300))
    return State(table, f"sampled ± {error:.1%}", call.token(), roots=call.roots)


def _draw(call: Call, states: Sequence[State]) -> tuple[list[np.ndarray], Table]:
    """Draws of the operands on short axes, one after the other, and the table of their factors."""
    factors = states[0].table
    for s in states[1:]:
        factors, _ = align(factors, s.table)
    generator, arrays = call.generator(), []
    for state in states:
        latent, function, _, _ = law(state)
        if isinstance(latent, Varied):  # its function takes the whole axis, which is not drawn
            latent, function = state.table, None
        laid, _ = align(state.table, factors)
        small = _small(align(latent, laid)[0])
        x = sample(small, generator, _DRAWS).reshape(_DRAWS, *small.factors)
        arrays.append(x if function is None else np.asarray(function(x)))
    return arrays, factors


def drawn_slope(call: Call, states: Sequence[State], place: int) -> Table:
    """The slope's table from draws."""
    arrays, factors = _draw(call, states)
    average = measured(derivative(call, arrays, place))
    return Table(factors.dims, average.mean, average.pairs)
