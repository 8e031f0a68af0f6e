"""Norms, softmax and attention written by hand, recognised by what they compute.

A candidate is a multiplication, division or subtraction whose operands come from one value by
elementwise operations and reductions alone. It is run on random arrays, in float64, and compared
with the norms and the softmax over the reduced axes, up to a factor. Any spelling of a norm is the
same norm: x * rsqrt(mean(x**2) + eps), x / (norm(x) / sqrt(d)), and others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fanin.signal.graph import Graph, Node, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Kind = Literal["rms_norm", "layer_norm", "softmax", "log_softmax", "centre"]

_REDUCTIONS = frozenset(
    [
        *("mean", "sum", "var", "std", "var_mean", "std_mean", "amax", "amin", "max"),
        *("norm", "linalg_vector_norm", "logsumexp"),
    ]
)
_JOINS = frozenset({"mul", "div", "sub"})
_TRIED = 1 << 16  # elements of the random arrays; larger values are tried on fewer rows
_HUGE, _TINY = 1e6, 1e-3  # eps does not show at the one size and does at the other
_EXACT = 1e-9
_NORMS = ("rms_norm", "layer_norm")


@dataclass(frozen=True)
class Compound:
    """Several operations that together are one known step.

    Args:
        kind: which step.
        nodes: indices of the operations, in order.
        source: index of the value that it reads.
        output: index of the value that it makes.
        axes: the axes over which it reduces.
        scale: the factor before it: output = scale * step(source).
        eps: what is added to the mean square of a norm; 0 if nothing is.
    """

    kind: Kind
    nodes: tuple[int, ...]
    source: int
    output: int
    axes: tuple[int, ...]
    scale: float = 1.0
    eps: float = 0.0


@dataclass(frozen=True)
class Attention:
    """A softmax attention, whole or written by hand.

    Args:
        query, key, value: indices of the values that it reads, before views.
        output: index of the value that it makes.
        nodes: indices of its operations, in order.
        path: the module that computes it.
    """

    query: int
    key: int
    value: int
    output: int
    nodes: tuple[int, ...]
    path: str


def compounds(graph: Graph) -> tuple[Compound, ...]:
    """The norms and softmaxes that a graph spells out in elementwise steps and reductions.

    Args:
        graph: a traced graph; one that was read from a file has no kernels, and gives nothing.

    Returns:
        The largest ones, in order of execution.

    Example:
        >>> compounds(Graph((), (), (), (), ()))
        ()
    """
    roots = _roots(graph)
    found: list[Compound] = []
    for node in graph.nodes:
        if node.name in _JOINS and (step := _recognise(graph, node, roots)) is not None:
            inner = set(step.nodes)
            found = [f for f in found if not inner.issuperset(f.nodes)] + [step]
    return tuple(found)


def attentions(graph: Graph, spelled: tuple[Compound, ...] | None = None) -> tuple[Attention, ...]:
    """Every softmax attention of a graph: softmax(q k' ...) v, in one operation or in many.

    Args:
        graph: a traced graph.
        spelled: its `compounds`, where they are known already.

    Returns:
        Them, in order of execution.

    Example:
        >>> attentions(Graph((), (), (), (), ()))
        ()
    """
    spelled = compounds(graph) if spelled is None else spelled
    by_hand = {c.output: c for c in spelled if c.kind == "softmax"}
    return tuple(a for n in graph.nodes if (a := _attention(graph, n, by_hand)) is not None)


def _roots(graph: Graph) -> dict[int, int]:
    """For each value the one that it comes from by elementwise operations and reductions."""
    roots: dict[int, int] = {}
    for node in graph.nodes:
        operands = [v for v in graph.operands(node) if v.varying or v.depends]
        others = [v for v in graph.operands(node) if not v.varying and v.depends]
        found = {roots.get(v.index, v.index) for v in operands if v not in others}
        step = node.pointwise or node.name in _REDUCTIONS or (node.view and _reduced(graph, node))
        if step and not node.random and not others and len(found) == 1:
            for index in node.outputs:
                roots[index] = next(iter(found))
    return roots


def _reduced(graph: Graph, node: Node) -> bool:
    """Whether a view is of a value that was reduced, to bring its axes back."""
    made_by = graph.producer(node.inputs[0])
    while made_by is not None and (made_by.view or made_by.pointwise):
        made_by = graph.producer(made_by.inputs[0])
    return made_by is not None and made_by.name in _REDUCTIONS


def _recognise(graph: Graph, join: Node, roots: dict[int, int]) -> Compound | None:
    """The node as the end of a known step, from the earliest value that gives it."""
    root = roots.get(join.outputs[0])
    if root is None or len(join.inputs) != 2:
        return None
    found = None
    for source in _dominators(graph, join, root):
        nodes = _between(graph, source, join)
        axes = _axes(graph, nodes, graph.values[source])
        if axes:
            found = _compare(graph, source, nodes, axes) or found
    return found


def _dominators(graph: Graph, join: Node, root: int) -> Iterator[int]:
    """Values between the root and the node that every path passes, the nearest first."""
    open_ends = set(join.inputs)
    while open_ends:
        if len(open_ends) == 1:
            yield next(iter(open_ends))
        latest = max(open_ends, key=lambda i: _when(graph, i))
        open_ends.discard(latest)
        made_by = graph.producer(latest)
        if latest == root or made_by is None:
            return
        open_ends.update(i for i in made_by.inputs if graph.values[i].data is None)


def _when(graph: Graph, index: int) -> int:
    """When a value was made."""
    made_by = graph.values[index].producer
    return -1 if made_by is None else made_by


def _between(graph: Graph, source: int, join: Node) -> tuple[Node, ...]:
    """The operations from a value to a node."""
    needed: dict[int, Node] = {join.index: join}
    waiting = list(join.inputs)
    while waiting:
        index = waiting.pop()
        made_by = graph.producer(index)
        if index != source and made_by is not None and made_by.index not in needed:
            needed[made_by.index] = made_by
            waiting.extend(made_by.inputs)
    return tuple(needed[i] for i in sorted(needed))


def _axes(graph: Graph, nodes: tuple[Node, ...], source: Value) -> tuple[int, ...]:
    """The axes of the source over which the reductions among the nodes run, if it is one set."""
    found = set()
    for node in nodes:
        if node.name in _REDUCTIONS and len(graph.operands(node)[0].shape) == len(source.shape):
            given = node.get("dim")
            given = range(len(source.shape)) if given in (None, ()) else given
            axes = given if isinstance(given, (tuple, range)) else (given,)
            found.add(tuple(sorted(int(a) % len(source.shape) for a in axes)))
    return found.pop() if len(found) == 1 else ()


def _compare(
    graph: Graph, source: int, nodes: tuple[Node, ...], axes: tuple[int, ...]
) -> Compound | None:
    """Run the operations and compare them with each known step."""
    draw = np.random.default_rng(0).standard_normal(_trial_shape(graph.values[source], axes))
    try:
        results = {size: _run(graph, source, nodes, size * draw) for size in (_HUGE, 3.0, _TINY)}
    except (RuntimeError, KeyError):
        return None  # a size inside a view does not fit fewer rows
    for kind, step in _STEPS.items():
        size = _HUGE if kind in _NORMS else 3.0
        wanted, y = step(size * draw, axes), results[size]
        if y.shape != wanted.shape:
            return None
        scale = float((wanted * y).sum() / (wanted**2).sum())
        if abs(scale) > 0 and np.abs(y - scale * wanted).max() <= _EXACT * np.abs(y).max():
            scale = float(f"{scale:.9g}")
            eps = _eps(kind, _TINY * draw, results[_TINY] / scale, axes) if kind in _NORMS else 0.0
            indices = tuple(n.index for n in nodes)
            return Compound(kind, indices, source, nodes[-1].outputs[0], axes, scale, eps)
    return None


def _trial_shape(value: Value, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The value's shape, with fewer rows if it is large."""
    if value.size <= _TRIED:
        return value.shape
    return tuple(n if axis in axes else min(n, 2) for axis, n in enumerate(value.shape))


def _run(graph: Graph, source: int, nodes: tuple[Node, ...], x: Array) -> Array:
    """The result of the operations for an array in place of the source."""
    arrays = {source: x}
    for node in nodes:
        given = [arrays[i] if i in arrays else graph.values[i].data for i in node.inputs]
        if node.kernel is None or any(g is None for g in given):
            raise KeyError(node.index)
        arrays.update(zip(node.outputs, node.kernel(*given), strict=True))  # type: ignore[arg-type]
    return arrays[nodes[-1].outputs[0]]


def _rms_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """x over its root mean square."""
    normed: Array = x / np.sqrt((x**2).mean(axes, keepdims=True))
    return normed


def _centre(x: Array, axes: tuple[int, ...]) -> Array:
    """x without its mean."""
    centred: Array = x - x.mean(axes, keepdims=True)
    return centred


def _log_softmax(x: Array, axes: tuple[int, ...]) -> Array:
    """log softmax(x)."""
    below = x - x.max(axes, keepdims=True)
    logs: Array = below - np.log(np.exp(below).sum(axes, keepdims=True))
    return logs


_STEPS: dict[Kind, Callable[[Array, tuple[int, ...]], Array]] = {
    "rms_norm": _rms_norm,
    "layer_norm": lambda x, axes: _rms_norm(_centre(x, axes), axes),
    "softmax": lambda x, axes: np.exp(_log_softmax(x, axes)),
    "log_softmax": _log_softmax,
    "centre": _centre,
}


def _eps(kind: Kind, x: Array, y: Array, axes: tuple[int, ...]) -> float:
    """What a norm adds to the mean square, from its result for small x."""
    x = x if kind == "rms_norm" else _centre(x, axes)
    squares = (x**2).mean(axes), (y**2).mean(axes)
    eps = float(np.median(squares[0] / squares[1] - squares[0]))
    return 0.0 if eps < 1e-14 else float(f"{eps:.4g}")


def _attention(graph: Graph, node: Node, by_hand: dict[int, Compound]) -> Attention | None:
    """The node as the end of an attention, if it is one."""
    if node.name == "scaled_dot_product_attention":
        query, key, value = (graph.origin(node[k]).index for k in ("query", "key", "value"))
        return Attention(query, key, value, node.outputs[0], (node.index,), node.path)
    if node.name not in ("matmul", "bmm") or len(node.inputs) != 2:
        return None
    weights, nodes = _through(graph, node.inputs[0], {"dropout", "native_dropout"})
    softmax = graph.producer(weights)
    if weights in by_hand:
        logits, own = by_hand[weights].source, by_hand[weights].nodes
    elif softmax is not None and softmax.name in ("softmax", "_softmax"):
        logits, own = softmax.inputs[0], (softmax.index,)
    else:
        return None
    steps = {"mul", "div", "add", "masked_fill", "where", "sub"}
    scores, more = _through(graph, logits, steps)
    product = graph.producer(scores)
    if product is None or product.name not in ("matmul", "bmm", "baddbmm"):
        return None
    query, key = (graph.origin(i).index for i in product.inputs[-2:])
    value = graph.origin(node.inputs[1]).index
    indices = sorted({*nodes, *own, *more, product.index, node.index})
    return Attention(query, key, value, node.outputs[0], tuple(indices), node.path)


def _through(graph: Graph, index: int, steps: set[str]) -> tuple[int, list[int]]:
    """The value before a chain of views and of these steps, and the chain's nodes."""
    nodes = []
    while (made_by := graph.producer(index)) is not None:
        if not made_by.view and made_by.name not in steps:
            break
        data = [v for v in graph.operands(made_by) if v.varying and v.floating]
        if not data:
            break
        nodes.append(made_by.index)
        index = data[0].index
    return index, nodes
