"""Two runs of one function, as in a Siamese network: what the two results have in common.

Given the weights, the runs on two independent inputs of one law are two samples of one run:
E[x_i y_j] is what the table of x says of two samples.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.state import ASSUMED, State
from fanin.signal.table import Table, add

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.signal.graph import Graph
    from fanin.signal.transfer.call import Call

    Runs = dict[int, tuple[object, frozenset[int]]]

_NEAR = 0.05  # relative distance of second moments up to which two inputs have one law
_LATEST: list[tuple[weakref.ref[Graph], Runs]] = []


def sum_of_runs(call: Call, x: State, y: State, a: float, b: float) -> State | None:
    """a x + b y where x and y are two runs of one function; None where they are not."""
    cross = _common(call.graph, call.node.inputs, x.table, y.table)
    if cross is None:
        return None
    table = add(x.table * a, y.table, b, a * cross)
    how = f"{ASSUMED}: two runs of one function on independent inputs"
    return State(table, how, call.token(), roots=call.roots)


def _common(
    graph: Graph, values: tuple[int, ...], first: Table, second: Table
) -> NDArray[Any] | None:
    """E[x_i y_j] as the pairs of a table, whose first dimension is that of samples."""
    if len(graph.inputs) < 2 or len(values) != 2 or first.dims != second.dims:
        return None
    (made, own), (like, other) = (_runs(graph)[i] for i in values)
    samples = first.axes((0,)) if first.dims else ()
    near = abs(first.second_moment - second.second_moment) <= _NEAR * first.second_moment
    if made != like or not own or own & other or not samples or not near:
        return None
    if first.resolved or second.resolved:
        return None
    pairs = np.asarray(first.pairs)
    for axis in samples:
        pairs = np.repeat(pairs.take([1], axis), 2, axis)
    return pairs


def _runs(graph: Graph) -> Runs:
    """For each value how it was made, whatever the inputs are, and which they are."""
    if _LATEST and _LATEST[0][0]() is graph:
        return _LATEST[0][1]
    numbers: dict[object, int] = {}
    found: Runs = {}
    for value in graph.values:
        if value.producer is None:
            is_input = value.kind == "input"
            key: object = ("input", value.shape, value.dtype) if is_input else value.index
            found[value.index] = key, frozenset([value.index] if is_input else [])
    for node in graph.nodes:
        own = frozenset[int]().union(*(found[i][1] for i in node.inputs))
        read = tuple(found[i][0] for i in node.inputs)
        # A value prints as %n; which values are read is in `read`.
        constants = [(k, "%" if "%" in repr(v) else repr(v)) for k, v in node.args.items()]
        for place, index in enumerate(node.outputs):
            made = node.op, repr(constants), read, place
            found[index] = ("made", numbers.setdefault(made, len(numbers))), own
    _LATEST[:] = [(weakref.ref(graph, lambda _: _LATEST.clear()), found)]
    return found
