"""The rules of the theory applied weight by weight, each with the activation in front of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fanin import draw
from fanin.errors import ArgumentError, FaninError
from fanin.planning.choice import Choice, normal
from fanin.planning.plan import Stack, Stretch
from fanin.planning.roles import Scene, Weight
from fanin.signal.fuse import Function
from fanin.theory import rules
from fanin.theory.activation import Activation, activation
from fanin.theory.rules import LayerRule

LITERAL = ("kumar", "lecun", "xavier", "he", "backward")
"""Rules that say a number for a layer by itself, whatever the rest of the network does."""
POSITIONS = 0.1
"""Variance of a table of positions to that of what it is added to. All examples share it: at the
same size it would take half of the distance of two inputs, a tenth leaves nine tenths, and a small
GPT learns faster from it than from 1 or 1/100 (docs/theory.md, "Positions")."""


class Activations:
    """Fused functions as activations, each made and solved once however often it occurs."""

    def __init__(self) -> None:
        self._made: dict[object, Activation] = {}
        self._solved: dict[object, LayerRule] = {}

    def activation(self, function: Function) -> Activation:
        """The activation that a fused subgraph is."""
        key = tuple((n.op, repr(sorted(_constants(n.args)))) for n in function.nodes)
        if key not in self._made:
            self._made[key] = activation(function.name or _Named(function))
        return self._made[key]

    def shown(self, function: Function) -> str:
        """Its name, or its formula where it is not finite everywhere."""
        try:
            return self.activation(function).name
        except ArgumentError:
            return function.text

    def rule(self, name: str, function: Function, **parameters: Any) -> LayerRule:
        """The rule for a fused function."""
        act = self.activation(function)
        key = (name, id(act), tuple(sorted(parameters.items())))
        if key not in self._solved:
            self._solved[key] = rules.applied(name, act, parameters)
        return self._solved[key]


class _Named:
    """A fused function under its formula, for messages."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.__name__ = function.text

    def __call__(self, x: Any) -> Any:
        return self._function(x)


