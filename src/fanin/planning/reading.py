"""What the operations of a graph do with each parameter, and the fans that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fanin.planning.fans import Fans, convolution_fans, matrix_fans, one_part
from fanin.signal.graph import Graph, Node, Ref

Kind = Literal[
    "matrix",
    "embedding",
    "recurrent",
    "bias",
    "norm scale",
    "norm shift",
    "scale",
    "shift",
    "other",
]
NORMS = frozenset(
    {
        *("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm"),
        *("native_layer_norm", "native_batch_norm", "native_group_norm", "_fused_rms_norm"),
    }
)
RECURRENT = {"lstm": 4, "lstm_cell": 4, "gru": 3, "gru_cell": 3}
RECURRENT |= {f"rnn_{f}{cell}": 1 for f in ("tanh", "relu") for cell in ("", "_cell")}
_PRODUCTS = {"mm": "mat2", "bmm": "mat2", "matmul": "other", "addmm": "mat2", "baddbmm": "batch2"}
_PRODUCTS |= {"_grouped_mm": "mat2"}
_LEFT = {"mm": "self", "bmm": "self", "matmul": "self", "addmm": "mat1", "baddbmm": "batch1"}
_LEFT |= {"_grouped_mm": "self"}


@dataclass(frozen=True)
class Use:
    """One operation that reads a parameter.

    Args:
        path: the parameter, or the parametrized weight, by its first name.
        kind: what the operation does with it.
        node: the operation.
        data: index of the value that it acts on; None where there is none.
        fans: of a matrix, an embedding or a recurrent weight.
        weight: for a bias the path of the weight whose output it shifts.
        gates: matrices side by side in a recurrent weight.
        hidden: whether a recurrent weight acts on the layer's own state.
    """

    path: str
    kind: Kind
    node: Node
    data: int | None = None
    fans: Fans | None = None
    weight: str | None = None
    gates: int = 1
    hidden: bool = False

    @property
    def output(self) -> int:
        """Index of the value that the operation makes."""
        return self.node.outputs[0]


def read(graph: Graph, normed: Container[int]) -> dict[str, tuple[Use, ...]]:
    """Every use of every parameter and parametrized weight, in order of execution.

    Args:
        graph: a traced graph.
        normed: indices of the values that a norm made, also one written by hand.

    Returns:
        The uses by first name; parameters that no operation reads are absent.
    """
    uses: dict[str, list[Use]] = {}
    for node in graph.nodes:
        if not node.view:
            for use in _uses(graph, node, normed):
                uses.setdefault(use.path, []).append(use)
    return {path: tuple(found) for path, found in uses.items()}


def named(graph: Graph, index: int) -> str | None:
    """The parameter, buffer or parametrized weight that a value is, through views and casts."""
    while True:
        computed = graph.parametrization(index)
        if computed is not None:
            return computed.name
        node = graph.producer(index)
        if node is None:
            parameter = graph.parameter(index)
            return parameter.name if parameter else None
        if not node.view:
            return None
        index = node.inputs[0]


def _uses(graph: Graph, node: Node, normed: Container[int]) -> Iterator[Use]:
    """What one operation does with the parameters that it reads."""
    names = {i: name for i in node.inputs if (name := named(graph, i)) is not None}
    if not names:
        return
    if node.name == "linear":
        yield from _linear(graph, node, names)
    elif node.name in _PRODUCTS:
        yield from _product(graph, node, names)
    elif node.name == "convolution":
        yield from _convolution(graph, node, names)
    elif node.name in RECURRENT:
        yield from _recurrent(graph, node, names)
    elif node.name in NORMS:
        for argument in ("weight", "bias"):
            kind: Kind = "norm scale" if argument == "weight" else "norm shift"
            yield from _single(graph, node, names, argument, kind, node.inputs[0])
    elif node.name in ("embedding", "embedding_bag"):
        yield from _embedding(graph, node, names)
    elif node.name == "bilinear":
        fans = matrix_fans(graph.value(node["weight"]).shape, "out in in")
        yield from _single(graph, node, names, "weight", "matrix", node.inputs[0], fans)
        yield from _bias(node, names, "bias", names[node["weight"].value])
    else:
        yield from _elementwise(graph, node, names, normed)


def _index(node: Node, argument: str) -> int | None:
    """The value that an argument refers to."""
    reference = node.get(argument)
    return reference.value if isinstance(reference, Ref) else None


def _single(
    graph: Graph,
    node: Node,
    names: dict[int, str],
    argument: str,
    kind: Kind,
    data: int | None,
    fans: Fans | None = None,
) -> Iterator[Use]:
    """The use of one argument, if it is a parameter."""
    index = _index(node, argument)
    if index in names:
        if fans is not None:
            fans = replace(fans, axes=_own_axes(graph, index, fans.axes.split()))
        yield Use(names[index], kind, node, data, fans)


def _bias(node: Node, names: dict[int, str], argument: str, weight: str | None) -> Iterator[Use]:
    """The use of a bias argument."""
    index = _index(node, argument)
    if index in names:
        yield Use(names[index], "bias", node, weight=weight)


def _linear(graph: Graph, node: Node, names: dict[int, str]) -> Iterator[Use]:
    """x W^T + b."""
    index, data = _index(node, "weight"), _index(node, "input")
    if index in names:
        fans = matrix_fans(graph.values[index].shape, "out in")
        yield from _single(graph, node, names, "weight", "matrix", data, fans)
    yield from _bias(node, names, "bias", names.get(index) if index is not None else None)


def _product(graph: Graph, node: Node, names: dict[int, str]) -> Iterator[Use]:
    """A W or W A, with a bias where the operation adds one."""
    left, right = _index(node, _LEFT[node.name]), _index(node, _PRODUCTS[node.name])
    weight = None
    for argument, index, data, last in (
        (_PRODUCTS[node.name], right, left, ["in", "out"]),
        (_LEFT[node.name], left, right, ["out", "in"]),
    ):
        if index is None or index not in names or not graph.values[data or 0].varying:
            continue
        shape = graph.values[index].shape
        if len(shape) >= 2:
            weight = names[index]
            words = ["expert" if n > 1 else "tap" for n in shape[:-2]] + last
            fans = matrix_fans(shape, " ".join(words))
            yield from _single(graph, node, names, argument, "matrix", data, fans)
        else:
            yield from _single(graph, node, names, argument, "other", data)
    if node.name in ("addmm", "baddbmm"):
        yield from _bias(node, names, "self", weight)


def _convolution(graph: Graph, node: Node, names: dict[int, str]) -> Iterator[Use]:
    """A convolution, with the mean number of taps that zero padding leaves inside."""
    index, data = _index(node, "weight"), _index(node, "input")
    assert index is not None
    assert data is not None
    shape, size = graph.values[index].shape, graph.values[data].shape[2:]
    groups, transposed = int(node["groups"]), bool(node["transposed"])
    rank = len(shape) - 2
    fans = convolution_fans(
        shape[0] if transposed else shape[1] * groups,
        shape[1] * groups if transposed else shape[0],
        shape[2:],
        stride=_each(node["stride"], rank),
        dilation=_each(node["dilation"], rank),
        padding=tuple((p, p) for p in _each(node["padding"], rank)),
        output_padding=_each(node["output_padding"], rank),
        groups=groups,
        transposed=transposed,
        size=size,
    )
    yield from _single(graph, node, names, "weight", "matrix", data, fans)
    yield from _bias(node, names, "bias", names.get(index))


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each axis, where one may stand for all."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * rank if len(numbers) == 1 else numbers


def _embedding(graph: Graph, node: Node, names: dict[int, str]) -> Iterator[Use]:
    """A table that is looked up: each output is one element."""
    index = _index(node, "weight")
    assert index is not None
    rows, width = graph.values[index].shape
    fans = one_part(1, width, f"one of {rows} rows, {width} out", "expert out")
    yield from _single(graph, node, names, "weight", "embedding", _index(node, "indices"), fans)


def _recurrent(graph: Graph, node: Node, names: dict[int, str]) -> Iterator[Use]:
    """The weights and biases of recurrent layers, by their shapes and their order."""
    gates, data = RECURRENT[node.name], node.inputs[0]
    given = node.get("params")
    arguments = given if given is not None else [node.get(a) for a in ("w_ih", "w_hh")]
    biases = [] if given is not None else [node.get(a) for a in ("b_ih", "b_hh")]
    matrices, directions = 0, 2 if node.get("bidirectional") else 1
    for reference in (*arguments, *biases):
        if not isinstance(reference, Ref) or reference.value not in names:
            continue
        name, shape = names[reference.value], graph.value(reference).shape
        if len(shape) == 1:
            yield Use(name, "bias", node, data, gates=gates, hidden="hh" in name)
            continue
        hidden = matrices % 2 == 1  # weights come in pairs, then a projection if there is one
        split = gates if shape[0] % gates == 0 and "hr" not in name.rpartition(".")[2] else 1
        fans = matrix_fans(shape, "out in", split)
        below = data if matrices < 2 * directions else None  # deeper layers read the one below
        matrices += 0 if split == 1 and gates > 1 else 1
        yield Use(name, "recurrent", node, below, fans, gates=split, hidden=hidden)


def _elementwise(
    graph: Graph, node: Node, names: dict[int, str], normed: Container[int]
) -> Iterator[Use]:
    """A parameter that scales, shifts, or does something that has no name here."""
    for index, name in names.items():
        others = [i for i in node.inputs if i not in names and graph.values[i].varying]
        if len(others) != 1 or not node.pointwise:
            yield Use(name, "other", node, others[0] if others else None)
        elif node.name in ("mul", "div"):
            after_norm = graph.origin(others[0]).index in normed
            # p x + (1 - p) y is a mixture: both of its factors are made of p
            mixes = any(n.name in ("sub", "rsub") for n in graph.consumers(index))
            kind: Kind = "norm scale" if after_norm and not mixes else "scale"
            yield Use(name, kind, node, others[0])
        elif node.name in ("add", "sub"):
            yield _shift(graph, node, name, index, others[0], normed)
        else:
            yield Use(name, "other", node, others[0])


def _shift(
    graph: Graph, node: Node, name: str, index: int, data: int, normed: Container[int]
) -> Use:
    """An added parameter: the bias of a matrix, the shift of a norm, or a table of positions."""
    maker = graph.producer(graph.origin(data))
    whole = graph.values[index].size
    if maker is not None and maker.name in ("linear", "convolution", *_PRODUCTS):
        weights = {i: n for i in maker.inputs if (n := named(graph, i)) is not None}
        for i, weight in weights.items():
            if whole in graph.values[i].shape[:2]:
                return Use(name, "bias", node, data, weight=weight)
    scaled = maker.inputs if maker is not None and maker.name == "mul" else ()
    after_norm = any(graph.origin(i).index in normed for i in scaled)
    return Use(name, "norm shift" if after_norm else "shift", node, data)


def _maker(graph: Graph, index: int) -> Node | None:
    """The operation that made a value, views aside."""
    return graph.producer(graph.origin(index))


def _own_axes(graph: Graph, index: int, words: Sequence[str]) -> str:
    """The meaning of a parameter's own axes, from that of the axes of a view of it; or ""."""
    meaning: list[str] | None = list(words)
    while (node := graph.producer(index)) is not None and node.view:
        if meaning is None or graph.parametrization(index) is not None:
            break
        source = graph.values[node.inputs[0]]
        undo = _UNDO.get(node.name, _undo_reshape)
        meaning = undo(meaning, node, source.shape, graph.values[index].shape)
        index = source.index
    return " ".join(meaning) if meaning is not None else ""


