"""The two sweeps: states forward through a graph, gradient second moments back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr

from fanin.errors import ArgumentError, DivergentError, UnknownNameError
from fanin.signal.deviation import shared
from fanin.signal.fixed import ordered, profiled
from fanin.signal.graph import Graph, Node, Parameter, Value
from fanin.signal.scan import carried, scans
from fanin.signal.spec import Spec
from fanin.signal.state import ASSUMED, CLOSED, Given, State, Statement, law
from fanin.signal.table import Table
from fanin.signal.transfer import BACKWARD, FORWARD, Call
from fanin.signal.transfer.call import Backward, Forward, Term, gathered, total
from fanin.signal.transfer.linear import along_own
from fanin.signal.transfer.pointwise import pointwise
from fanin.signal.transfer.sampled import sampled, sampled_back
from fanin.signal.transfer.shape import passed_on
from fanin.signal.transfer.slopes import pointwise_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fanin.signal.state import Function

    Array = NDArray[Any]

# Known content (positions, masks, given inputs) is computed on, up to this many elements.
_KNOWN = 1 << 22
# What they make depends on the shape of what they read, not on its content.
_FILLED = frozenset(["new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"])


@dataclass(frozen=True)
class Signal:
    """What was predicted for every value of a graph.

    Args:
        graph: the network.
        states: the state of each value, by its index.
        gradients: the table of the loss's gradient in each value that has one, by its index;
            empty before `backward`.
    """

    graph: Graph
    states: Mapping[int, State] = field(repr=False)
    gradients: Mapping[int, Table] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str | Value | int) -> State:
        """The state of a value, by its index or by a parameter's name."""
        return self.states[self._index(name)]

    def gradient(self, name: str | Value | int) -> float:
        """E[g^2] of a value, by its index or by a parameter's name; 0 if none arrives."""
        found = self.gradients.get(self._index(name))
        return found.second_moment if found is not None else 0.0

    def weight_gradients(self) -> dict[str, float]:
        """E[g^2] of every parameter that an operation reads, by its first name."""
        read = [p for p in self.graph.parameters if p.kind == "parameter" and p.value is not None]
        return {p.name: self.gradient(p.name) for p in read}

    def doubts(self) -> list[tuple[Node, str]]:
        """The operations whose numbers are sampled or assumed, and how."""
        found = []
        for node in self.graph.nodes:
            for index in node.outputs:
                how = self.states[index].how
                if how.startswith(("sampled", ASSUMED)):
                    found.append((node, how))
                    break
        return found

    def _index(self, name: str | Value | int) -> int:
        """The index of a value."""
        if isinstance(name, Value):
            return name.index
        if isinstance(name, int):
            return name
        parameter = self.graph.parameter(name)
        if parameter is None or parameter.value is None:
            raise UnknownNameError(
                "Signal[name]", expected="a parameter that an operation reads", got=repr(name)
            )
        return parameter.value


def propagate(
    graph: Graph,
    parameters: Mapping[str, Statement],
    inputs: Mapping[str, Array | Spec] | None = None,
) -> Signal:
    """Predict the state of every value of a graph from the distributions of its parameters.

    *Definition*: for each value the second moments E[x_i x_j] by the axes in which i and j differ,
    over the data and over the draw of the weights; the gradient is that of one draw of width to
    infinity, corrected for what shapes, padding and masks make exact.

    Args:
        graph: the network, as a tracer recorded it.
        parameters: for every parameter and buffer that is read, by any of its names, a `Given` or
            an array of actual values. Buffers whose content the graph holds may be left out.
        inputs: arrays (measured) or specs by input name; those left out are what the graph holds,
            else N(0, 1), or integers uniform over the rows that they pick.

    Returns:
        The prediction, without gradients; `backward` adds them.

    Raises:
        ArgumentError: a parameter without a statement, or an array of another shape.
        NotCoveredError: an operation without a rule that cannot be sampled.

    Example:
        >>> from fanin.signal.graph import Graph, Node, Parameter, Ref, Value
        >>> values = (Value(0, (8, 4), "float32", "input", name="x", varying=True),
        ...           Value(1, (2, 4), "float32", "parameter", name="weight"),
        ...           Value(2, (8, 2), "float32", "produced", producer=0, varying=True))
        >>> arguments = {"input": Ref(0), "weight": Ref(1), "bias": None}
        >>> node = Node(0, "aten.linear.default", arguments, (2,))
        >>> weight = Parameter("weight", ("weight",), (2, 4), "float32", value=1)
        >>> graph = Graph((node,), values, (weight,), inputs=(0,), outputs=(2,))
        >>> propagate(graph, {"weight": Given(variance=0.5)})[2].second_moment
        2.0
    """
    given = inputs or {}
    states: dict[int, State] = {}
    for value in graph.values:
        if value.kind != "produced":
            states[value.index] = leaf(graph, value, parameters, given)
    for node in graph.nodes:
        for index, state in zip(node.outputs, step(graph, node, states), strict=True):
            states[index] = state
    return Signal(graph, states)


