"""Residual sums: where a branch parts from its stream and joins it again, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fanin.planning.wiring import GATES, Wiring
from fanin.signal.graph import Node


@dataclass(frozen=True)
class Join:
    """A residual sum: what skips, the branch beside it, and where the two part.

    Args:
        node: the addition.
        start: value where they part.
        skip: operand that came straight from there.
        branch: the other operand.
        stream: number of the stream of sums that this one belongs to.
    """

    node: Node
    start: int
    skip: int
    branch: int
    stream: int = 0


@dataclass(frozen=True)
class End:
    """The last projection of a residual branch.

    Args:
        join: the sum that it ends in.
        normed: whether a norm stands between, and so sets its scale.
        scaled: whether a parameter stands between that scales it (LayerScale, ReZero).
        beside: how many projections end in the same sum.
    """

    join: Join
    normed: bool
    scaled: bool
    beside: int = 1


@dataclass(frozen=True)
class Streams:
    """The residual sums of a graph.

    Args:
        wiring: the graph with what was found in it.
    """

    wiring: Wiring

    @cached_property
    def joins(self) -> tuple[Join, ...]:
        """The residual sums in order of execution."""
        found: dict[int, Join] = {}
        for node in self.wiring.graph.nodes:
            if node.name == "add" and (join := self._join(node, found)) is not None:
                found[node.outputs[0]] = join
        return tuple(found.values())

    def _join(self, node: Node, before: dict[int, Join]) -> Join | None:
        """The sum as a residual one: a straight way beside one with more weights in it."""
        operands = self.wiring.data(node)
        if len(operands) != 2 or not all(self.wiring.graph.values[i].floating for i in operands):
            return None
        found = []
        for skip, branch in (operands, operands[::-1]):
            for start, count in self._straight(skip, before):
                if self.wiring.ancestors[branch] >> start & 1:
                    if self.wiring.between(start, branch) > count:
                        found.append((count, Join(node, start, skip, branch)))
                    break
        if not found:
            return None
        join = min(found, key=lambda f: f[0])[1]
        return replace(join, stream=self._stream(join, list(before.values())))

    def members(self, join: Join) -> list[str]:
        """The weight matrices of a branch, in order of execution.

        Beside what follows from its start those that only it reads, such as keys and values from
        an encoder, but not what stands in front of another stream, such as that encoder's stem.
        """
        wiring, ancestors = self.wiring, self.wiring.ancestors
        bits = ancestors[join.branch] & ~ancestors[join.start] & wiring.matrix_bits
        elsewhere = 0
        for stream, first in self._first_joins.items():
            elsewhere |= ancestors[first.start] if stream != join.stream else 0
        return [
            path
            for index, path in wiring.matrices.items()
            if bits >> index & 1
            and (ancestors[index] >> join.start & 1 or not elsewhere >> index & 1)
        ]

    @cached_property
    def _first_joins(self) -> dict[int, Join]:
        """The first sum of each stream."""
        found: dict[int, Join] = {}
        for join in self.joins:
            found.setdefault(join.stream, join)
        return found

    def _straight(self, end: int, before: dict[int, Join]) -> Iterator[tuple[int, int]]:
        """The values on the way back without forks, gates or learned scales, with the matrices.

        Earlier residual sums are passed on their skip; at most one matrix is.
        """
        wiring, count = self.wiring, 0
        while True:
            node = wiring.graph.producer(end)
            if node is not None and node.name in GATES:
                return
            yield end, count
            count += end in wiring.matrices
            if node is None or count > 1 or node.index in wiring.scales:
                return
            operands = [wiring.norms[end]] if end in wiring.norms else wiring.data(node)
            operands = [before[end].skip] if end in before else operands
            if len(operands) != 1:
                return
            end = operands[0]

    def _stream(self, join: Join, before: list[Join]) -> int:
        """The stream of the latest sum that leads here without a matrix between, or a new one."""
        wiring = self.wiring
        for other in reversed(before):
            made = other.node.outputs[0]
            for index in (join.start, join.skip):
                if wiring.ancestors[index] >> made & 1 and not wiring.between(made, index):
                    return other.stream
        return 1 + max((j.stream for j in before), default=-1)

    def branches(self, stream: int) -> int:
        """The number of residual branches of a stream."""
        return sum(join.stream == stream for join in self.joins)

    @cached_property
    def ends(self) -> dict[str, End]:
        """The last projections of the branches, by the weight's path; the first sum counts."""
        found: dict[str, End] = {}
        for join in self.joins:
            last = dict(self._last(join))
            for path, (normed, scaled) in last.items():
                found.setdefault(path, End(join, normed, scaled, len(last)))
        return found

    def _last(self, join: Join) -> Iterator[tuple[str, tuple[bool, bool]]]:
        """The weights whose outputs reach a sum with no other weight between."""
        waiting = [(join.branch, False, False)]
        seen = set()
        while waiting:
            index, normed, scaled = waiting.pop()
            inside = self.wiring.ancestors[index] >> join.start & 1
            if index in seen or index == join.start or not inside:
                continue
            seen.add(index)
            if index in self.wiring.matrices:
                yield self.wiring.matrices[index], (normed, scaled)
                continue
            for i, by_norm, by_scale in self._behind(index):
                waiting.append((i, normed or by_norm, scaled or by_scale))

    def _behind(self, index: int) -> list[tuple[int, bool, bool]]:
        """What carries the size of a value: (operand, through a norm, through a scale)."""
        if index in self.wiring.norms:
            return [(self.wiring.norms[index], True, False)]
        if index in self.wiring.attentions:
            return [(self.wiring.attentions[index].value, False, False)]
        node = self.wiring.graph.producer(index)
        if node is None or node.name in ("softmax", "_softmax"):
            return []
        operands = self.wiring.data(node)
        if node.name == "mul" and len(operands) == 2:
            operands = [i for i in operands if not self._is_gate(i)] or operands
        scaled = node.name == "mul" and node.index in self.wiring.scales
        return [(i, False, scaled) for i in operands]

    def scales_of(self, join: Join) -> Iterator[int]:
        """Nodes that multiply the branch of a sum by a parameter, behind its last matrix."""
        index = join.branch
        while index not in self.wiring.matrices and index != join.start:
            node = self.wiring.graph.producer(index)
            operands = self.wiring.data(node) if node is not None else []
            if node is None or len(operands) != 1:
                return
            if node.index in self.wiring.scales:
                yield node.index
            index = operands[0]

    def _is_gate(self, index: int) -> bool:
        """Whether a factor lies in (0, 1) or (-1, 1)."""
        node = self.wiring.graph.producer(self.wiring.graph.origin(index))
        return node is not None and node.name in GATES