Shape = tuple[int, ...]
_Undo = Callable[[list[str], Node, Shape, Shape], "list[str] | None"]


def _undo_permute(words: list[str], node: Node, before: Shape, after: Shape) -> list[str] | None:
    """Axes in another order."""
    rank = len(before)
    if node.name in ("t", "numpy_T"):
        order = tuple(reversed(range(rank)))
    elif node.name == "transpose":
        first, second = node["dim0"] % rank, node["dim1"] % rank
        swap = {first: second, second: first}
        order = tuple(swap.get(i, i) for i in range(rank))
    else:
        order = tuple(d % rank for d in node["dims"])
    back = [""] * rank
    for position, axis in enumerate(order):
        back[axis] = words[position]
    return back


def _undo_reshape(words: list[str], node: Node, before: Shape, after: Shape) -> list[str] | None:
    """Axes merged, split, added or dropped: each group keeps its word if all its axes agree."""
    if math.prod(before) != math.prod(after):
        return None
    back: list[str] = []
    old = list(before)
    place = 0
    while old:
        size, width = old.pop(0), 1
        taken: list[str] = []
        while place < len(after) and width * after[place] <= size:
            width *= after[place]
            taken += [words[place]] if after[place] > 1 else []
            place += 1
        if width != size or len(set(taken)) > 1:
            return None
        back.append(taken[0] if taken else "tap")
    return back


def _undo_part(words: list[str], node: Node, before: Shape, after: Shape) -> list[str] | None:
    """A part of one axis."""
    return words


_UNDO: dict[str, _Undo] = dict.fromkeys(("t", "numpy_T", "transpose", "permute"), _undo_permute)
_UNDO |= dict.fromkeys(("split", "split_with_sizes", "slice", "chunk"), _undo_part)
