"""What each parameter does in the network: the facts that rules and recipes choose by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from fanin.planning.budget import Slopes
from fanin.planning.fans import Fans
from fanin.planning.flow import Flow, Source
from fanin.planning.heads import Projection
from fanin.planning.reading import Kind, Use
from fanin.planning.streams import End, Join
from fanin.signal.graph import Graph
from fanin.signal.state import State

Role = Literal[
    "input",
    "hidden",
    "query",
    "key",
    "value",
    "query key value",
    "branch end",
    "head",
    "embedding",
    "position",
    "logit bias",
    "recurrent",
    "bias",
    "norm scale",
    "norm shift",
    "gate",
    "special",
    "unused",
    "buffer",
]
MATRICES = ("input", "hidden", "query", "key", "value", "query key value", "branch end", "head")
_LOOKED_UP = ("cat", "index", "index_select", "gather")
_ORDER: tuple[Kind, ...] = (
    *("matrix", "recurrent", "embedding", "norm scale", "norm shift", "bias"),
    *("scale", "shift", "other"),
)


@dataclass(frozen=True)
class Weight:
    """A parameter with what is known of it.

    Args:
        path: first name.
        names: every name.
        shape: the whole shape.
        role: what it does.
        use: the operation that decides; None where no operation reads it.
        source: what a matrix reads.
        tied: whether a table is also the head.
        projections: of an attention: which rows are queries, keys, values.
        end: of a residual branch, if this is its last projection.
        join: the residual sum of the branch that a matrix stands in.
        block: number of that sum in its stream, counted from 0.
        inside: number of matrices in that branch.
        branches: number of branches in that stream; 0 outside of streams.
        scaled_branch: whether a gate multiplies a residual branch.
    """

    path: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: Role
    use: Use | None = None
    source: Source | None = None
    tied: bool = False
    projections: tuple[Projection, ...] = ()
    end: End | None = None
    join: Join | None = None
    block: int = 0
    inside: int = 0
    branches: int = 0
    scaled_branch: bool = False

    @property
    def fans(self) -> Fans:
        """The fans of a matrix, an embedding or a recurrent weight."""
        assert self.use is not None
        assert self.use.fans is not None
        return self.use.fans

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies what it reads, other than a look-up."""
        return self.role in MATRICES


_AVERAGES = frozenset(
    f"{kind}avg_pool{n}d" for kind in ("", "adaptive_", "_adaptive_") for n in (1, 2, 3)
) | {"mean"}


@dataclass(frozen=True)
class Reads:
    """What a weight reads, as far as it is known when the weight is decided.

    Args:
        second_moment: E[x^2].
        mean: E[x].
        how: how that was obtained.
    """

    second_moment: float
    mean: float
    how: str

    @property
    def variance(self) -> float:
        """E[x^2] - E[x]^2."""
        return self.second_moment - self.mean**2


