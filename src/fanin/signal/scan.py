"""Recurrences that a program writes out step by step over the slices of two tensors.

In s_t = a_t s_(t-1) + b_t, with a_t and b_t slices of tensors A and B, the gradient of b_t is g_t,
that of s_t, and the gradient of a_t is g_t s_(t-1). From step to step neither factor changes much
if a is near 1, so that over positions these gradients add up. With a independent of the rest,

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
    """A recurrence over the slices of two tensors.

    Args:
        parent: the tensor of factors, or the one that is added.
        dim: the dimension of it that is sliced.
        steps: from the first to the last.
        factors: whether the parent holds the factors.
    """

    parent: int
    dim: int
    steps: tuple[Step, ...]
    factors: bool


def scans(graph: Graph) -> dict[int, Scan]:
    """The recurrences of a graph, by each of the two tensors whose slices they read."""
    chains: list[list[Step]] = []
    for node in graph.nodes:
        if node.name == "add" and len(node.inputs) == 2 and (step := _step(graph, node)):
            chain = next((c for c in chains if c[-1].after == step.before), None)
            if chain is None:
                chains.append([step])
            else:
                chain.append(step)
    found = {}
    for chain in chains:
        for factors in (True, False):
            slices = [graph.producer(s.factor if factors else s.added) for s in chain]
            sources = {(n.inputs[0], n["dim"]) for n in slices if n is not None}
            if len(chain) > 2 and len(sources) == 1:
                ((parent, dim),) = sources
                n = len(graph.values[parent].shape)
                found[parent] = Scan(parent, dim % n, tuple(chain), factors)
    return found


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
    scan: Scan, states: Mapping[int, State], gradients: Mapping[int, Table]
) -> Table | None:
    """What the gradients of two slices have in common, as part of the gradient of all of them."""
    last, parent = states[scan.steps[-1].after].table, states[scan.parent].table.own(scan.dim)
    count = len(scan.steps)
    if any(s.after not in gradients for s in scan.steps) or last.resolved or parent.resolved:
        return None
    total = _common(scan, last, states, gradients) * 2 / (count * (count - 1))
    whole = Table((*last.dims[: scan.dim], parent.dims[scan.dim], *last.dims[scan.dim :]),
                  np.zeros(()), np.zeros(()))  # fmt: skip
    (a,) = whole.axes((scan.dim,))
    k = len(whole.factors)
    total = np.broadcast_to(total, np.broadcast_shapes(total.shape, (1,) * (k - 1)))
    pairs = np.zeros((2,) * k + (*total.shape[:a], 1, *total.shape[a:]))
    pairs[tuple(int(i == a) for i in range(k))] = np.expand_dims(total, a)
    return Table(whole.dims, np.zeros((1,) * k), pairs)


def _common(
    scan: Scan, like: Table, states: Mapping[int, State], gradients: Mapping[int, Table]
) -> Array:
    """The sum over pairs of steps t < u of E[g_t g_u], for factors times E[s_(t-1) s_(u-1)]."""

    def laid(table: Table) -> Table:
        return align(table, like)[0]

    factor = _stacked([laid(states[s.factor].table).mean for s in scan.steps])
    gradient = _stacked([laid(gradients[s.after]).same for s in scan.steps])
    met = _stacked([laid(states[s.before].table).same for s in scan.steps])  # E[s_(t-1) s_(u-1)]
    sums = [states[s.before].slices for s in scan.steps]
    held = _stacked([np.zeros(()) if s is None else laid(s.weight).mean for s in sums])
    slices = [states[s.added].slices for s in scan.steps]
    beside = _stacked([np.zeros(()) if s is None else laid(s.beside).same for s in slices])
    factor, gradient, met, held, beside = np.broadcast_arrays(factor, gradient, met, held, beside)
    met, through = met.copy(), np.ones(met.shape)  # through: E[a_(t+1)] ... E[a_u], for each t
    total: Array = np.zeros(())
    for u in range(1, len(scan.steps)):
        met[:u] = factor[u - 1] * met[:u] + held[:u] * beside[u - 1]
        through[:u] *= factor[u]
        pairs = through[:u] * met[:u] if scan.factors else through[:u]
        total = total + pairs.sum(0) * gradient[u]
    return total


def _stacked(profiles: list[Array]) -> Array:
    """Profiles of one layout along a new first axis."""
    return np.stack(np.broadcast_arrays(*profiles))
