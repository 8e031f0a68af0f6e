"""Activations side by side: which inputs of a weight are which part, and each part's mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fanin.planning.roles import Scene, Weight
from fanin.signal.table import Table, concatenate

_ALONG = frozenset({"view", "_unsafe_view", "reshape", "flatten", "dropout"})  # keep the order


@dataclass(frozen=True)
class Parts:
    """The parts of what a weight reads, in the order of its inputs.

    Args:
        sizes: how many inputs of the weight read each part.
        means: mean of an element of each part.
        variance: of an element about the mean of its part.
    """

    sizes: tuple[int, ...]
    means: tuple[float, ...]
    variance: float


def parts(weight: Weight, scene: Scene) -> Parts | None:
    """The parts of a concatenation of channels or features that a weight reads.

    None where it reads none, where all of it has one mean, or where a part is one input alone,
    whose weight cannot sum to zero but by being 0.
    """
    use, words = weight.use, weight.fans.axes.split()
    if use is None or use.data is None or words.count("in") != 1 or weight.fans.groups != 1:
        return None
    inputs, state = weight.shape[words.index("in")], scene.states[use.data]
    channels = _channels(use.data, scene)
    axis = len(state.shape) - (len(weight.shape) - 1)
    if len(channels) < 2 or inputs % sum(channels) or state.shape[axis] != inputs:
        return None
    sizes = tuple(n * (inputs // sum(channels)) for n in channels)
    tables = _sliced(state.table, axis, sizes)
    means = tuple(t.average for t in tables)
    within = sum(n * t.variance for n, t in zip(sizes, tables, strict=True)) / inputs
    between = sum(n * (m - state.mean) ** 2 for n, m in zip(sizes, means, strict=True)) / inputs
    if min(sizes) < 2 or within <= 0 or between <= 1e-6 * within:
        return None
    return Parts(sizes, means, within)


def taken_out(
    shape: Sequence[int], axis: int, mean: float, sizes: Sequence[int], means: Sequence[float]
) -> Table:
    """Minus the mean that centring takes out of what is read, or minus that of each part."""
    if not sizes:
        return Table.constant(shape, -mean)
    blocks = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]
    shifts = [Table.constant(b, -m) for b, m in zip(blocks, means, strict=True)]
    return concatenate(shifts, axis)


def _sliced(table: Table, axis: int, sizes: Sequence[int]) -> list[Table]:
    """The parts of a table along an axis."""
    ends = np.cumsum(sizes)
    return [table.gather(axis, np.arange(e - n, e)) for n, e in zip(sizes, ends, strict=True)]


def _channels(index: int, scene: Scene) -> tuple[int, ...]:
    """Sizes of the parts of the concatenation behind a value, along its channels; () for none."""
    node = scene.graph.producer(index)
    while node is not None and node.name != "cat":
        operands = scene.flow.data(node)
        kept = node.pointwise or node.name in _ALONG or "pool" in node.name
        if len(operands) != 1 or not kept:
            return ()
        index, node = operands[0], scene.graph.producer(operands[0])
    return _joined(index, scene) if node is not None else ()


def _joined(index: int, scene: Scene) -> tuple[int, ...]:
    """The sizes of what is concatenated along the channels, of nested ones too."""
    node, shape = scene.graph.producer(index), scene.graph.values[index].shape
    if node is None or node.name != "cat" or int(node["dim"]) % len(shape) != 1:
        return (shape[1],)
    return tuple(n for i in scene.flow.data(node) for n in _joined(i, scene))
