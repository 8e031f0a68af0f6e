"""What a graph holds: its norms, attentions and weights, and what depends on what.

Ancestors are bit sets over the values that carry data, so "between" and "in common" are one
operation each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fanin.planning.reading import NORMS, Use, read
from fanin.signal.compound import Attention, Compound, attentions, compounds
from fanin.signal.graph import Graph, Node, Ref

GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "_softmax", "tanh"})
_LINEAR = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "_to_copy", "clone", "detach"})


@dataclass(frozen=True)
class Wiring:
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
    def matrix_bits(self) -> int:
        """The outputs of weight matrices as a bit set."""
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
                shaped = node.pointwise and node.name not in _LINEAR and node.name not in GATES
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

    @cached_property
    def scales(self) -> frozenset[int]:
        """Nodes that multiply data by a parameter which is no norm's."""
        uses = (u for found in self.uses.values() for u in found)
        return frozenset(u.node.index for u in uses if u.kind == "scale")

    def between(self, start: int, end: int) -> int:
        """How many weight matrices act between two values."""
        return (self.ancestors[end] & ~self.ancestors[start] & self.matrix_bits).bit_count()

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
