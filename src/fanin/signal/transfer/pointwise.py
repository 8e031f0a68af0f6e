"""Elementwise operations: functions of one Gaussian, sums, products, and the rest by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fanin.signal.fixed import is_fixed, with_fixed
from fanin.signal.nodes import Once
from fanin.signal.state import ASSUMED, CLOSED, QUADRATURE, State, applied, integrate, law
from fanin.signal.table import Table
from fanin.signal.transfer.arithmetic import centring, chosen, normalising, product_of, sum_of
from fanin.signal.transfer.call import Call, broadcast, forward
from fanin.signal.transfer.evaluate import derivative, drawn, operands, run
from fanin.signal.transfer.laws import affine, lawful, linear_in_z
from fanin.signal.transfer.mask import masked
from fanin.signal.transfer.size import sized


def pointwise(call: Call) -> State:
    """Any elementwise operation."""
    shape = call.shape
    name = call.node.name
    if (found := masked(call)) is not None:
        return found
    states = [broadcast(s, shape) for s in call.operands]
    numbers = {i: v for i, s in enumerate(states) if (v := s.value) is not None}
    varying = [i for i in range(len(states)) if i not in numbers]
    if not varying:
        return State(_computed(call, numbers, shape), CLOSED, call.token(), roots=call.roots)
    if len(varying) == 1:
        return _of_one(call, states[varying[0]], varying[0], numbers)
    if name in ("add", "sub", "rsub") and len(states) == 2:
        found = centring(call, states) or _jointly(call, states, varying, numbers)
        return found or _with_fixed(call, states) or sum_of(call, states)
    if name in ("mul", "div") and len(states) == 2 and call.node.get("rounding_mode") is None:
        found = normalising(call, states) or _jointly(call, states, varying, numbers)
        return found or _with_fixed(call, states) or product_of(call, states)
    found = _jointly(call, states, varying, numbers)
    if found is not None:
        return found
    if name == "where" and states[0].data is not None:
        return chosen(call, states)
    return drawn(call, states)


def _computed(call: Call, numbers: dict[int, float], shape: Sequence[int]) -> Table:
    """The result of constants alone."""
    values = [np.asarray(numbers[i], dtype=float) for i in range(len(numbers))]
    return Table.constant(shape, float(run(call, values)))


def _of_one(call: Call, state: State, place: int, numbers: dict[int, float]) -> State:
    """A function of one tensor; the other operands are numbers."""

    def function(x: np.ndarray) -> np.ndarray:
        arrays = [np.asarray(numbers.get(i, 0.0)) for i in range(len(numbers) + 1)]
        arrays[place] = x
        return run(call, arrays)

    if call.node.name in ("add", "sub", "rsub", "mul", "div", "neg"):
        points = function(np.array([0.0, 1.0, 2.0]))
        if not points.any():
            return State(Table.constant(call.shape, 0.0), CLOSED, call.token())
        if np.isfinite(points).all() and call.node.get("rounding_mode") is None:
            return affine(state, float(points[1] - points[0]), float(points[0]), call.token())
    found = applied(state, function, call.token())
    if call.graph.values[call.node.inputs[place]].complex:
        found = replace(found, how=f"{ASSUMED}: real numbers")
    if not state.size or not call.output().floating:
        return found

    def slope(x: np.ndarray) -> np.ndarray:
        shape = np.shape(x)
        arrays = [np.full(shape, numbers.get(i, 0.0)) for i in range(len(numbers) + 1)]
        arrays[place] = x
        return derivative(call, arrays, place)

    return sized(state, found, slope)


def _jointly(
    call: Call, states: Sequence[State], varying: Sequence[int], numbers: dict[int, float]
) -> State | None:
    """A function of several tensors that are functions of one Gaussian."""
    laws = [law(states[i]) for i in varying]
    latent, _, source, exact = laws[0]
    if any(other[2] != source for other in laws[1:]):
        return None
    joint = _joint(call, states, varying, numbers)
    table, total = integrate(joint, latent)
    how = QUADRATURE if exact and total else f"{ASSUMED}: Gaussian"
    return State(table, how, call.token(), latent, joint, source, exact, roots=call.roots)


def _joint(
    call: Call, states: Sequence[State], varying: Sequence[int], numbers: dict[int, float]
) -> Callable[[np.ndarray], np.ndarray]:
    """The operation as a function of the one Gaussian z."""

    parts = [law(states[i])[1] for i in varying]
    return Once(lambda z: run(call, operands(states, varying, numbers, z)), parts)


def _with_fixed(call: Call, states: Sequence[State]) -> State | None:
    """A function of a Gaussian with a fixed tensor that has a profile."""
    for order in (slice(None), slice(None, None, -1)):
        x, fixed = states[order]
        if not linear_in_z(x) and lawful(x) and is_fixed(fixed, x):
            return with_fixed(x, fixed, lambda *both, o=order: run(call, both[o]), call.token())
    return None


@forward("_to_copy")
def _cast(call: Call) -> State:
    """The same numbers, but for what an integer or a truth value cuts off."""
    whole = call.output().floating or not call.graph.values[call.node.inputs[0]].floating
    return call.first if whole and call.output().dtype != "bool" else pointwise(call)
