"""How the signal runs between the weights: what is in front of each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fanin.planning.heads import Heads
from fanin.planning.streams import Streams
from fanin.planning.wiring import Wiring
from fanin.signal.fuse import Function, Fusion, fuse

MERGES = frozenset({"add", "sub", "cat", "stack"})

Before = Literal[
    "input", "weight", "recurrent", "norm", "sum", "product", "attention", "table", "other"
]


@dataclass(frozen=True)
class Source:
    """What a weight reads.

    Args:
        before: where it comes from.
        weight: the weight whose output it is a function of, if one.
        function: the elementwise function between; None for the identity.
        pooled: whether positions or channels are averaged, dropped or chosen in between.
    """

    before: Before
    weight: str | None = None
    function: Function | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Flow(Wiring):
    """A graph with what was found in it, its residual streams and its attentions."""

    @cached_property
    def streams(self) -> Streams:
        """The residual sums."""
        return Streams(self)

    @cached_property
    def heads(self) -> Heads:
        """What the attentions are made of."""
        return Heads(self)

    @cached_property
    def _fusion(self) -> Fusion:
        return fuse(self.graph)

    @cached_property
    def _sums(self) -> frozenset[int]:
        return frozenset(join.node.outputs[0] for join in self.streams.joins)

    def source(self, index: int) -> Source:
        """What a value comes from, up to the nearest weight, norm, sum or input."""
        function: Function | None = None
        composed = pooled = False
        while True:
            index = self.graph.origin(index).index
            before = self._landmark(index)
            if before is not None:
                shown = None if composed else function
                return Source(before, self.matrices.get(index), shown, pooled or composed)
            found = self._fusion.function(index)
            if not found.trivial and not found.operands:
                composed, function = function is not None, found
                index = found.source
                continue
            node = self.graph.producer(index)
            assert node is not None
            operands = self.data(node)
            step = node.pointwise or "dropout" in node.name
            pooled |= not step
            if len(operands) != 1:
                gated = node.name == "mul" and len(operands) == 2
                return Source("product" if gated else "other", None, None, pooled)
            index = operands[0]

    def function(self, index: int) -> Function:
        """A value as an elementwise function of its source; the identity where it is its own."""
        return self._fusion.function(index)

    def starts_anew(self, index: int) -> bool:
        """Whether a norm, an attention, a recurrent layer or a table makes a value."""
        return self._landmark(index) not in (None, "weight", "sum", "input")

    def behind(self, index: int) -> list[str]:
        """The weights whose outputs reach a value through functions, sums and concatenations."""
        found: list[str] = []
        waiting, seen = [index], {index}
        while waiting:
            here = waiting.pop()
            if self._landmark(here) == "weight":
                found.append(self.matrices[here])
            node = self.graph.producer(here)
            if node is None or self._landmark(here) is not None:
                continue
            operands = self.data(node)
            if len(operands) > 1 and node.name not in MERGES:
                continue
            fresh = [i for i in operands if i not in seen]
            seen.update(fresh)
            waiting += fresh
        return found

    @cached_property
    def activated(self) -> dict[int, Function]:
        """For values that a plain activation reads, the one that comes first."""
        found: dict[int, Function] = {}
        for function in self._fusion.activations:
            if not function.operands:
                found.setdefault(self.graph.origin(function.source).index, function)
        return found

    def _landmark(self, index: int) -> Before | None:
        """What a value is, if the way back ends here."""
        if index in self.matrices:
            kinds = {u.kind for u in self.uses[self.matrices[index]]}
            return "recurrent" if "recurrent" in kinds else "weight"
        if index in self.norms:
            return "norm"
        if index in self.attentions:
            return "attention"
        if index in self._sums:
            return "sum"
        node = self.graph.producer(index)
        if node is None:
            return "input" if self.graph.values[index].kind == "input" else "table"
        return "table" if "embedding" in node.name else None
