"""Gates behind a residual sum: what returns along an operand is not independent of it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from fanin.signal.copula import correlation, seen_by
from fanin.signal.state import State, law
from fanin.signal.table import Table, align
from fanin.signal.transfer.call import Call, Term


def onward(
    term: Term,
    root: Hashable,
    whole: State,
    parts: tuple[State, State],
    scales: tuple[float, float],
) -> Term:
    """A part of the gradient in a x + b y as a function of x's own Gaussian.

    Its table stays; where x is large, more (or less) of it arrives. At two elements with one x the
    slope differs by what y adds to each.
    """
    assert term.slope is not None
    x, y = parts
    slope, noise = seen_by(term.slope, term.noise, whole, x, y, *scales)
    latent, _, source, _ = law(x)
    found = Term(root, term.table, slope, latent, source, noise, correlation(y.table))
    factor = found.factor()
    assert factor is not None
    one, factor = align(term.resolved(), factor)
    return Term(root, Table(one.dims, one.mean, one.pairs / np.maximum(factor.pairs, 1e-300)),
                slope, latent, source, noise, found.shared)  # fmt: skip


def is_gated(call: Call, place: int) -> bool:
    """Whether an operand is a product with a gate that is repeated along some axis."""
    node = call.graph.producer(call.node.inputs[place])
    shapes = {call.states[i].shape for i in node.inputs} if node is not None else set()
    return node is not None and node.name == "mul" and len(shapes) > 1
