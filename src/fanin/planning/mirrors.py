"""Where units can stand in mirrored pairs: which axes of a stretch's weights pair up, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fanin.planning.roles import Scene, Weight
from fanin.signal.graph import Node

Pairs = tuple[tuple[int, int], ...]
_IN_ORDER = frozenset({"view", "_unsafe_view", "reshape", "flatten"})


def mirror_pairs(members: Iterable[Weight], scene: Scene) -> dict[str, Pairs] | None:
    """The mirrored axes of every weight of a stretch, each with its span; None where one has none.

    All of them have to be drawn: what reads a layer that is left alone finds no pairs there.
    Outputs pair up except a head's, inputs except the network's. Neighbouring channels are a pair;
    where a linear layer reads flattened maps, neighbouring blocks of as many inputs as a map has
    positions.
    """
    found: dict[str, Pairs] = {}
    members = list(members)
    if undrawn(members, scene) is not None:
        return None
    for weight in members:
        pairs = _pairs(weight, scene)
        if pairs is None:
            return None
        found[weight.path] = pairs
    return found


def undrawn(members: Iterable[Weight], scene: Scene) -> str | None:
    """The first tensor of a stretch, weight or bias in front of an activation, drawn by others."""
    for weight in members:
        bias = scene.biases.get(weight.path) if weight.role != "head" else None
        for path in (weight.path, bias):
            if path in scene.elsewhere:
                return path
    return None


def _pairs(weight: Weight, scene: Scene) -> Pairs | None:
    """The mirrored axes of one weight; None where its units cannot be paired."""
    if not _plain(weight) or weight.source is None:
        return None
    words = weight.fans.axes.split()
    pairs: list[tuple[int, int]] = []
    if weight.role != "head":
        outputs = words.index("out")
        if weight.shape[outputs] % 2 or weight.path not in scene.biases:
            return None
        pairs.append((outputs, 1))
    if weight.source.before != "input":
        span = _span(weight, scene)
        if span is None:
            return None
        pairs.append((words.index("in"), span))
    return tuple(pairs)


def _plain(weight: Weight) -> bool:
    """Whether a weight is one matrix or one kernel, of outputs and inputs."""
    use = weight.use
    assert use is not None
    kernel = use.node.name == "convolution"
    if weight.role not in ("input", "hidden", "head") or weight.projections:
        return False
    if kernel and (use.node["transposed"] or int(use.node["groups"]) != 1):
        return False
    words = weight.fans.axes.split()
    return words.count("in") == words.count("out") == 1 and "expert" not in words


def _span(weight: Weight, scene: Scene) -> int | None:
    """Consecutive inputs that belong to one channel of the weight in front; None where unknown."""
    source, graph = weight.source, scene.graph
    assert source is not None
    if source.before != "weight" or source.function is None or source.pooled:
        return None
    assert weight.use is not None
    assert weight.use.data is not None
    before = scene.weights[source.weight or ""]
    assert before.use is not None
    if not all(_keeps_order(node) for node in _way(weight, scene)):
        return None
    made, read = graph.values[before.use.output].shape, graph.values[weight.use.data].shape
    maps = before.use.node.name == "convolution"
    if weight.use.node.name == "convolution":
        return 1 if maps and made == read else None
    if not maps:
        return 1 if made[-1] == read[-1] else None
    flat = len(read) == 2 and read[-1] == math.prod(made[1:])
    return math.prod(made[2:]) if flat else None


def _way(weight: Weight, scene: Scene) -> Iterable[Node]:
    """The operations between a weight and the one whose outputs it reads."""
    index: int | None = weight.use.data if weight.use is not None else None
    while index is not None and index not in scene.flow.matrices:
        node = scene.graph.producer(index)
        if node is None:
            return
        yield node
        operands = scene.flow.data(node)
        function = scene.flow.function(index)
        index = operands[0] if len(operands) == 1 else function.source
        if len(operands) != 1 and function.trivial:
            return


def _keeps_order(node: Node) -> bool:
    """Whether an operation leaves the elements in their order."""
    return node.pointwise or node.name in _IN_ORDER
