"""How far the inner products of a layer's rows lie from their mean: what finite width leaves.

The table of x holds E[x_j . x_j'] / D for two rows (positions or samples) of D features. In one
network that inner product differs from pair to pair, and all that is projected from x differs
alike: keys that are near each other have values that are near each other. An attention adds this
up over all pairs of its keys.

*Definition.* The spread of x is Var(x_j . x_j') / E[|x_j|^2]^2 over pairs of rows: 1/D for
independent features, and tr(S^2) / tr(S)^2 for features of covariance S. A layer of D' outputs
passes on the spread of what it reads and adds its own 1/D'.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.state import State, Varied, hermite
from fanin.signal.table import Table

if TYPE_CHECKING:
    from fanin.signal.graph import Node
    from fanin.signal.transfer.call import Call

_LAYERS = frozenset({"linear", "mm", "matmul", "addmm"})
_SAME = frozenset(
    [
        *("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm"),
        *("dropout", "native_dropout", "constant_pad_nd", "roll", "flip", "index", "index_select"),
    ]
)


def deviations(table: Table, features: tuple[int, ...], row: int, spread: float) -> Table:
    """What two different rows of one feature have in common by chance, in root mean square.

    Args:
        table: the second moments of x.
        features: the dimensions that are no rows: heads and the features of a head.
        row: the dimension of positions; what all of them share is no deviation.
        spread: of x.
    """
    level = sqrt(spread) * max(table.second_moment - table.covariance(row), 0.0)
    axes, k = table.axes(features), len(table.factors)
    pairs = np.full((2,) * k + (1,) * k, level)
    for a in axes:
        pairs[(slice(None),) * a + (1,)] = 0.0
    pairs[(0,) * k] = 0.0
    return Table(table.dims, np.zeros((1,) * k), pairs)


def spread(call: Call, index: int) -> float:
    """The spread of a value, from how it and what it comes from were made."""
    made_by = call.graph.producer(index)
    found: dict[int, float] = {}
    for node in call.graph.nodes[: made_by.index + 1 if made_by is not None else 0]:
        for output in node.outputs:
            value = call.graph.values[output]
            if value.floating and value.shape:
                found[output] = _made(call, node, output, found)
    return found[index] if index in found else _read(call, index, found)


def _read(call: Call, index: int, found: dict[int, float]) -> float:
    """Of a value that was met before; of a leaf as measured, or as of independent features."""
    if index in found:
        return found[index]
    state = call.states[index]
    if state.data is None or state.data.ndim != 2 or len(state.data) < 2:
        return 1.0 / max(state.shape[-1], 1) if state.shape else 1.0
    rows = np.asarray(state.data, dtype=float)
    gram = rows @ rows.T
    apart = gram[~np.eye(len(rows), dtype=bool)]
    return float(apart.var() / max(np.diagonal(gram).mean() ** 2, 1e-300))


def _made(call: Call, node: Node, index: int, found: dict[int, float]) -> float:
    """Of what a node makes, from those of what it reads."""
    values = call.graph.values
    own = 1.0 / max(values[index].shape[-1], 1)
    wide = [i for i in node.inputs if values[i].varying or len(node.inputs) == 1]
    if node.name in _LAYERS and len(wide) == 1:
        return _read(call, wide[0], found) + own
    if node.name == "convolution":
        weight = values[node.inputs[1]].shape
        seen = found.get(node.inputs[0], 1.0 / weight[1])
        return seen / prod(weight[2:]) + 1.0 / weight[0]
    if node.name == "add" and len(node.inputs) == 2:
        return _of_sum(call, node, own, found)
    if node.name in ("cat", "concat"):
        parts = [(call.states[i].second_moment, _read(call, i, found)) for i in node.inputs]
        return sum(m * m * s for m, s in parts) / max(sum(m for m, _ in parts) ** 2, 1e-300)
    if len(wide) == 1 and (node.view or node.name in _SAME):
        return _read(call, wide[0], found)
    if len(wide) == 1 and node.pointwise:
        return _kept(call.states[index]) ** 2 * _read(call, wide[0], found)
    return own


def _of_sum(call: Call, node: Node, own: float, found: dict[int, float]) -> float:
    """Of a skip and its branch, or of a signal and what does not vary.

    *Definition.* Inner products of x with y, Var = 1/D, come in twice; and where y is made of x,
    what x has passes on to y.
    """
    a, b = (call.states[i].second_moment for i in node.inputs)
    s, t = (_read(call, i, found) for i in node.inputs)
    made = all(call.graph.values[i].varying for i in node.inputs)
    common = sqrt(s * max(t - own, 0.0)) if made else 0.0
    return (a * a * s + b * b * t + 2 * a * b * (common + own)) / max((a + b) ** 2, 1e-300)


def _kept(state: State) -> float:
    """The share of an elementwise function's second moment that is linear in its Gaussian."""
    if state.function is None or state.latent is None or isinstance(state.latent, Varied):
        return 1.0
    inner, mean, std = state.function, state.latent.average, sqrt(max(state.latent.variance, 0.0))
    coefficients, rest = hermite(lambda z: inner(mean + std * z))
    return float(coefficients[1] ** 2 / max((coefficients**2).sum() + rest**2, 1e-300))