# --- leaves --------------------------------------------------------------------------------------


def leaf(
    graph: Graph,
    value: Value,
    parameters: Mapping[str, Statement],
    inputs: Mapping[str, Array | Spec],
) -> State:
    """The state of an input, parameter, buffer or constant."""
    token, roots = value.index, frozenset({value.index})
    if value.kind in ("parameter", "buffer"):
        parameter = graph.parameter(value)
        if parameter is not None:
            statement = next((parameters[n] for n in parameter.names if n in parameters), None)
            if statement is not None:
                return _stated(graph, parameter, value, statement)
    if value.kind == "input" and isinstance(inputs.get(value.name), np.ndarray):
        return _known(np.asarray(inputs[value.name]), value)
    if value.data is not None and not isinstance(inputs.get(value.name), Spec):
        return _known(value.data, value)
    if value.kind in ("parameter", "buffer"):
        raise ArgumentError(
            "propagate(parameters)",
            expected="a statement for every parameter that an operation reads",
            got=f"none for {value.name!r}",
            fix=f"add parameters[{value.name!r}] = Given(mean, variance) or its array",
        )
    if value.floating:
        table = Table.iid(value.shape, 0.0, 1.0)
        size = 2 / max(prod(value.shape[1:]), 1) if len(value.shape) > 2 else 0.0
        return State(table, f"{ASSUMED}: N(0, 1)", token, gaussian=True, roots=roots, size=size)
    spec = inputs.get(value.name)
    high = spec.high if isinstance(spec, Spec) else 2
    mean, second = (high - 1) / 2, (high - 1) * (2 * high - 1) / 6
    table = Table.iid(value.shape, mean, second)
    return State(table, f"{ASSUMED}: uniform", token, Table.iid(value.shape), _uniform(high),
                 ("normal", token), nonnegative=True, roots=roots)  # fmt: skip


def _uniform(high: int) -> Function:
    """Whole numbers from 0 below `high` with equal chance, as a function of a Gaussian."""
    return lambda z: np.minimum(np.floor(ndtr(z) * high), high - 1)


def _known(data: Array, value: Value, how: str = CLOSED) -> State:
    """The state of known content: measured, and kept for operations that need it."""
    real = np.asarray(data)
    if not real.size:
        return State(Table.iid(value.shape, 0.0, 0.0), how, value.index, data=real)
    seen = np.abs(real) < 1e30  # the least number of a dtype hides an entry, if not all have it
    partly = real.dtype.kind == "f" and (seen.any() or not np.isfinite(real).all())
    finite = np.where(seen, real, 0.0) if partly else real
    finite = np.abs(finite) if finite.dtype.kind == "c" else finite.astype(float)
    table = profiled(finite) if value.depends else Table.measured(finite)
    signed = real.dtype.kind != "c"
    low, high = signed and bool(real.min() >= 0), signed and bool(real.max() <= 0)
    return State(table, how, value.index, nonnegative=low, nonpositive=high, data=real)


def _stated(graph: Graph, parameter: Parameter, value: Value, statement: Statement) -> State:
    """The state of a parameter: its stated distribution, or its actual values measured."""
    if isinstance(statement, Given):
        table = statement.table(value.shape)
        gaussian = statement.structure != "constant"
        return State(table, CLOSED, value.index, gaussian=gaussian, roots=frozenset({value.index}))
    array = np.asarray(statement)
    array = array if array.dtype.kind == "c" else array.astype(np.float64)
    if array.shape != value.shape:
        raise ArgumentError(
            f"propagate(parameters[{parameter.name!r}])",
            expected=f"an array of shape {value.shape}",
            got=f"shape {array.shape}",
        )
    roots = frozenset({value.index})
    data = np.asarray(statement)
    if array.dtype.kind == "c":  # E[z_i conj(z_j)]
        real, imaginary = Table.measured(array.real), Table.measured(array.imag)
        table = Table(real.dims, real.mean, real.pairs + imaginary.pairs)
        return State(table, CLOSED, value.index, roots=roots, data=data)
    if parameter.kind == "parameter" and _elementwise(graph, value):
        array, data = ordered(array), ordered(data)
        table = profiled(array)
    else:
        table = Table.measured(array)
    low, high = bool((array >= 0).all()), bool((array <= 0).all())
    return State(table, CLOSED, value.index, nonnegative=low, nonpositive=high,
                 roots=roots, data=data)  # fmt: skip


