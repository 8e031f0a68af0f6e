"""How the signal runs between the weights: norms, attentions, residual sums, and what is in front.

Ancestors are bit sets over the values that carry data, so "between" and "in common" are one
operation each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from fanin.planning.reading import NORMS, Use, named, read
from fanin.signal.compound import Attention, Compound, attentions, compounds
from fanin.signal.fuse import Function, Fusion, fuse
from fanin.signal.graph import Graph, Node, Ref

_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "_softmax", "tanh"})
_LINEAR = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "_to_copy", "clone", "detach"})
MERGES = frozenset({"add", "sub", "cat", "stack"})
_LABELLED = 1 << 24  # elements of an output whose channels are followed through views

Part = Literal["query", "key", "value"]
_PARTS: tuple[Part, ...] = ("query", "key", "value")
Before = Literal[
    "input", "weight", "recurrent", "norm", "sum", "product", "attention", "table", "other"
]


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
class Flow:
    """A graph with what was found in it.

    Args:
        graph: the traced network.
    """

    graph: Graph

    @cached_property
    def norms(self) -> dict[int, int]:
        """For each value that a norm made, the value that the norm read."""
        found = {c.output: c.source for c in self._compounds if c.kind.endswith("_norm")}
        found |= {n.outputs[0]: n.inputs[0] for n in self.graph.nodes if n.name in NORMS}
        return found

    @cached_property
    def attentions(self) -> dict[int, Attention]:
        """Attentions by the value that they make."""
        return {a.output: a for a in attentions(self.graph, self._compounds)}

    @cached_property
    def _compounds(self) -> tuple[Compound, ...]:
        """Norms and softmaxes that are spelled out."""
        return compounds(self.graph)

    @cached_property
    def uses(self) -> dict[str, tuple[Use, ...]]:
        """What the operations do with each parameter."""
        return read(self.graph, self.norms)

    @cached_property
    def matrices(self) -> dict[int, str]:
        """Outputs of operations with a weight matrix, each with the weight's path."""
        kinds = ("matrix", "recurrent")
        return {u.output: p for p, uses in self.uses.items() for u in uses if u.kind in kinds}

    @cached_property
    def _matrix_bits(self) -> int:
        return sum(1 << i for i in self.matrices)

    @cached_property
    def ancestors(self) -> list[int]:
        """For each value the bit set of the values with data that it depends on, and itself."""
        bits = [1 << v.index if v.varying else 0 for v in self.graph.values]
        for node in self.graph.nodes:
            behind = 0
            for i in node.inputs:
                behind |= bits[i]
            for i in node.outputs:
                bits[i] |= behind if self.graph.values[i].varying else 0
        return bits

    @cached_property
    def weighted_after(self) -> list[bool]:
        """For each value whether a weight matrix or an attention reads what follows from it."""
        graph, after = self.graph, [False] * len(self.graph.values)
        stops = {*self.matrices, *self.attentions}
        for node in reversed(graph.nodes):
            if any(i in stops or after[i] for i in node.outputs):
                for i in node.inputs:
                    after[i] = True
        return after

    def is_output(self, index: int) -> bool:
        """Whether a value becomes an output as it is: summed, pooled or normalised, no more."""
        waiting, seen = [index], {index}
        while waiting:
            for node in self.graph.consumers(waiting.pop()):
                if not any(self.graph.values[i].floating for i in node.outputs):
                    continue  # a comparison, which validates
                shaped = node.pointwise and node.name not in _LINEAR and node.name not in _GATES
                product = node.name in ("mul", "matmul", "bmm") and len(self.data(node)) > 1
                if shaped or product:
                    return False
                fresh = [i for i in node.outputs if i not in seen]
                seen.update(fresh)
                waiting += fresh
        return True

    def sets_step(self, index: int) -> bool:
        """Whether softplus of a value, times something, goes into an exponential: a step size."""
        node = self._next(index)
        while node is not None and (node.view or node.name in ("add", "clamp")):
            node = self._next(node.outputs[0])
        if node is None or node.name != "softplus":
            return False
        waiting = list(node.outputs)
        for _ in range(8):
            readers = [n for i in waiting for n in self.graph.consumers(i)]
            if any(n.name == "exp" for n in readers):
                return True
            kept = [n for n in readers if n.view or n.name in ("mul", "einsum", "select", "clamp")]
            waiting = [i for n in kept for i in n.outputs]
        return False

    def _next(self, index: int) -> Node | None:
        """The only operation that reads a value."""
        readers = self.graph.consumers(index)
        return readers[0] if len(readers) == 1 else None

    def data(self, node: Node) -> list[int]:
        """The distinct operands of a node that carry data."""
        return [i for i in dict.fromkeys(node.inputs) if self.graph.values[i].varying]

    # --- residual sums -----------------------------------------------------------------------

    @cached_property
    def joins(self) -> tuple[Join, ...]:
        """The residual sums in order of execution."""
        found: dict[int, Join] = {}
        for node in self.graph.nodes:
            if node.name == "add" and (join := self._join(node, found)) is not None:
                found[node.outputs[0]] = join
        return tuple(found.values())

    def _join(self, node: Node, before: dict[int, Join]) -> Join | None:
        """The sum as a residual one: a straight way beside one with more weights in it."""
        operands = self.data(node)
        if len(operands) != 2 or not all(self.graph.values[i].floating for i in operands):
            return None
        found = []
        for skip, branch in (operands, operands[::-1]):
            for start, count in self._straight(skip, before):
                if self.ancestors[branch] >> start & 1:
                    if self._between(start, branch) > count:
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
        bits = self.ancestors[join.branch] & ~self.ancestors[join.start] & self._matrix_bits
        elsewhere = 0
        for stream, first in self._first_joins.items():
            elsewhere |= self.ancestors[first.start] if stream != join.stream else 0
        return [
            path
            for index, path in self.matrices.items()
            if bits >> index & 1
            and (self.ancestors[index] >> join.start & 1 or not elsewhere >> index & 1)
        ]

    @cached_property
    def _first_joins(self) -> dict[int, Join]:
        """The first sum of each stream."""
        found: dict[int, Join] = {}
        for join in self.joins:
            found.setdefault(join.stream, join)
        return found

    def _between(self, start: int, end: int) -> int:
        """How many weight matrices act between two values."""
        return (self.ancestors[end] & ~self.ancestors[start] & self._matrix_bits).bit_count()

    def _straight(self, end: int, before: dict[int, Join]) -> Iterator[tuple[int, int]]:
        """The values on the way back without forks, gates or learned scales, with the matrices.

        Earlier residual sums are passed on their skip; at most one matrix is.
        """
        count = 0
        while True:
            node = self.graph.producer(end)
            if node is not None and node.name in _GATES:
                return
            yield end, count
            count += end in self.matrices
            if node is None or count > 1 or node.index in self._scales:
                return
            operands = [self.norms[end]] if end in self.norms else self.data(node)
            operands = [before[end].skip] if end in before else operands
            if len(operands) != 1:
                return
            end = operands[0]

    def _stream(self, join: Join, before: list[Join]) -> int:
        """The stream of the latest sum that leads here without a matrix between, or a new one."""
        for other in reversed(before):
            made = other.node.outputs[0]
            for index in (join.start, join.skip):
                if self.ancestors[index] >> made & 1 and not self._between(made, index):
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
            inside = self.ancestors[index] >> join.start & 1
            if index in seen or index == join.start or not inside:
                continue
            seen.add(index)
            if index in self.matrices:
                yield self.matrices[index], (normed, scaled)
                continue
            for i, by_norm, by_scale in self._behind(index):
                waiting.append((i, normed or by_norm, scaled or by_scale))

    def _behind(self, index: int) -> list[tuple[int, bool, bool]]:
        """What carries the size of a value: (operand, through a norm, through a scale)."""
        if index in self.norms:
            return [(self.norms[index], True, False)]
        if index in self.attentions:
            return [(self.attentions[index].value, False, False)]
        node = self.graph.producer(index)
        if node is None or node.name in ("softmax", "_softmax"):
            return []
        operands = self.data(node)
        if node.name == "mul" and len(operands) == 2:
            operands = [i for i in operands if not self._is_gate(i)] or operands
        scaled = node.name == "mul" and node.index in self._scales
        return [(i, False, scaled) for i in operands]

    def scales_of(self, join: Join) -> Iterator[int]:
        """Nodes that multiply the branch of a sum by a parameter, behind its last matrix."""
        index = join.branch
        while index not in self.matrices and index != join.start:
            node = self.graph.producer(index)
            operands = self.data(node) if node is not None else []
            if node is None or len(operands) != 1:
                return
            if node.index in self._scales:
                yield node.index
            index = operands[0]

    def _is_gate(self, index: int) -> bool:
        """Whether a factor lies in (0, 1) or (-1, 1)."""
        node = self.graph.producer(self.graph.origin(index))
        return node is not None and node.name in _GATES

    @cached_property
    def _scales(self) -> frozenset[int]:
        """Nodes that multiply data by a parameter which is no norm's."""
        uses = (u for found in self.uses.values() for u in found)
        return frozenset(u.node.index for u in uses if u.kind == "scale")

    # --- in front of a weight ----------------------------------------------------------------

    @cached_property
    def _fusion(self) -> Fusion:
        return fuse(self.graph)

    @cached_property
    def _sums(self) -> frozenset[int]:
        return frozenset(join.node.outputs[0] for join in self.joins)

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

    # --- attention ---------------------------------------------------------------------------

    @cached_property
    def inside_attention(self) -> frozenset[int]:
        """Nodes of attentions whose results nothing else reads."""
        inner: set[int] = set()
        for attention in self.attentions.values():
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
        for attention in self.attentions.values():
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
        while index not in self.matrices:
            node = self.graph.producer(index)
            operands = self.data(node) if node is not None else []
            if node is None or not operands:
                return
            read = max(operands, key=lambda i: self.graph.values[i].size)
            if node.view or self.graph.values[read].shape != self.graph.values[index].shape:
                chain.append((node, node.outputs.index(index)))
            index = read
            index = self.norms.get(index, index)
        first, last = self._channels(self.graph.values[index].shape, chain)
        offset = self._first_row(index)
        yield self.matrices[index], offset + first, offset + last

    def _first_row(self, index: int) -> int:
        """Where the rows begin that an operation reads, if it reads a slice of its weight."""
        use = next(u for u in self.uses[self.matrices[index]] if u.output == index)
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

    def factor_after(self, index: int) -> float:
        """The constant that a value is multiplied by before anything else, or 1."""
        readers = self.graph.consumers(index)
        if len(readers) != 1 or readers[0].name not in ("mul", "div"):
            return 1.0
        other = readers[0]["other"]
        if isinstance(other, Ref):
            data = self.graph.value(other).data
            other = float(data) if data is not None and data.size == 1 else 1.0
        factor = abs(float(other)) or 1.0
        return factor if readers[0].name == "mul" else 1.0 / factor

    def joined_to(self, index: int, names: Sequence[str]) -> list[int]:
        """The other operands of the operations of these names that read a value."""
        readers = [n for n in self.graph.consumers(index) if n.name in names]
        return [i for n in readers for i in n.inputs if i != index]

    def biases_logits(self, index: int) -> bool:
        """Whether a value is added to the logits of an attention, views in between."""
        inside = {i for a in self.attentions.values() for i in a.nodes}
        waiting = [index]
        while waiting:
            for node in self.graph.consumers(waiting.pop()):
                if node.index in inside:
                    return True
                if node.view or node.name in ("add", "index", "mul", "where"):
                    fresh = [i for i in node.outputs if not self.graph.values[i].varying]
                    waiting += fresh
        return False
