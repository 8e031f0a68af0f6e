"""From a graph and a rule to a plan: one sweep in which each weight is decided when it is reached.

The signal goes forward through the graph; before an operation with an undecided weight runs, the
method is asked, knowing what the operation reads. The weight's distribution then enters the sweep,
so that what is decided next sees its effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fanin import draw
from fanin.planning.choice import AS_ASKED, Choice, Method
from fanin.planning.methods import method
from fanin.planning.parts import taken_out
from fanin.planning.plan import LEFT_ALONE, Centre, Mirrored, Plan, Row, Values, effective
from fanin.planning.reading import named
from fanin.planning.roles import Scene, Weight
from fanin.planning.ruled import recurrent_bias
from fanin.signal import propagate as sweep
from fanin.signal.graph import Graph, Node
from fanin.signal.spec import Spec
from fanin.signal.state import Given, State
from fanin.signal.table import Table, add
from fanin.signal.transfer.convolution import one_tap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[Any] | Spec]

_PLACEHOLDER = Given(variance=1.0)
_ZERO = Given(0.0, 0.0, "constant")
_LARGE = 10.0  # second moment of an output that is worth a note
_AVERAGED = 0.1  # see _Solver._averaged
_ZERO_START = "all zero: the model's own zero start"


def solve(
    graph: Graph,
    rule: object = "auto",
    *,
    inputs: Inputs | None = None,
    keep: Mapping[str, str] | None = None,
    constants: Mapping[str, float] | None = None,
    values: Mapping[str, NDArray[Any]] | None = None,
) -> Plan:
    """Decide what each parameter of a traced network gets.

    Args:
        graph: the network, as a tracer recorded it.
        rule: a rule's or recipe's name, a recipe, an ordered mapping of patterns to rules, or what
            `fanin.planning.methods.method` takes.
        inputs: arrays or specs by input name, as for `fanin.signal.propagate`.
        keep: tensors to leave alone, and why.
        constants: tensors that hold one number now, and that number.
        values: what tensors hold now; read for those that are left alone.

    Returns:
        The plan; every parameter and buffer has a row.

    Raises:
        UnknownNameError: no such rule.
        PlanError: a pattern that matches nothing, or is never reached.
        FaninError: a rule that does not cover an activation; the message names the weight.

    Example:
        >>> from fanin.signal.graph import Node, Parameter, Ref, Value
        >>> values = (Value(0, (8, 4), "float32", "input", name="x", varying=True),
        ...           Value(1, (2, 4), "float32", "parameter", name="weight"),
        ...           Value(2, (8, 2), "float32", "produced", producer=0, varying=True))
        >>> node = Node(0, "aten.linear.default", {"input": Ref(0), "weight": Ref(1)}, (2,))
        >>> weight = Parameter("weight", ("weight",), (2, 4), "float32", value=1)
        >>> graph = Graph((node,), values, (weight,), inputs=(0,), outputs=(2,))
        >>> solve(graph, "lecun")["weight"].std
        0.5
    """
    scene = _scene(graph, constants or {})
    chosen = method(rule, [n for w in scene.weights.values() for n in w.names])
    solver = _Solver(scene, chosen, dict(keep or {}), values or {})
    scene.elsewhere.update(solver.undrawn())
    stretches = chosen.prepare(scene)
    if chosen.needs_signal:
        solver.sweep(inputs or {})
    rows = tuple(solver.rows())
    notes = [*graph.notes, *solver.doubts]
    notes += _frozen(graph, rows)
    if chosen.needs_signal:
        notes += [*_large(scene), *_assumptions(graph, inputs or {})]
    return Plan(rows, chosen.name, stretches, tuple(notes))


def _scene(graph: Graph, constants: Mapping[str, float]) -> Scene:
    """The scene; constants that say nothing of a wish are dropped."""
    from fanin.planning.flow import Flow

    scene = Scene(Flow(graph), constants)
    matrices = [w.path for w in scene.weights.values() if w.is_matrix]
    if matrices and all(constants.get(path) == 0.0 for path in matrices):
        return Scene(scene.flow, {})  # memory that was only cleared
    return scene


def _frozen(graph: Graph, rows: Sequence[Row]) -> list[str]:
    """What is drawn though it is not trained: it may have been loaded."""
    fixed = {p.name for p in graph.parameters if p.kind == "parameter" and not p.trainable}
    drawn = [row.path for row in rows if row.path in fixed and row.std]
    if not drawn:
        return []
    what = f"drawn though requires_grad is False: {_some(drawn)}"
    return [f"{what}; rule 'keep' for their names, or only_missing, would leave them as they are"]


def _some(paths: Sequence[str]) -> str:
    """The first path, and how many more there are."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _large(scene: Scene) -> list[str]:
    """Outputs that are much larger than 1 whatever weights are drawn: sums of many products."""
    notes = []
    for place, index in enumerate(scene.graph.outputs):
        value, second = scene.graph.values[index], scene.moment(index)
        last = not scene.graph.consumers(index) and value.floating and value.shape != ()
        if last and second is not None and second > _LARGE:
            by = f"divided by {math.sqrt(second):.2g} it would be 1"
            notes.append(f"output {place}: E[x^2] = {second:.3g} is expected at the start; {by}")
    return notes