def _elementwise(graph: Graph, value: Value) -> bool:
    """Whether a parameter, or a view of it, is read by elementwise operations alone."""
    readers = graph.consumers(value)
    return bool(readers) and all(
        n.pointwise or (n.view and all(_elementwise(graph, graph.values[i]) for i in n.outputs))
        for n in readers
    )


# --- forward -------------------------------------------------------------------------------------


def step(graph: Graph, node: Node, states: Mapping[int, State]) -> list[State]:
    """The states of what a node makes, from those of what it reads: one step of the sweep."""
    call = Call(node, graph, states)
    if _empty(call):
        if _kept(call):
            return [call.first]
        return [State(Table.iid(v.shape, 0.0, 0.0), CLOSED, v.index) for v in graph.results(node)]
    known = _computed(call)
    if known is not None:
        return known
    rule = forward_rule(call)
    found = rule(call) if rule is not None else sampled(call)
    made = [found] if isinstance(found, State) else list(found)
    made += [
        State(Table.constant(call.output(i).shape, 0.0), CLOSED, call.token(i))
        for i in range(len(made), len(node.outputs))
    ]
    return made


def _empty(call: Call) -> bool:
    """Whether an operand or all results have no elements: an expert without tokens."""
    if all(v.size == 0 for v in call.graph.results(call.node)):
        return True
    operands = call.graph.operands(call.node)
    return any(v.size == 0 for v in operands) and call.node.name not in ("cat", "concat")


def _kept(call: Call) -> bool:
    """Whether nothing was put into a tensor (index_add, scatter), which so stays as it is."""
    if not call.node.inputs or len(call.node.outputs) != 1:
        return False
    first = call.graph.operands(call.node)[0]
    return first.size > 0 and first.shape == call.shape


def forward_rule(call: Call) -> Forward | None:
    """The forward rule of an operation; None where it is sampled."""
    rule = next((FORWARD[name] for name in _names(call) if name in FORWARD), None)
    return rule or (pointwise if call.node.pointwise else None)


def backward_rule(call: Call) -> Backward | None:
    """The backward rule of an operation; None where it is elementwise or sampled."""
    return next((BACKWARD[name] for name in _names(call) if name in BACKWARD), None)


def _names(call: Call) -> tuple[str, ...]:
    """What the rules of an operation may stand under, the most specific first."""
    node, operands = call.node, call.graph.operands(call.node)
    plain = (node.op.split(".", 1)[1], node.name)
    return (f"{node.name}.complex", *plain) if operands and operands[0].complex else plain


def _computed(call: Call) -> list[State] | None:
    """Outputs computed from known content, without rules; None where something is not known."""
    values = [call.output(i) for i in range(len(call.node.outputs))]
    if all(v.data is not None for v in values):
        return [_known(v.data, v) for v in values if v.data is not None]
    states = call.operands
    small = all(v.size <= _KNOWN for v in values)
    if call.node.random or call.node.kernel is None or not states or not small:
        return None
    if any(s.data is None for s in states) and call.node.name not in _FILLED:
        return None
    arrays = [np.zeros(s.shape) if s.data is None else np.asarray(s.data) for s in states]
    with np.errstate(all="ignore"):
        results = call.node.kernel(*arrays)
    if any(np.shape(r) != v.shape for r, v in zip(results, values, strict=True)):
        return None  # a shape that depends on content, which was drawn and not given
    how = next((s.how for s in states if s.how.startswith("sampled")), CLOSED)
    made = [
        _known(np.asarray(r).astype(v.dtype) if not v.floating else r, v, how)
        for r, v in zip(results, values, strict=True)
    ]
    return made if how == CLOSED else [replace(s, roots=call.roots) for s in made]


# --- backward ------------------------------------------------------------------------------------


