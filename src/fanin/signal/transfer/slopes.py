"""Elementwise operations backward: the gradient times the slope in each operand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.nodes import Once
from fanin.signal.state import State, applied, law
from fanin.signal.table import Table, product
from fanin.signal.transfer.arithmetic import addends, averaged_dims
from fanin.signal.transfer.call import Call, Term, broadcast, reduced_to, total
from fanin.signal.transfer.evaluate import derivative, drawn_slope, operands
from fanin.signal.transfer.gate import is_gated, onward
from fanin.signal.transfer.laws import Affine, linear_in_z, varies

if TYPE_CHECKING:
    from fanin.signal.state import Function


def pointwise_back(call: Call, terms: Sequence[Term]) -> Iterator[tuple[int, Term]]:
    """The gradient times the slope in each operand."""
    shape = call.shape
    own = call.operands
    states = [broadcast(s, shape) for s in own]
    numbers = {i: v for i, s in enumerate(states) if (v := s.value) is not None}
    varying = [i for i in range(len(states)) if i not in numbers]
    if call.states[call.node.outputs[0]].token == ("centred", own[0].token):
        dims = averaged_dims(own[0].table, own[1].table)
        yield call.node.inputs[0], Term(call.node.index, total(terms).centred(dims))
        return
    if call.node.name == "where" and call.states[call.node.outputs[0]].allowed is not None:
        whole = reduced_to(total(terms), own[1].shape)  # what is hidden has no gradient already
        yield call.node.inputs[1], Term(call.node.index, whole)
        return
    for place, index in enumerate(call.node.inputs):
        if not call.graph.values[index].floating:
            continue
        wide = states[place].table.shape != own[place].shape
        for term in _multiplied(call, terms, states, varying, numbers, place):
            if wide:
                table = reduced_to(term.resolved(), own[place].shape)
                term = Term((call.node.index, place, term.root), table)
            yield index, term


def _multiplied(
    call: Call,
    terms: Sequence[Term],
    states: Sequence[State],
    varying: Sequence[int],
    numbers: dict[int, float],
    place: int,
) -> Iterator[Term]:
    """Each part of the arriving gradient times d result / d operand."""
    name = call.node.name
    if name in ("add", "sub", "rsub"):
        scale = addends(call)[place] if len(states) == 2 else 1.0
        for term in terms:
            yield _along(call, replace(term, table=term.table * scale), states, place)
        return
    laws = [law(states[i]) for i in varying]
    if laws and all(other[2] == laws[0][2] for other in laws[1:]):
        latent, source = laws[0][0], laws[0][2]
        slope = Once(
            lambda z: derivative(call, operands(states, varying, numbers, z), place),
            [law(states[i])[1] for i in varying],
        )
        for term in terms:
            if term.slope is not None and term.source == source:
                yield term.times(slope)
            else:
                arriving = (
                    term
                    if term.slope is None
                    else Term((call.node.index, term.root), term.resolved())
                )
                yield replace(arriving, slope=slope, latent=latent, source=source)
        return
    factor = _slope(call, states, place)
    for term in terms:
        if name == "mul" and (found := _to_gate(call, term, states, place)) is not None:
            yield found
            continue
        yield Term((call.node.index, place, term.root), product(term.resolved(), factor))


def _along(call: Call, term: Term, states: Sequence[State], place: int) -> Term:
    """A part of the gradient of a sum that goes on along one operand's own Gaussian.

    Its table stays; where the operand is large, more (or less) of it arrives.
    """
    whole = call.states[call.node.outputs[0]]
    if len(states) != 2 or states[1 - place].value is not None:
        return term
    if term.slope is None or term.source != law(whole)[2]:
        return term
    x, y = states[place], states[1 - place]
    if law(x)[2] == term.source or (linear_in_z(x) and not is_gated(call, place)):
        return term
    scales = addends(call)
    root, own = (call.node.index, place, term.root), (scales[place], scales[1 - place])
    return onward(term, root, whole, (x, y), own)


def _to_gate(call: Call, term: Term, states: Sequence[State], place: int) -> Term | None:
    """The gradient of a steady factor s of m = s y, where what arrives depends on m: y is m / E s.

    The sum over what the factor multiplies has a mean: a gate behind is open more often where y is
    large.
    """
    whole, gate = call.states[call.node.outputs[0]], states[place]
    _, function, source, _ = law(whole)
    if term.slope is None or term.source != source or not gate.mean or varies(gate, 1e-2):
        return None
    factor = Affine(1 / gate.mean, 0.0)
    slope, inner = term.slope, function or Affine(1.0, 0.0)
    return replace(term, slope=_times(slope, lambda z: factor(inner(z))))


def _times(first: Function, second: Function) -> Function:
    """The product of two slopes."""
    return Once(lambda z: first(z) * second(z), [first, second])


def _slope(call: Call, states: Sequence[State], place: int) -> Table:
    """The table of d result / d operand for operands of different sources."""
    name = call.node.name
    if name == "mul" and len(states) == 2:
        return states[1 - place].table
    if name == "div" and len(states) == 2:
        inverse = applied(states[1], lambda v: 1.0 / np.where(v == 0, np.nan, v), "1/").table
        if place == 0:
            return inverse
        return product(states[0].table, product(inverse, inverse))
    if name == "where":
        c = states[0].table
        return c if place == 1 else c * -1.0 + 1.0
    return drawn_slope(call, states, place)
