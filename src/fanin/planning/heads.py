"""Attentions: which rows of which weights make their queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fanin.planning.reading import named
from fanin.planning.wiring import Wiring
from fanin.signal.compound import Attention
from fanin.signal.graph import Graph, Node

_LABELLED = 1 << 24  # elements of an output whose channels are followed through views

Part = Literal["query", "key", "value"]
_PARTS: tuple[Part, ...] = ("query", "key", "value")


@dataclass(frozen=True)
class Projection:
    """Rows of a weight that make the queries, keys or values of an attention.

    Args:
        first: the first output that belongs to it.
        last: one after the last.
        part: which of the three.
        width: size of one head.
    """

    first: int
    last: int
    part: Part
    width: int


@dataclass(frozen=True)
class Heads:
    """The attentions of a graph.

    Args:
        wiring: the graph with what was found in it.
    """

    wiring: Wiring

    @property
    def graph(self) -> Graph:
        """The graph itself."""
        return self.wiring.graph

    @cached_property
    def inside(self) -> frozenset[int]:
        """Nodes of attentions whose results nothing else reads."""
        inner: set[int] = set()
        for attention in self.wiring.attentions.values():
            nodes = [
                i for i in attention.nodes if attention.output not in self.graph.nodes[i].outputs
            ]
            made = {v for i in nodes for v in self.graph.nodes[i].outputs}
            readers = {n.index for v in made for n in self.graph.consumers(v)}
            if readers <= set(attention.nodes) and not made & set(self.graph.outputs):
                inner.update(nodes)
        return frozenset(inner)

    @cached_property
    def projections(self) -> dict[str, tuple[Projection, ...]]:
        """For each weight that feeds an attention, which of its rows are what."""
        found: dict[str, dict[Projection, None]] = {}
        for attention in self.wiring.attentions.values():
            for part, index in zip(_PARTS, self.operands(attention), strict=True):
                for path, first, last in self.feeding(index):
                    width = self.graph.values[index].shape[-1]
                    found.setdefault(path, {})[Projection(first, last, part, width)] = None
        return {p: tuple(sorted(f, key=lambda x: x.first)) for p, f in found.items()}

    def operands(self, attention: Attention) -> list[int]:
        """Query, key and value as the attention reads them, views included."""
        last = self.graph.nodes[attention.nodes[-1]]
        if len(attention.nodes) == 1:
            return [last[part].value for part in _PARTS]
        scores = (self.graph.nodes[i] for i in attention.nodes[:-1])
        products = [n for n in scores if n.name in ("matmul", "bmm", "baddbmm")]
        return [*products[-1].inputs[-2:], last.inputs[1]]

    def feeding(self, index: int) -> Iterator[tuple[str, int, int]]:
        """The weight matrix whose output a value is, and which of its outputs."""
        chain: list[tuple[Node, int]] = []
        while index not in self.wiring.matrices:
            node = self.graph.producer(index)
            operands = self.wiring.data(node) if node is not None else []
            if node is None or not operands:
                return
            read = max(operands, key=lambda i: self.graph.values[i].size)
            if node.view or self.graph.values[read].shape != self.graph.values[index].shape:
                chain.append((node, node.outputs.index(index)))
            index = read
            index = self.wiring.norms.get(index, index)
        first, last = self._channels(self.graph.values[index].shape, chain)
        offset = self._first_row(index)
        yield self.wiring.matrices[index], offset + first, offset + last

    def _first_row(self, index: int) -> int:
        """Where the rows begin that an operation reads, if it reads a slice of its weight."""
        use = next(u for u in self.wiring.uses[self.wiring.matrices[index]] if u.output == index)
        operand = next((i for i in use.node.inputs if named(self.graph, i) == use.path), None)
        chain: list[tuple[Node, int]] = []
        while operand is not None and (node := self.graph.producer(operand)) is not None:
            if node.name not in ("split", "split_with_sizes", "slice", "chunk", "detach", "clone"):
                return 0
            chain.append((node, node.outputs.index(operand)))
            operand = node.inputs[0]
        if not chain or operand is None:
            return 0
        shape = self.graph.values[operand].shape
        rows = np.broadcast_to(np.arange(shape[0])[:, None], shape)
        for node, position in reversed(chain):
            if node.kernel is None:
                return 0
            rows = node.kernel(np.ascontiguousarray(rows))[position]
        return int(rows.min())

    def _channels(self, shape: tuple[int, ...], chain: list[tuple[Node, int]]) -> tuple[int, int]:
        """The range of the last axis that is left after a chain of views and selections.

        It is told by following labels; the whole axis where an operation does something else.
        """
        whole = (0, shape[-1])
        if int(np.prod(shape, dtype=np.int64)) > _LABELLED:
            return whole
        key = (shape, tuple((n.op, repr({**n.args, "self": 0}), at) for n, at in chain))
        if key not in self._labels:
            labels = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
            for node, position in reversed(chain):
                places = [self.graph.values[i].data for i in node.inputs[1:]]
                follows = node.view or node.name in ("index", "index_select")
                known = [x for x in places if x is not None]
                if node.kernel is None or not follows or len(known) < len(places):
                    return whole
                labels = node.kernel(np.ascontiguousarray(labels), *known)[position]
            self._labels[key] = (int(labels.min()), int(labels.max()) + 1)
        return self._labels[key]

    @cached_property
    def _labels(self) -> dict[object, tuple[int, int]]:
        return {}

    def biases_logits(self, index: int) -> bool:
        """Whether a value is added to the logits of an attention, views in between."""
        inside = {i for a in self.wiring.attentions.values() for i in a.nodes}
        waiting = [index]
        while waiting:
            for node in self.graph.consumers(waiting.pop()):
                if node.index in inside:
                    return True
                if node.view or node.name in ("add", "index", "mul", "where"):
                    fresh = [i for i in node.outputs if not self.graph.values[i].varying]
                    waiting += fresh
        return False