def backward(signal: Signal, cotangents: Mapping[int, Table | float] | None = None) -> Signal:
    """Add the gradient's second moments, from the outputs back to every value and weight.

    Args:
        signal: the forward prediction.
        cotangents: for output values, by index, the gradient that arrives: a table, or the second
            moment of independent zero-mean entries. Without it each floating output gets N(0, 1)
            entries; a scalar output gets 1.

    Returns:
        The prediction with `gradients`; see `Signal.gradient` and `Signal.weight_gradients`.

    Raises:
        ArgumentError: a cotangent for what is no output.
        NotCoveredError: an operation without a backward rule that cannot be sampled.
        DivergentError: a gradient beyond float64.
    """
    graph = signal.graph
    terms: dict[int, list[Term]] = {
        i: [Term(("start", i), table)] for i, table in _starts(signal, cotangents)
    }
    gradients: dict[int, Table] = {}
    recurrences = scans(graph)
    for node in reversed(graph.nodes):
        for index in recurrences.keys() & set(node.outputs) & terms.keys():
            common = carried(recurrences[index], signal.states, gradients)
            if common is not None:
                terms[index].append(Term(("scan", index), common))
        arriving = [_arrived(i, terms.get(i, ()), signal) for i in node.outputs]
        for index, parts in zip(node.outputs, arriving, strict=True):
            if parts:
                gradients[index] = _finite(node, total(parts))
        if not any(arriving) or not node.inputs:
            continue
        if _empty(call := Call(node, graph, signal.states)):
            if _kept(call) and _wanted(graph.values[node.inputs[0]]):
                terms.setdefault(node.inputs[0], []).extend(arriving[0])
            continue
        for index, term in _sent_back(Call(node, graph, signal.states), arriving, gradients):
            if _wanted(graph.values[index]):
                terms.setdefault(index, []).append(term)
    for index, parts in terms.items():
        if index not in gradients:
            gradients[index] = total(parts)
    for index, more in shared(graph, signal.states, gradients).items():
        gradients[index] = _raised(gradients[index], more)
    return Signal(graph, signal.states, gradients)


def _finite(node: Node, table: Table) -> Table:
    """The gradient in what a node makes, if it is within float64."""
    if not np.isfinite(table.pairs).all():
        raise DivergentError(
            f"the gradient in {node.op} in {node.path or 'the model'}",
            expected="E[g^2] within float64",
            got="one that has run away on its way back",
            fix="start from weights that hold the gradient",
        )
    return table


def _arrived(index: int, terms: Sequence[Term], signal: Signal) -> list[Term]:
    """The gradient in a value: parts that go on along its Gaussian, and the rest as one."""
    parts = gathered(terms)
    source = law(signal.states[index])[2]
    onward = [t for t in parts if t.slope is not None and t.source == source]
    rest = [t for t in parts if t not in onward]
    return [*onward, Term(("value", index), total(rest))] if len(rest) > 1 else parts


def _sent_back(
    call: Call, arriving: Sequence[Sequence[Term]], gradients: Mapping[int, Table]
) -> Iterator[tuple[int, Term]]:
    """The parts of the gradient that a node sends to its inputs."""
    node = call.node
    rule = backward_rule(call)
    if rule is None and node.pointwise:
        yield from pointwise_back(call, arriving[0])
    elif rule is passed_on:
        yield from ((node.inputs[0], term) for term in arriving[0])
    else:
        grads = [
            gradients[i] if parts else None for i, parts in zip(node.outputs, arriving, strict=True)
        ]
        found = rule(call, grads) if rule is not None else sampled_back(call, grads)
        own = call.index("weight") if node.name in ("linear", "convolution") else None
        for place, (index, part) in enumerate(found):
            if index == own and isinstance(part, Table):
                part = _raised(part, along_own(call, arriving[0], prod(part.shape[1:])))
            yield index, part if isinstance(part, Term) else Term((node.index, place), part)


def _raised(table: Table, extra: float) -> Table:
    """A gradient with so much more in the second moment of each element."""
    pairs = np.array(table.pairs)
    pairs[(0,) * len(table.factors)] += max(extra, -0.9 * table.second_moment)
    return Table(table.dims, table.mean, pairs)


def _wanted(value: Value) -> bool:
    """Whether a value has a gradient: it depends on a parameter or input, and is real."""
    apart = value.kind == "produced" and not (value.varying or value.depends)
    return value.floating and value.kind != "constant" and not apart


def _starts(
    signal: Signal, cotangents: Mapping[int, Table | float] | None
) -> Iterator[tuple[int, Table]]:
    """The gradients at the outputs."""
    graph = signal.graph
    outputs = [i for i in graph.outputs if graph.values[i].floating]
    for index in cotangents or {}:
        if index not in graph.outputs:
            raise ArgumentError(
                "backward(cotangents)",
                expected=f"indices of outputs, {sorted(graph.outputs)}",
                got=str(index),
            )
    for index in outputs if cotangents is None else cotangents:
        shape = graph.values[index].shape
        start = 1.0 if cotangents is None else cotangents[index]
        if isinstance(start, Table):
            yield index, start
        elif prod(shape) == 1:
            yield index, Table.constant(shape, float(np.sqrt(start)))
        else:
            yield index, Table.iid(shape, 0.0, float(start))