@dataclass(frozen=True)
class Scene:
    """The network that a method chooses for: its flow, its weights, and the states so far.

    Args:
        flow: what was found in the graph.
        constants: tensors that hold one number in memory, and that number.
        states: what is known of each value; filled as the sweep goes on.
        elsewhere: tensors that the method that prepares does not draw; filled before it does.
    """

    flow: Flow
    constants: Mapping[str, float] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)

    @property
    def graph(self) -> Graph:
        """The traced network."""
        return self.flow.graph

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Every parameter and parametrized weight by its first name, in the model's order."""
        found: dict[str, Weight] = {}
        for parameter in self.graph.parameters:
            for computed in self.graph.parametrizations:
                if parameter.name in computed.originals and computed.name not in found:
                    shape = self.graph.values[computed.values[0]].shape
                    found[computed.name] = self._weight(computed.name, (computed.name,), shape)
            if parameter.kind == "parameter":
                found[parameter.name] = self._weight(
                    parameter.name, parameter.names, parameter.shape
                )
        return found

    @cached_property
    def originals(self) -> dict[str, str]:
        """Parameters and buffers from which a parametrization computes a weight, with that one."""
        return {o: p.name for p in self.graph.parametrizations for o in p.originals}

    @cached_property
    def biases(self) -> dict[str, str]:
        """For each weight its bias."""
        uses = ((path, u) for path, found in self.flow.uses.items() for u in found)
        return {u.weight: path for path, u in uses if u.kind == "bias" and u.weight is not None}

    @cached_property
    def averages(self) -> frozenset[int]:
        """Averages over positions that a weight reads."""
        read = (w.use.data for w in self.weights.values() if w.is_matrix and w.use is not None)
        origins = {self.graph.origin(i).index for i in read if i is not None}
        nodes = ((i, self.graph.producer(i)) for i in origins)
        return frozenset(i for i, node in nodes if node is not None and node.name in _AVERAGES)

    @cached_property
    def slopes(self) -> Slopes:
        """The slopes of the correlation map through the graph."""
        return Slopes(self.flow)

    @cached_property
    def by_stretch(self) -> dict[str, list[str]]:
        """For each weight those that read a plain function of its output."""
        found: dict[str, list[str]] = {}
        for weight in self.weights.values():
            source = weight.source
            if source is not None and source.before == "weight" and source.weight is not None:
                found.setdefault(source.weight, []).append(weight.path)
        return found

    def reads(self, weight: Weight) -> Reads:
        """What a matrix reads; an attention's average counts as one of its values."""
        assert weight.use is not None
        index = weight.use.data
        assert index is not None
        if weight.source is not None and weight.source.before == "attention":
            index = self._averaged(index)
        state = self.states[index]
        return Reads(state.second_moment, state.mean, state.how)

    def moment(self, index: int) -> float | None:
        """E[x^2] of a value; None if it is not known yet."""
        state = self.states.get(index)
        return state.second_moment if state is not None else None

    def _averaged(self, index: int) -> int:
        """The value whose average over positions an attention gives."""
        while index not in self.flow.attentions:
            node = self.graph.producer(index)
            operands = self.flow.data(node) if node is not None else []
            if not operands:
                return index
            index = operands[0]
        return self.flow.attentions[index].value

    # --- roles ---------------------------------------------------------------------------------

    def _weight(self, path: str, names: tuple[str, ...], shape: tuple[int, ...]) -> Weight:
        """The facts of one parameter."""
        uses = self.flow.uses.get(path, ())
        if not uses:
            return Weight(path, names, shape, "unused")
        use = min(uses, key=lambda u: _ORDER.index(u.kind))
        kinds = {u.kind for u in uses}
        if use.kind in ("matrix", "bias") and self.flow.sets_step(self._written(use)):
            return Weight(path, names, shape, "special", use)
        if use.kind == "matrix":
            return self._matrix(path, names, shape, use, "embedding" in kinds)
        role: Role = "special"
        if use.kind == "embedding":
            role = self._table(use)
        elif use.kind == "shift" or (use.kind == "other" and use.node.name in _LOOKED_UP):
            logits = self._in_attention(use) or self.flow.heads.biases_logits(use.output)
            role = "logit bias" if logits else "position"
        elif use.kind in ("recurrent", "bias", "norm scale", "norm shift"):
            role = use.kind
        elif use.kind == "scale":
            role = "gate"
        scaled = role == "gate" and use.node.index in self._branch_scales
        return Weight(path, names, shape, role, use, scaled_branch=scaled)

    def _matrix(
        self, path: str, names: tuple[str, ...], shape: tuple[int, ...], use: Use, tied: bool
    ) -> Weight:
        """The facts of a weight matrix."""
        flow = self.flow
        assert use.data is not None
        source = flow.source(use.data)
        projections = flow.heads.projections.get(path, ())
        end = flow.streams.ends.get(path)
        outside = (end.join if end is not None else None, 0, 0)  # what ends a branch is in it
        join, block, inside = self._places.get(path, outside)
        parts = {p.part for p in projections}
        role: Role = "hidden"
        if end is not None:
            role = "branch end"
        elif not flow.weighted_after[use.output] and flow.is_output(use.output):
            role = "head"
        elif parts:
            role = "query key value" if len(parts) > 1 else projections[0].part
        elif source.before == "input" and source.function is None:
            role = "input"
        branches = flow.streams.branches(join.stream) if join is not None else 0
        return Weight(
            path,
            names,
            shape,
            role,
            use,
            source,
            tied,
            projections,
            end,
            join,
            block,
            inside,
            branches,
        )

    def _table(self, use: Use) -> Role:
        """What a table of rows is looked up for."""
        assert use.data is not None
        if self.graph.values[use.data].varying:
            return "embedding"
        return "logit bias" if self.flow.heads.biases_logits(use.output) else "position"

    def _written(self, use: Use) -> int:
        """The value that a weight or bias writes."""
        if use.weight is None or use.weight not in self.flow.uses:
            return use.output
        return use.output if use.data is not None else self.flow.uses[use.weight][0].output

    def _in_attention(self, use: Use) -> bool:
        return any(use.node.index in a.nodes for a in self.flow.attentions.values())

    @cached_property
    def _places(self) -> dict[str, tuple[Join, int, int]]:
        """For each matrix in a branch: the sum, its number in the stream, the branch's matrices."""
        found: dict[str, tuple[Join, int, int]] = {}
        counts: dict[int, int] = {}
        for join in self.flow.streams.joins:
            block = counts.get(join.stream, 0)
            counts[join.stream] = block + 1
            members = dict.fromkeys(self.flow.streams.members(join))
            for path in members:
                found.setdefault(path, (join, block, len(members)))
        return found

    @cached_property
    def _branch_scales(self) -> frozenset[int]:
        """Multiplications by a parameter on the way from a branch's end to its sum."""
        return frozenset(
            i for join in self.flow.streams.joins for i in self.flow.streams.scales_of(join)
        )
