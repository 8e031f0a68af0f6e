"""Recurrences that a program writes out step by step over the slices of two tensors.

In s_t = a_t s_(t-1) + b_t, with a_t and b_t slices of tensors A and B, the gradient of a_t is
g_t s_(t-1), where g_t is that of s_t. From step to step neither factor changes much if a is near 1,
so that over positions these gradients add up. With means of a that do not depend on the rest,

    E[g_t g_u] = E[a_(t+1)] ... E[a_u] E[g_u^2],                                    t < u
    E[s_t s_u] = E[a_u] E[s_t s_(u-1)] + E[s_t b_u].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.graph import Graph, Node
from fanin.signal.state import State
from fanin.signal.table import Table, align

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True)
class Step:
    """One step: the values a_t, s_(t-1), b_t and s_t, by their indices."""

    factor: int
    before: int
    added: int
    after: int


@dataclass(frozen=True)
class Scan:
    """A recurrence over the slices of one tensor of factors.

    Args:
        dim: the dimension that is sliced.
        steps: from the first to the last.
    """

    dim: int
    steps: tuple[Step, ...]


def scans(graph: Graph) -> dict[int, Scan]:
    """The recurrences of a graph, by the tensor that holds their factors."""
    found: dict[tuple[int, int], list[Step]] = {}
    for node in graph.nodes:
        if node.name == "add" and len(node.inputs) == 2 and (step := _step(graph, node)):
            slicing = graph.producer(step.factor)
            assert slicing is not None
            steps = found.setdefault((slicing.inputs[0], slicing["dim"]), [])
            if not steps or steps[-1].after == step.before:
                steps.append(step)
    dims = {parent: len(graph.values[parent].shape) for parent, _ in found}
    return {p: Scan(d % dims[p], tuple(s)) for (p, d), s in found.items() if len(s) > 2}


def _step(graph: Graph, node: Node) -> Step | None:
    """An addition as the end of a step."""
    for carried, added in (node.inputs, node.inputs[::-1]):
        product = graph.producer(carried)
        if not _slices(graph, added) or product is None or product.name != "mul":
            continue
        if len(product.inputs) == 2:
            for factor, before in (product.inputs, product.inputs[::-1]):
                if _slices(graph, factor) and not _slices(graph, before):
                    return Step(factor, before, added, node.outputs[0])
    return None


def _slices(graph: Graph, index: int) -> bool:
    """Whether a value is one slice of another."""
    made_by = graph.producer(index)
    return made_by is not None and made_by.name == "select"


def carried(
    scan: Scan, parent: Table, states: Mapping[int, State], gradients: Mapping[int, Table]
) -> Table | None:
    """What the gradients of two factors have in common, as part of the gradient of all of them."""
    last = states[scan.steps[-1].after].table
    if any(s.after not in gradients for s in scan.steps) or last.resolved or parent.resolved:
        return None
    dims, count = list(parent.own(scan.dim).dims), len(scan.steps)
    del dims[scan.dim]
    if tuple(dims) != last.dims:
        return None
    total = _common(scan, last, states, gradients) * 2 / (count * (count - 1))
    (a,) = parent.own(scan.dim).axes((scan.dim,))
    k = total.ndim + 1
    pairs = np.zeros((2,) * k + (*total.shape[:a], 1, *total.shape[a:]))
    pairs[tuple(int(i == a) for i in range(k))] = np.expand_dims(total, a)
    return Table(parent.own(scan.dim).dims, np.zeros((1,) * k), pairs)


def _common(
    scan: Scan, like: Table, states: Mapping[int, State], gradients: Mapping[int, Table]
) -> Array:
    """The sum over pairs of steps t < u of E[g_t g_u] E[s_(t-1) s_(u-1)], by element."""

    def laid(table: Table) -> Table:
        return align(table, like)[0]

    total: Array = np.zeros(())
    weights: list[Array] = []  # E[a_(t+1)] ... E[a_u], for each t
    states_met: list[Array] = []  # E[s_(t-1) s_(u-1)], for each t
    slices: list[Array] = []  # what E[s_(t-1) b] is over the covariance of two slices
    for place, step in enumerate(scan.steps):
        factor = laid(states[step.factor].table).mean
        gradient = laid(gradients[step.after]).same
        if place:
            previous = scan.steps[place - 1]
            before, added = states[step.before], states[previous.added].slices
            through = laid(states[previous.factor].table).mean
            met = laid(added.beside).same if added is not None else np.zeros(())
            states_met = [through * x + w * met for x, w in zip(states_met, slices, strict=True)]
            weights = [w * factor for w in weights]
            for w, x in zip(weights, states_met, strict=True):
                total = total + w * gradient * x
            states_met.append(laid(before.table).same)
            held = before.slices
            slices.append(laid(held.weight).mean if held is not None else np.zeros(()))
            weights.append(np.ones(()))
    return total