def _constants(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An operation's arguments that are no tensors, as text; of the others their place."""
    return [(k, repr(v) if not repr(v).startswith("%") else "%") for k, v in arguments.items()]


@dataclass(frozen=True)
class Literal:
    """A rule that gives each layer its own number: `kumar`, `lecun`, `xavier`, `he`, `backward`.

    The last projection of a residual branch carries 1/sqrt(branches) besides, unless a norm or a
    scale stands behind it.

    Args:
        rule: its name.
        parameters: of the rule, such as {"slope": 0.2}.
    """

    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs_signal: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """The rule with its parameters."""
        return spelled(self.rule, self.parameters)

    @cached_property
    def _activations(self) -> Activations:
        return Activations()

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Nothing to look at."""
        return ()

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """The rule's variance over this weight's fan."""
        if weight.role == "recurrent":
            return recurrent(weight, 1.0, "unit inputs")
        if weight.role in ("embedding", "position", "logit bias"):
            return table(weight, scene, tied_std(weight, scene, 1.0) if weight.tied else None)
        if not weight.is_matrix:
            return None
        assert weight.source is not None
        function = weight.source.function
        share, why = branch_share(weight)
        fans = weight.fans
        if function is None:
            variance, exactness = self._linear(fans.fan_in, fans.fan_out), "closed form"
            reason = f"reads {described(weight)}, unit second moment"
        else:
            rule = solved(self._activations, weight, self.rule, function, self.parameters)
            std = rule.std(fans.fan_in, fans.fan_out)  # type: ignore[arg-type]
            variance, exactness = std * std, rule.exactness
            reason = f"reads {rule.activation}"
        return Choice(self.rule, reason + why, normal(math.sqrt(variance * share)), exactness)

    def _linear(self, fan_in: float, fan_out: float) -> float:
        """The variance where no activation stands in front."""
        return 2.0 / (fan_in + fan_out) if self.rule == "xavier" else 1.0 / fan_in


def solved(
    activations: Activations,
    weight: Weight,
    name: str,
    function: Function,
    parameters: Mapping[str, Any],
) -> LayerRule:
    """The rule for what a weight reads; its errors name the weight."""
    try:
        return activations.rule(name, function, **parameters)
    except FaninError as error:
        raise type(error)(
            f"plan({weight.path}): {error.where}",
            expected=error.expected,
            got=error.got,
            fix=error.fix,
        ) from error


def branch_share(weight: Weight) -> tuple[float, str]:
    """The depth factor on a branch's last projection, as a share of the second moment; and why."""
    end = weight.end
    if end is None:
        return 1.0, ""
    if end.normed:
        return 1.0, "; ends a branch, a norm sets its scale"
    if end.scaled:
        return 1.0, "; ends a branch, a learned scale stands behind"
    n = weight.branches * end.beside
    return 1.0 / n, f"; ends branch {weight.block + 1} of {weight.branches}: 1/sqrt({n})"


def described(weight: Weight) -> str:
    """What a weight without an activation in front reads, in words."""
    assert weight.source is not None
    words = {
        "input": "the input",
        "weight": "a linear layer",
        "recurrent": "a recurrent layer",
        "norm": "a norm",
        "sum": "the residual stream",
        "product": "a gated product",
        "attention": "an attention's values",
        "table": "an embedding",
        "other": "a mixture",
    }
    return words[weight.source.before]


def recurrent(weight: Weight, second_moment: float, why: str) -> Choice:
    """Gates of variance 1 from the input, an orthogonal matrix for each gate from the state."""
    assert weight.use is not None
    gates = weight.use.gates
    if weight.use.hidden:
        values = draw.Orthogonal(1.0, groups=gates, keep="second_moment")
        return Choice("orthogonal", f"reads its own state, {gates} gates apart", values)
    std = 1.0 / math.sqrt(weight.fans.fan_in * second_moment)
    return Choice("lecun", f"gates from {why}, {gates} apart", normal(std))


def table(weight: Weight, scene: Scene, std: float | None = None) -> Choice:
    """Rows of unit second moment after the factor that the model applies; positions by them."""
    if weight.role == "logit bias":
        return Choice("small", "added to attention logits", normal(0.02), "assumed")
    assert weight.use is not None
    if weight.role == "position":
        added = _others(weight, scene, ("add",)) if weight.use.node.name != "cat" else []
        if added:
            std = math.sqrt(POSITIONS) * (_size(added, scene) or 1.0)
            reason = "a tenth of the variance of what it is added to, alike in all examples"
            return Choice("position", reason, normal(std), "assumed")
        std = _size(_others(weight, scene, ("cat",)), scene) or 1.0
        return Choice("alike", "as large as what it stands beside", normal(std), "assumed")
    if std is not None:
        return Choice("tied head", "also the head, whose scale counts", normal(std), "assumed")
    factor = scene.flow.factor_after(weight.use.output)
    if factor == 1.0 and (std := _size(_others(weight, scene, ("add",)), scene)) is not None:
        # Unit rows would drown a table that is also the head, and small for that.
        return Choice("alike", "as large as what it is added to", normal(std), "assumed")
    reason = "unit rows" if factor == 1.0 else f"unit rows after the factor {factor:.4g}"
    return Choice("unit", reason, normal(1.0 / factor))


def _others(weight: Weight, scene: Scene, joined: Sequence[str]) -> list[int]:
    """The signals that a table is added to, or stands beside."""
    assert weight.use is not None
    others = [weight.use.data] if weight.use.data is not None else []
    if weight.use.kind == "embedding":
        others = scene.flow.joined_to(weight.use.output, joined)
    return [i for i in others if scene.graph.values[i].varying]


def _size(signals: Sequence[int], scene: Scene) -> float | None:
    """Root mean square of the first of these that is known."""
    moments = [m for i in signals if (m := scene.moment(i)) is not None]
    return math.sqrt(max(moments[0], 1e-12)) if moments else None


def tied_std(weight: Weight, scene: Scene, variance: float) -> float:
    """The std of a head that is also a table, for logits of this variance after a norm.

    A stream that keeps the row of its own token, with cosine r, gives that token a logit of
    r (variance d)^(1/2). At most ln C, it adds no more than the other C tokens to the loss:
    C exp(variance / 2) + exp(r ln C).
    """
    assert weight.source is not None
    variance = min(variance, math.log(weight.shape[0]) ** 2 / weight.fans.fan_in)
    function = weight.source.function
    second = 1.0
    if function is not None:
        second = float(Activations().rule("second_moment", function).moments.second_moment)
    return math.sqrt(variance / (weight.fans.fan_in * second))


def recurrent_bias(weight: Weight) -> Choice:
    """Zeros, and 1 for the forget gate of an LSTM."""
    assert weight.use is not None
    if "lstm" not in weight.use.node.name or weight.use.hidden:
        return Choice("zero", "a recurrent bias", draw.Constant(0.0))
    rows = weight.shape[0] // 4
    values = Stack(
        ((rows, draw.Constant(0.0)), (rows, draw.Constant(1.0)), (2 * rows, draw.Constant(0.0)))
    )
    return Choice("forget gate 1", "remembers from the start (Jozefowicz et al. 2015)", values)


def spelled(name: str, parameters: Mapping[str, Any]) -> str:
    """A rule with its parameters as text."""
    inside = ", ".join(f"{k}={v!r}" for k, v in parameters.items())
    return f"{name}({inside})" if inside else name
