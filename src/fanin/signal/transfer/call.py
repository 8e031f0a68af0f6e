"""What a transfer rule is given, and the registry of the rules.

A forward rule takes a `Call` and returns the state of each output. A backward rule takes the call
and the gradient table of each output (None where there is none) and returns (value, table) pairs,
one for each input that gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.signal.graph import Graph, Node, Ref, Value
from fanin.signal.nodes import Once
from fanin.signal.state import State, integrate
from fanin.signal.table import Table, align, paired, product
from fanin.signal.table import total as together

if TYPE_CHECKING:
    from fanin.signal.state import Function

Gradients = Iterable[tuple[int, "Table | Term"]]
Forward = Callable[["Call"], "State | Sequence[State]"]
Backward = Callable[["Call", Sequence["Table | None"]], Gradients]

FORWARD: dict[str, Forward] = {}
BACKWARD: dict[str, Backward] = {}


@dataclass(frozen=True, eq=False)
class Term:
    """A part of the gradient in a value: an arriving gradient times a slope.

    What reaches a tensor along several elementwise paths from one place is one gradient times the
    sum of the paths' slopes; what arrives from different places is uncorrelated.

    Args:
        root: names the arriving gradient; parts with one root are added slope by slope.
        table: the arriving gradient.
        slope: the factor, a function of a Gaussian z; None: 1.
        latent, source: z's table and token.
        noise: the standard deviation of the factor where z is known; None: 0.
        shared: the correlations of what the factor depends on besides z.
    """

    root: Hashable
    table: Table
    slope: Function | None = None
    latent: Table | None = None
    source: Hashable = None
    noise: Function | None = None
    shared: Table | None = None

    def resolved(self) -> Table:
        """The table of the part."""
        factor = self.factor()
        return self.table if factor is None else product(self.table, factor)

    def factor(self) -> Table | None:
        """The table of the slope; None: 1.

        *Definition.* E[s_i s_j] = E[m(z_i) m(z_j)] + r_ij E[n(z_i) n(z_j)], m the mean of the slope
        where z is known, n its standard deviation, r the correlation of what else it depends on.
        """
        if self.slope is None or self.latent is None:
            return None
        factor = integrate(self.slope, self.latent)[0]
        if self.noise is None or self.shared is None:
            return factor
        rest = product(integrate(self.noise, self.latent)[0], self.shared)
        factor, rest = align(factor, rest)
        return Table(factor.dims, factor.mean, factor.pairs + rest.pairs)

    def times(self, function: Function) -> Term:
        """The part times a further function of the same z."""
        slope, noise = self.slope, self.noise
        assert slope is not None
        return replace(
            self,
            slope=Once(lambda z: slope(z) * function(z), [slope, function]),
            noise=None if noise is None else lambda z: noise(z) * function(z),
        )


def gathered(terms: Sequence[Term]) -> list[Term]:
    """Parts of one gradient with equal roots and equal Gaussians as one."""
    found: dict[Hashable, list[Term]] = {}
    for term in terms:
        found.setdefault(term.root, []).append(term)
    made = []
    for group in found.values():
        sources = {t.source for t in group if t.slope is not None}
        if len(group) == 1 or len(sources) > 1:
            made += group
            continue
        lead = next((t for t in group if t.slope is not None), group[0])
        if lead.slope is None:
            made.append(replace(lead, table=lead.table * len(group)))
        else:
            made.append(replace(lead, slope=_added([t.slope for t in group])))
    return made


def _added(slopes: Sequence[Function | None]) -> Function:
    """The sum of slopes, of which None is 1."""

    def slope(z: np.ndarray) -> np.ndarray:
        return np.asarray(sum(np.ones_like(z) if s is None else s(z) for s in slopes))

    return Once(slope, slopes)


def total(terms: Sequence[Term]) -> Table:
    """The whole gradient in a value."""
    return together([t.resolved() for t in gathered(terms)])


def forward(*names: str) -> Callable[[Forward], Forward]:
    """Register the forward rule of operations by name.

    "linear", or "add.Tensor" with the overload, or "abs.complex" for complex numbers alone.
    """

    def register(rule: Forward) -> Forward:
        FORWARD.update(dict.fromkeys(names, rule))
        return rule

    return register


def backward(*names: str) -> Callable[[Backward], Backward]:
    """Register the backward rule of operations by name."""

    def register(rule: Backward) -> Backward:
        BACKWARD.update(dict.fromkeys(names, rule))
        return rule

    return register


@dataclass(frozen=True)
class Call:
    """One node with the states of what it reads (and, backward, of what it makes).

    Args:
        node: the operation.
        graph: where it stands.
        states: what is known of each value so far.
    """

    node: Node
    graph: Graph
    states: Mapping[int, State]

    def __getitem__(self, argument: str) -> Any:
        """An argument: the state of a tensor, a tuple of states, or the constant itself."""
        return self._resolved(self.node.get(argument))

    def _resolved(self, argument: Any) -> Any:
        """References replaced by states, however deep."""
        if isinstance(argument, Ref):
            return self.states[argument.value]
        if isinstance(argument, tuple):
            return tuple(self._resolved(a) for a in argument)
        return argument

    def index(self, argument: str) -> int:
        """The value that an argument refers to."""
        reference = self.node[argument]
        assert isinstance(reference, Ref), f"{self.node.op}({argument}) is no tensor"
        return reference.value

    @property
    def operands(self) -> list[State]:
        """States of the tensors that the node reads, in order."""
        return [self.states[i] for i in self.node.inputs]

    @property
    def first(self) -> State:
        """State of the first tensor that the node reads."""
        return self.states[self.node.inputs[0]]

    def output(self, position: int = 0) -> Value:
        """One of the values that the node makes."""
        return self.graph.values[self.node.outputs[position]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.output().shape

    def token(self, position: int = 0) -> Hashable:
        """The name of an output's content."""
        return self.node.outputs[position]

    @property
    def roots(self) -> frozenset[Hashable]:
        """What the operands depend on without fresh weights in between."""
        return frozenset().union(*(s.roots for s in self.operands))

    def generator(self) -> np.random.Generator:
        """The random numbers of this node: the same in every run."""
        return np.random.default_rng([0xFA, self.node.index])


def dims_of(dim: Any, ndim: int) -> tuple[int, ...]:
    """A `dim` argument as a tuple of non-negative dimensions; None or () is all of them."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    dims = dim if isinstance(dim, tuple) else (dim,)
    return tuple(sorted(d % ndim for d in dims)) if ndim else ()


def reduced_to(table: Table, shape: Sequence[int]) -> Table:
    """The gradient of a broadcast: sums over what was repeated."""
    extra = len(table.dims) - len(shape)
    if extra:
        table = table.sum(tuple(range(extra)))
    wide = [d for d, n in enumerate(shape) if n == 1 and table.shape[d] > 1]
    return table.sum(wide, keepdim=True) if wide else table


def amplitude(like: Table, level: np.ndarray) -> Table:
    """The table of a known factor, given as a profile over the factors of another table."""
    one, other = paired(level, like)
    k = len(like.factors)
    whole = np.broadcast_shapes(one.shape, other.shape)
    return Table(like.dims, level, np.broadcast_to(one * other, like.pairs.shape[:k] + whole[k:]))


def broadcast(state: State, shape: Sequence[int]) -> State:
    """The state expanded to the shape of the result."""
    if state.shape == tuple(shape):
        return state
    return replace(
        state.through(lambda t: t.expand(shape), ("expand", tuple(shape))), average=state.average
    )
