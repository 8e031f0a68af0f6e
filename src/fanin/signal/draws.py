"""Joint draws of the values of a graph, kept from one operation to the next.

An operand that is no function of a Gaussian (softmax weights, a product) is drawn by running what
made it, back to tensors that are; operands with a common source are so drawn together. A loop that
is written out reads its own earlier steps: what was drawn of them is not drawn again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.joint import sample
from fanin.signal.state import State, Varied, law

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.signal.graph import Graph, Node
    from fanin.signal.transfer.call import Call

    Array = NDArray[Any]
    Stack = Array | list[Array]

JOINT = 1 << 20  # elements up to which what made an operand is run again
_DEPTH = 12  # operations that are run again behind a value of which nothing is kept
_KEPT = 1 << 23  # elements that are kept
_NEAREST = 32  # tensors that `meet` looks at behind each operand


class Draws:
    """Values of one graph, each drawn several times; a draw is an entry of the first axis."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[State | None, Stack]] = OrderedDict()
        self._size = 0

    def values(self, call: Call, index: int, count: int, depth: int = _DEPTH) -> Stack:
        """So many draws of the value with this index, the same ones each time they are asked for.

        They are a list where the shape of a value differs between draws.
        """
        state, node = call.states[index], call.graph.producer(index)
        if state.data is not None and not state.how.startswith("sampled"):
            return np.broadcast_to(state.data, (count, *np.shape(state.data)))
        kept = self._kept.get((index, count))
        if kept is not None and kept[0] is state:
            self._kept.move_to_end((index, count))
            return kept[1]
        if node is None or not depth or not _runs(call, node, state):
            return self._keep((index, count), state, self._drawn(call, index, count))
        made = run(node, [self.values(call, i, count, depth - 1) for i in node.inputs], count)
        for other, value in zip(node.outputs, made, strict=True):
            self._keep((other, count), call.states[other], value)
        return made[node.outputs.index(index)]

    def _keep(self, key: Hashable, state: State | None, value: Stack) -> Stack:
        """Keep a value, and let go what was asked for longest ago."""
        if key in self._kept:
            self._size -= _elements(self._kept.pop(key)[1])
        self._kept[key] = state, value
        self._size += _elements(value)
        while self._size > _KEPT and len(self._kept) > 1:
            self._size -= _elements(self._kept.popitem(last=False)[1][1])
        return value

    def _drawn(self, call: Call, index: int, count: int) -> Stack:
        """Draws from a state's own law."""
        state, value = call.states[index], call.graph.values[index]
        if value.kind == "input" and not value.floating:  # uniform: they may be indices
            generator = np.random.default_rng([0xFA, index, count])
            shape, high = (count, *state.shape), round(2 * state.mean) + 1
            return generator.integers(high, size=shape).astype(value.dtype)
        latent, function, source, _ = law(state)
        if isinstance(latent, Varied):
            latent, function, source = state.table, None, state.token
        key = ("source", source, count)
        if key in self._kept:
            x = self._kept[key][1]
        else:
            generator = np.random.default_rng([0xFA, index, count])
            x = self._keep(key, None, sample(latent, generator, count))
        x = np.reshape(x, (count, *state.shape))
        x = x if function is None else np.asarray(function(x))
        if state.allowed is not None:
            x = np.where(np.broadcast_to(state.allowed.keep, x.shape), x, state.allowed.fill)
        if value.floating:
            return x
        return x > 0.5 if value.dtype == "bool" else np.rint(x).astype(value.dtype)


def run(node: Node, operands: Sequence[Stack], count: int) -> list[Stack]:
    """An operation on all draws; an elementwise one takes them at once."""
    assert node.kernel is not None
    if node.pointwise and all(isinstance(o, np.ndarray) for o in operands):
        n = max((np.ndim(o) for o in operands), default=0)
        laid = [
            np.reshape(o, (count, *(1,) * (n - np.ndim(o)), *np.shape(o)[1:])) for o in operands
        ]
        return list(node.kernel(*laid))
    results = [node.kernel(*(o[i] for o in operands)) for i in range(count)]
    return [_stacked([np.asarray(r[i]) for r in results]) for i in range(len(node.outputs))]


def _stacked(arrays: list[Array]) -> Stack:
    """Arrays of one shape as one."""
    alike = all(a.shape == arrays[0].shape for a in arrays)
    return np.stack(arrays) if alike else arrays


def _elements(value: Stack) -> int:
    """Number of elements."""
    return sum(np.size(v) for v in value) if isinstance(value, list) else np.size(value)


def _runs(call: Call, node: Node, state: State) -> bool:
    """Whether the operation that made a value is run again rather than its law used.

    A Gaussian needs it where it is another one with its elements moved: both are drawn as one.
    """
    plain = state.gaussian and state.function is None and not _moves(call, node)
    if plain or node.kernel is None or node.random:
        return False
    sizes = [call.graph.values[i].size for i in (*node.inputs, *node.outputs)]
    return max(sizes) <= JOINT and min(sizes) > 0


def meet(call: Call) -> bool:
    """Whether the operands of a node are made of one tensor, element by element.

    A zero-mean factor in one of them makes them uncorrelated, and not independent.
    """
    first, *others = (_behind(call, index) for index in call.node.inputs)
    return any(not first.isdisjoint(other) for other in others)


def alike(call: Call, first: int, second: int) -> bool:
    """Whether two values, by index, are made of one tensor, whatever moved its elements.

    So are the factors of x x^T; queries and keys, parts of one projection, are not.
    """
    if not call.states[first].roots & call.states[second].roots:
        return False
    behind = (_behind(call, i, moved=True) for i in (first, second))
    return not set.isdisjoint(*behind)


def _behind(call: Call, index: int, *, moved: bool = False) -> set[int]:
    """The nearest tensors that a tensor is made of element by element, itself included.

    With `moved` also through operations that change the places of all elements.
    """
    found: set[int] = set()
    waiting = [index]
    while waiting and len(found) < _NEAREST:
        index = waiting.pop(0)
        node = call.graph.producer(index)
        if call.graph.values[index].varying and index not in found:
            found.add(index)
            if node is not None and not node.view:
                found.add(node.outputs[0])  # values and places of a topk belong together
            if node is not None and (node.pointwise or (moved and _moves(call, node))):
                waiting += node.inputs
    return found


def _moves(call: Call, node: Node) -> bool:
    """Whether an operation gives all elements of its operand other places."""
    values = call.graph.values
    return (
        node.view
        and bool(node.inputs)
        and values[node.inputs[0]].size == values[node.outputs[0]].size
    )


_LATEST: list[tuple[weakref.ref[Graph], Draws]] = []


def draws(graph: Graph) -> Draws:
    """The draws of a graph, as long as it is the last that was asked for."""
    if not _LATEST or _LATEST[0][0]() is not graph:
        _LATEST[:] = [(weakref.ref(graph, lambda _: _LATEST.clear()), Draws())]
    return _LATEST[0][1]