def _assumptions(graph: Graph, inputs: Inputs) -> list[str]:
    """What was assumed of inputs that were not given as data."""
    notes = []
    for index in graph.inputs:
        value = graph.values[index]
        given = inputs.get(value.name)
        if isinstance(given, Spec):
            notes.append(f"input {value.name or index}: {given}")
        elif given is None and value.data is None:
            notes.append(f"input {value.name or index}: N(0, 1) assumed")
    return notes


@dataclass
class _Solver:
    """The choices so far."""

    scene: Scene
    method: Method
    keep: dict[str, str]
    values: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        self.choices: dict[str, Choice] = {}
        self.doubts: dict[str, None] = {}

    # --- deciding ------------------------------------------------------------------------------

    def choice(self, path: str) -> Choice:
        """The choice for a parameter, made at the first question."""
        if path not in self.choices:
            self.choices[path] = self._decide(self.scene.weights[path])
        return self.choices[path]

    def _decide(self, weight: Weight) -> Choice:
        """Kept tensors first, then the method, then what every network needs."""
        kept = self._kept(weight)
        if kept is not None:
            return Choice(LEFT_ALONE, kept)
        answer = self.method.choose(weight, self.scene)
        wished = answer is not None and answer.reason == AS_ASKED
        if weight.role == "bias" and not wished:
            following = self._bias(weight)
            if following is not None:
                return following
        if answer is not None:
            if answer.values is not None and weight.path in self._of_fixed_scale:
                answer = _at_fixed_scale(answer)
            asked = answer.rule in ("given", LEFT_ALONE)
            present = None if asked else self._present(weight)
            return answer if present is None else Choice(LEFT_ALONE, present)
        return self._otherwise(weight)

    @cached_property
    def _of_fixed_scale(self) -> frozenset[str]:
        """Weights whose parametrization sets their scale."""
        fixing = ("SpectralNorm", "_SpectralNorm", "_Orthogonal")
        computed = self.scene.graph.parametrizations
        return frozenset(p.name for p in computed if set(p.how) & set(fixing))

    def undrawn(self) -> list[str]:
        """Tensors whose values no method decides alone."""
        return [
            w.path
            for w in self.scene.weights.values()
            if self._kept(w) or (w.is_matrix and self._present(w)) or w.path in self._of_fixed_scale
        ]

    def _kept(self, weight: Weight) -> str | None:
        """Why a tensor is not to be touched, whatever the rule."""
        for name in (weight.path, *weight.names):
            if name in self.keep:
                return self.keep[name]
        for original, computed in self.scene.originals.items():
            trained = self.scene.weights.get(original)  # not a buffer of the parametrization
            if computed == weight.path and trained is not None and original in self.keep:
                return f"{original}: {self.keep[original]}"
        if weight.path in self.scene.originals:
            return f"computes {self.scene.originals[weight.path]}, which is written through it"
        return None

    def _present(self, weight: Weight) -> str | None:
        """Why what the tensor holds now is the model's own wish."""
        parameter = self.scene.graph.parameter(weight.path)
        fixed = parameter is not None and not parameter.trainable
        if weight.role == "position" and fixed and self.values.get(weight.path) is not None:
            return "positions that are not trained: the model's own code for them"
        value = self.scene.constants.get(weight.path)
        if value is None:
            return None
        if weight.is_matrix or weight.role in ("embedding", "position", "logit bias"):
            return _ZERO_START if value == 0.0 else None
        usual = 1.0 if weight.role == "norm scale" else 0.0
        if weight.role in ("norm scale", "norm shift", "bias") and value != usual:
            return f"the model set it to {value:g}"
        return None

    def _bias(self, weight: Weight) -> Choice | None:
        """What the layer's weight asks of its bias; None where it asks nothing special."""
        assert weight.use is not None
        if weight.use.weight is None:
            return None
        parent = self.choice(weight.use.weight)
        if parent.reason == _ZERO_START:
            return Choice(LEFT_ALONE, f"with {weight.use.weight}")
        if parent.plain_bias or parent.values is None:
            return None
        std = parent.bias_std
        values: draw.Distribution = (
            draw.Normal(parent.bias, std) if std else draw.Constant(parent.bias)
        )
        reason = f"with {weight.use.weight}"
        return replace(parent, values=values, reason=reason)

    def _otherwise(self, weight: Weight) -> Choice:
        """What a method leaves open: norms at 1 and 0, biases at 0, the rest untouched."""
        present = self._present(weight)
        if present is not None:
            return Choice(LEFT_ALONE, present)
        match weight.role:
            case "norm scale":
                return Choice("one", "a norm's scale", draw.Constant(1.0))
            case "norm shift":
                return Choice("zero", "a norm's shift", draw.Constant(0.0))
            case "bias":
                assert weight.use is not None
                if weight.use.kind == "bias" and weight.use.gates > 1:
                    return recurrent_bias(weight)
                return Choice("zero", "a bias", draw.Constant(0.0))
            case "gate":
                branch = " on a residual branch" if weight.scaled_branch else ""
                return Choice(LEFT_ALONE, f"a learned scale{branch}: the model's own start")
            case "unused":
                return Choice(LEFT_ALONE, "no operation of this forward pass reads it")
            case "special":
                assert weight.use is not None
                if weight.use.kind in ("matrix", "bias"):
                    return Choice(
                        LEFT_ALONE, "sets the step of a recurrence: the model's own start"
                    )
                return Choice(LEFT_ALONE, f"enters through {weight.use.node.name}, not as a matrix")
            case role:
                return Choice(LEFT_ALONE, f"{self.method.name} says nothing of role {role!r}")

    # --- the sweep -----------------------------------------------------------------------------

    def sweep(self, inputs: Inputs) -> None:
        """Carry the signal forward, deciding each weight when it is first used."""
        graph, states = self.scene.graph, self.scene.states
        uses: dict[int, list[tuple[str, int]]] = {}
        for path, found in self.scene.flow.uses.items():
            for use in found:
                for index in use.node.inputs:
                    if named(graph, index) == path:
                        uses.setdefault(use.node.index, []).append((path, index))
        inside = self.scene.flow.heads.inside
        for node in graph.nodes:
            if node.index in inside:
                continue
            for index in sorted(node.inputs, key=self._asks):
                if index not in states:
                    states[index] = self._leaf(index, inputs)
            for path, index in uses.get(node.index, ()):
                if path in self.scene.weights:
                    states[index] = self._state(path, index)
            attended = [self._attended(i) for i in node.outputs if i in self.scene.flow.attentions]
            made = attended or self._made(node)
            states.update(zip(node.outputs, made, strict=False))
            for index in self.scene.averages.intersection(node.outputs):
                states[index] = self._averaged(states[index], states[node.inputs[0]])

    def _asks(self, index: int) -> bool:
        """Whether a leaf is decided by what the other operands are, such as positions."""
        return self.scene.graph.values[index].kind == "parameter"

    def _made(self, node: Node) -> list[State]:
        """The states of an operation's results; assumed, and noted, where no rule gives them."""
        graph = self.scene.graph
        try:
            return list(sweep.step(graph, node, self._seen(node, self.scene.states)))
        except Exception as error:  # an operation that the transfer rules cannot take
            what = " ".join(str(error).split())[:80]
            self.doubts[f"{node.op} in {node.path or '(model)'}, taken as N(0, 1): {what}"] = None
            made = [graph.values[i] for i in node.outputs]
            tables = [Table.iid(v.shape, 0.0, float(v.floating)) for v in made]
            how = "assumed: N(0, 1)"
            return [State(t, how, v.index) for t, v in zip(tables, made, strict=True)]

    def _attended(self, index: int) -> State:
        """An attention's output as one of its values: averages are not compensated for.

        Near its start an attention averages over many positions, and a plan that made up for it
        would be wrong as soon as training lets it look at few.
        """
        value = self.scene.states[self.scene.flow.attentions[index].value]
        table = Table.iid(self.scene.graph.values[index].shape, value.mean, value.second_moment)
        return State(table, value.how, index, roots=value.roots)

    def _averaged(self, average: State, whole: State) -> State:
        """An average with a share at least of the variance of what it averages.

        The positions of a specification are independent, and their average is next to nothing;
        those of data are alike. A weight that made up for the first would be far too large.
        """
        missing = _AVERAGED * whole.table.variance - average.table.variance
        if missing <= 0:
            return average
        table = add(average.table, Table.iid(average.shape, 0.0, missing))
        return replace(average, table=table, latent=None, function=None)

    def _leaf(self, index: int, inputs: Inputs) -> State:
        """The state of an input, a constant, a buffer, or a parameter before it is decided."""
        graph = self.scene.graph
        value = graph.values[index]
        if value.kind not in ("parameter", "buffer") or value.data is not None:
            return sweep.leaf(graph, value, {}, inputs)
        known = self._held(value.name)
        statement = known if known is not None else _PLACEHOLDER if value.floating else _ZERO
        return sweep.leaf(graph, value, {value.name: statement}, inputs)

    def _held(self, name: str) -> NDArray[Any] | None:
        """What a tensor that is left alone holds, if it is in memory."""
        weight = self.scene.weights.get(name)
        if weight is None or self._kept(weight) is not None:
            return self.values.get(name)
        if weight.is_matrix or not self._decidable(weight):
            return None  # decided where an operation uses it
        return None if self.choice(weight.path).values is not None else self.values.get(name)

    def _decidable(self, weight: Weight) -> bool:
        """Whether all is known that a choice asks for: a bias goes with its weight, that with data.

        A bias may be read before the data is, where an argument stands first or is cast.
        """
        if weight.role != "bias" or weight.use is None or weight.use.weight is None:
            return True
        parent = self.scene.weights[weight.use.weight].use
        return parent is None or parent.data is None or parent.data in self.scene.states

    def _state(self, path: str, index: int) -> State:
        """The state of a parameter as an operation reads it, from its choice."""
        weight, value = self.scene.weights[path], self.scene.graph.values[index]
        choice = self.choice(path)
        constant = self.scene.constants.get(path)
        if choice.values is not None:
            mean, std = effective(choice.values, weight.shape)
            structure = (
                "orthogonal" if isinstance(choice.values, draw.Orthogonal) else "independent"
            )
            given = Given(mean, std * std, structure if std else "constant")
        elif constant is not None:
            given = Given(constant, 0.0, "constant")
        elif (held := self.values.get(path)) is not None:
            return self._read(index, path, held)
        else:
            given = _unknown(weight)
        origin = self.scene.graph.origin(index).index
        table = given.table(value.shape)
        if _of_one_tap(choice.values):
            taps = value.shape[2:]
            second = given.variance * math.prod(taps)
            table = one_tap(value.shape, [n // 2 for n in taps], second)
        return State(table, token=origin, gaussian=True, roots=frozenset({origin}))

    def _read(self, index: int, path: str, held: NDArray[Any]) -> State:
        """The state of a tensor that is left alone as an operation reads it: through its views."""
        graph = self.scene.graph
        node, value = graph.producer(index), graph.values[index]
        if graph.parametrization(index) is not None:
            return sweep.leaf(graph, replace(value, data=held), {}, {})
        if node is None:
            return sweep.leaf(graph, value, {path: held}, {})
        read = {i: self._read(i, path, held) for i in node.inputs}
        return sweep.step(graph, node, read)[node.outputs.index(index)]

    def _seen(self, node: Node, states: dict[int, State]) -> dict[int, State]:
        """The states for one operation: what a centring bias takes out is taken out before."""
        path = self.scene.flow.matrices.get(node.outputs[0]) if node.outputs else None
        if path is None or path not in self.choices or not self.choices[path].centre:
            return states
        use = self.scene.weights[path].use
        assert use is not None
        data = next(i for i in node.inputs if self.scene.graph.values[i].varying)
        state = states[data]
        choice = self.choices[path]
        axis = len(state.shape) - (len(self.scene.weights[path].shape) - 1)
        shift = taken_out(state.shape, axis, choice.centre, choice.parts, choice.means)
        centred = State(
            add(state.table, shift), state.how, ("centred", state.token), roots=state.roots
        )
        return {**states, data: centred}

    # --- rows ----------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """A row for every parameter and buffer, parametrized weights before their originals."""
        parameters = {p.name: p for p in self.scene.graph.parameters}
        rows = []
        for weight in self.scene.weights.values():
            if weight.path not in parameters:
                first = next(
                    parameters[o] for o, p in self.scene.originals.items() if p == weight.path
                )
                rows.append(self._row(weight, first.dtype))
            else:
                rows.append(self._row(weight, parameters[weight.path].dtype))
        return rows + [
            Row(p.name, p.shape, "buffer", LEFT_ALONE, self._buffer(p.name), None, p.names[1:],
                "buffer", p.dtype)
            for p in self.scene.graph.parameters
            if p.kind == "buffer"
        ]  # fmt: skip

    def _buffer(self, name: str) -> str:
        """Why a buffer is left alone."""
        if name in self.scene.originals:
            return f"kept by the parametrization of {self.scene.originals[name]}"
        return "a buffer: its module sets it"

    def _row(self, weight: Weight, dtype: str) -> Row:
        """The row of one parameter."""
        choice = self.choice(weight.path)
        fans = weight.use.fans if weight.use is not None else None
        computed = weight.path in self.scene.originals.values()
        return Row(
            path=weight.path,
            shape=weight.shape,
            role=weight.role,
            rule=choice.rule,
            reason=choice.reason,
            values=choice.values,
            names=weight.names[1:],
            kind="parametrized" if computed else "parameter",
            dtype=dtype,
            fan_in=fans.fan_in if fans else None,
            fan_out=fans.fan_out if fans else None,
            counted=fans.counted if fans else "",
            centre=self._centre(weight, choice),
            exactness=choice.exactness if choice.values is not None else "",
            lr=choice.lr,
        )

    def _centre(self, weight: Weight, choice: Choice) -> Centre | None:
        """What a bias takes out, from the weight of its layer; or what that weight takes out."""
        assert weight.use is not None or not choice.centre
        if not choice.centre or choice.zero_sum == (weight.role == "bias"):
            return None
        path = weight.path if choice.zero_sum else weight.use.weight  # type: ignore[union-attr]
        assert path is not None
        fans = self.scene.weights[path].fans
        return Centre(
            path,
            choice.centre,
            fans.axes,
            fans.groups,
            fans.shared_by,
            choice.parts,
            choice.means,
        )


def _at_fixed_scale(answer: Choice) -> Choice:
    """What a weight can be whose largest singular value is held at 1: all of them at 1."""
    if answer.rule == "given":
        return replace(answer, reason=f"{answer.reason}; its parametrization sets the scale")
    reason = "its parametrization holds the largest singular value at 1; here all are"
    return Choice("orthogonal", reason, draw.Orthogonal(1.0))


def _of_one_tap(values: Values | None) -> bool:
    """Whether a kernel is drawn at its centre alone."""
    drawn = values.values if isinstance(values, Mirrored) else values
    return isinstance(drawn, draw.DeltaOrthogonal)


def _unknown(weight: Weight) -> Given:
    """What is assumed of a tensor that is left alone and whose values are not known."""
    if weight.role in ("norm scale", "gate"):
        return Given(1.0, 0.0, "constant")
    if weight.role in ("norm shift", "bias", "position", "logit bias", "special"):
        return _ZERO
    fan = weight.use.fans.fan_in if weight.use is not None and weight.use.fans else 1.0
    return Given(variance=1.0 / max(fan, 1.0))
