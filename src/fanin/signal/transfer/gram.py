"""How far the inner products of a layer's rows lie from their mean: what finite width leaves.

The table of x holds E[x_j . x_j'] / D for two rows (positions or samples) of D features. In one
network that inner product differs from pair to pair, and all that is projected from x differs
alike: keys that are near each other have values that are near each other. An attention adds this
up over all pairs of its keys.

*Definition.* The spread of x, less what all its rows share, is Var(x_j . x_j') / E[|x_j|^2]^2 over
pairs of rows: 1/D for independent features, and tr(S^2) / tr(S)^2 for features of covariance S. A
layer of D' outputs passes on the spread of what it reads and adds its own 1/D'.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.state import State, Varied, hermite
from fanin.signal.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanin.signal.graph import Node
    from fanin.signal.transfer.call import Call

# What a spread is a sum of: each with the variance of the neighbourhood it is an average over.
Parts = tuple[tuple[float, float], ...]

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
    level = sqrt(spread) * _apart(table, row)
    axes, k = table.axes(features), len(table.factors)
    pairs = np.full((2,) * k + (1,) * k, level)
    for a in axes:
        pairs[(slice(None),) * a + (1,)] = 0.0
    pairs[(0,) * k] = 0.0
    return Table(table.dims, np.zeros((1,) * k), pairs)


def spread(call: Call, index: int) -> float:
    """The spread of a value, from how it and what it comes from were made."""
    made_by = call.graph.producer(index)
    found: dict[int, Parts] = {}
    for node in call.graph.nodes[: made_by.index + 1 if made_by is not None else 0]:
        for output in node.outputs:
            value = call.graph.values[output]
            if value.floating and value.shape:
                found[output] = _made(call, node, output, found)
    return _whole(_read(call, index, found))


def _whole(parts: Parts) -> float:
    return sum(s for s, _ in parts)


def _read(call: Call, index: int, found: dict[int, Parts]) -> Parts:
    """Of a value that was met before; of a leaf as measured, or as of independent features."""
    return found[index] if index in found else ((_of_leaf(call, index), 0.0),)


def _of_leaf(call: Call, index: int) -> float:
    state = call.states[index]
    if state.data is None or state.data.ndim != 2 or len(state.data) < 2:
        return 1.0 / max(state.shape[-1], 1) if state.shape else 1.0
    rows = np.asarray(state.data, dtype=float)
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    apart = gram[~np.eye(len(rows), dtype=bool)]
    return float(apart.var() / max(np.diagonal(gram).mean() ** 2, 1e-300))


def _made(call: Call, node: Node, index: int, found: dict[int, Parts]) -> Parts:
    """Of what a node makes, from those of what it reads; of known content as measured."""
    values, data = call.graph.values, call.states[index].data
    if data is not None and data.ndim == 2 and not values[index].varying:
        return ((_of_leaf(call, index), 0.0),)
    own = 1.0 / max(values[index].shape[-1], 1)
    wide = [i for i in node.inputs if values[i].varying or len(node.inputs) == 1]
    if node.name in _LAYERS and len(wide) == 1:
        return (*_read(call, wide[0], found), (own, 0.0))
    if node.name == "convolution":
        weight = values[node.inputs[1]].shape
        seen = found.get(node.inputs[0], ((1.0 / weight[1], 0.0),))
        return (*(_averaged(part, node, weight[2:]) for part in seen), (1.0 / weight[0], 0.0))
    if node.name == "add" and len(node.inputs) == 2:
        return ((_of_sum(call, node, own, found), 0.0),)
    if node.name in ("cat", "concat"):
        parts = [
            (_apart(call.states[i].table, -2), _whole(_read(call, i, found))) for i in node.inputs
        ]
        return (
            (sum(m * m * s for m, s in parts) / max(sum(m for m, _ in parts) ** 2, 1e-300), 0.0),
        )
    if len(wide) == 1 and (node.view or node.name in _SAME):
        return _read(call, wide[0], found)
    if len(wide) == 1 and node.pointwise:
        features, row = (1, -1) if _is_map(call, node) else (-1, -2)
        share = _kept(call.states[index], row) ** 2
        passed = ((share * s, v) for s, v in _read(call, wide[0], found))
        return (*passed, ((1.0 - share) / max(values[index].shape[features], 1), 0.0))
    return ((own, 0.0),)


def _averaged(part: tuple[float, float], node: Node, taps: Sequence[int]) -> tuple[float, float]:
    """A part summed over the taps of a kernel: neighbours that had taps in common are alike.

    *Definition.* k taps in a row have variance v = (k^2 - 1) / 12, and an average over n positions
    in a row keeps 1 / n = (1 + 12 v)^(-1/2) of what is independent; a stride makes positions
    further apart.
    """
    s, v = part
    step, gap = (float(np.mean(node.get(name, 1))) for name in ("dilation", "stride"))
    wider = v + (float(np.mean(np.square(taps))) - 1) / 12 * step**2
    left = ((1 + 12 * v) / (1 + 12 * wider)) ** (len(taps) / 2)
    return s * left, max(wider - (gap**2 - 1) / 12, 0.0) / gap**2


def _of_sum(call: Call, node: Node, own: float, found: dict[int, Parts]) -> float:
    """Of a skip and its branch, or of a signal and what does not vary.

    *Definition.* Inner products of x with y, Var = 1/D, come in twice; and where y is made of x,
    what x has passes on to y.
    """
    a, b = (_apart(call.states[i].table, -2) for i in node.inputs)
    s, t = (_whole(_read(call, i, found)) for i in node.inputs)
    made = all(call.graph.values[i].varying for i in node.inputs)
    common = sqrt(s * max(t - own, 0.0)) if made else 0.0
    return (a * a * s + b * b * t + 2 * a * b * (common + own)) / max((a + b) ** 2, 1e-300)


def _is_map(call: Call, node: Node) -> bool:
    """Whether an elementwise function is applied to channels in front of positions."""
    made_by: Node | None = node
    while made_by is not None and made_by.pointwise and len(made_by.inputs) == 1:
        made_by = call.graph.producer(made_by.inputs[0])
    return made_by is not None and made_by.name == "convolution"


def _kept(state: State, row: int) -> float:
    """The share of what rows of an elementwise function differ by that is linear in a deviation.

    *Definition.* With correlation c of two rows' Gaussians, f's squared Hermite coefficients a_k^2:
    sum k a_k^2 c^(k-1) (1 - c) / sum a_k^2 (1 - c^k).
    """
    if state.function is None or state.latent is None or isinstance(state.latent, Varied):
        return 1.0
    inner, mean, variance = state.function, state.latent.average, state.latent.variance
    if variance <= 0:
        return 1.0
    c = min(max(1.0 - _apart(state.latent, row) / variance, 0.0), 0.999)
    coefficients, rest = hermite(lambda z: inner(mean + sqrt(variance) * z))
    squares, order = coefficients**2, np.arange(len(coefficients))
    apart = float(squares @ (1.0 - c**order)) + rest**2
    linear = float((order[1:] * squares[1:]) @ c ** order[:-1]) * (1.0 - c)
    return linear / max(apart, 1e-300)


def _apart(table: Table, row: int) -> float:
    """The second moment of what is left of x without what two rows share."""
    if len(table.dims) < -row:
        return table.second_moment
    return max(table.second_moment - table.covariance(row), 0.0)
