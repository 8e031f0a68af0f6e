"""`auto`: per stretch the rule that keeps signal, gradient and the distance of inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fanin import draw
from fanin.errors import ArgumentError, FaninError, NotCoveredError
from fanin.planning.centring import can_sum_to_zero, lacks_bias, misses_taps
from fanin.planning.choice import Choice, Draws, centre_stays_inside, drawn_as, normal
from fanin.planning.logits import attended
from fanin.planning.mirrors import Pairs, mirror_pairs, undrawn
from fanin.planning.parts import parts
from fanin.planning.plan import Mirrored, Stretch
from fanin.planning.roles import Scene, Weight
from fanin.planning.ruled import (
    Activations,
    branch_share,
    described,
    recurrent,
    solved,
    spelled,
    table,
    tied_std,
)
from fanin.planning.stretches import (
    functions_between,
    layers,
    listed,
    next_function,
    other_stretches,
    plain_stretch,
    plain_stretches,
    size_of,
)
from fanin.planning.verdict import Verdict, judge
from fanin.signal.fuse import Function
from fanin.theory.activation import Activation
from fanin.theory.rules import LayerRule

HEAD = 1.0
"""Variance of a head's outputs: that of the inputs, and a loss that starts below ln C + 1/2."""
MEAN = 100.0
"""Beyond this E[f]^2/Var f at the point that shaping takes, units are put in mirrored pairs:
between 33, where networks trained better without, and 211, where better with (docs/theory.md)."""
SPREAD = 0.25
"""Beyond this 2L/N, the variance of ln |x|^2 after L layers of N independent inputs, matrices of
shaped stretches are orthogonal: at 0.2 training gains next to nothing by it (docs/theory.md)."""
_CENTRING = ("centred", "shaped", "critical")


@dataclass(frozen=True)
class _Decision:
    """The rule of one plain stretch."""

    rule: str
    parameters: Mapping[str, Any]
    stretch: Stretch
    pairs: Mapping[str, Pairs] = field(default_factory=dict)


@dataclass(frozen=True)
class Auto:
    """Second moments kept from weight to weight, branches scaled by depth, plain stretches judged.

    Args:
        plain: the rule for plain stretches: "auto" to judge, or the name of a rule.
        parameters: of that rule.
        draws: "normal", or "orthogonal": matrices and kernels of orthogonal rows or columns; None
            for orthogonal matrices where a stretch is shaped and deep for its width.
    """

    plain: str = "auto"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    draws: Draws | None = None
    needs_signal: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """The rule with its parameters."""
        drawn = {} if self.draws is None else {"draws": self.draws}
        return spelled(self.plain, {**self.parameters, **drawn})

    @cached_property
    def _activations(self) -> Activations:
        return Activations()

    @cached_property
    def _decisions(self) -> dict[str, _Decision]:
        return {}

    def prepare(self, scene: Scene) -> tuple[Stretch, ...]:
        """Decide plain stretches; describe the others."""
        self._decisions.clear()
        found = [self._plain(scene, members) for members in plain_stretches(scene)]
        for decision in found:
            self._decisions.update(dict.fromkeys(decision.stretch.weights, decision))
        return (*(d.stretch for d in found), *other_stretches(scene))

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """The choice for a weight, from what it reads."""
        if weight.role == "recurrent":
            if weight.use is None or weight.use.data is None:
                return recurrent(weight, 1.0, "the layer below, of unit size at most")
            second = scene.reads(weight).second_moment
            return recurrent(weight, second or 1.0, f"an input of E[x^2] = {second:.4g}")
        if weight.role in ("embedding", "position", "logit bias"):
            return table(weight, scene)
        if weight.tied:
            return table(weight, scene, tied_std(weight, scene, HEAD))
        if not weight.is_matrix:
            return None
        decision = self._decisions.get(weight.path)
        if decision is not None and decision.rule == "mirrored":
            return self._mirrored(weight, scene, decision)
        if decision is not None and decision.rule in _CENTRING:
            choice = self._centring(weight, scene, decision)
            draws, delta = self._draws(weight, decision), self._by_one_tap(weight, scene)
            return drawn_as(draws, weight, choice, delta=delta)
        return drawn_as(self.draws or "normal", weight, self._moment(weight, scene))

    def _draws(self, weight: Weight, decision: _Decision) -> Draws:
        """Shaped layers are nearly linear: what is left is the product of their matrices."""
        if self.draws is not None:
            return self.draws
        if decision.rule != "shaped" or len(weight.shape) != 2:
            return "normal"
        spread = 2 * decision.parameters["depth"] / decision.parameters["width"]
        return "orthogonal" if spread > SPREAD else "normal"

    def _by_one_tap(self, weight: Weight, scene: Scene) -> bool:
        """Whether a kernel behind an activation is drawn at its centre tap alone."""
        behind = weight.source is not None and weight.source.before in ("weight", "other")
        return self.draws == "orthogonal" and behind and centre_stays_inside(weight, scene)

    # --- second moments ------------------------------------------------------------------------

    def _moment(self, weight: Weight, scene: Scene) -> Choice:
        """Var = target / (fan_in E[x^2])."""
        reads = scene.reads(weight)
        second = reads.second_moment if reads.second_moment > 0 else 1.0
        target, why = _target(weight, scene)
        source = weight.source
        assert source is not None
        name = self._activations.shown(source.function) if source.function else described(weight)
        reason = f"reads {name}, E[x^2] = {second:.4g}{why}"
        std = math.sqrt(target / (weight.fans.fan_in * second))
        return Choice("second_moment", reason, normal(std), reads.how)

    # --- plain stretches -----------------------------------------------------------------------

    def _plain(self, scene: Scene, members: list[Weight]) -> _Decision:
        """The rule of one stretch, and why."""
        paths = tuple(w.path for w in members)
        try:
            functions = {
                self._activations.activation(f): f
                for w in members
                for f in functions_between(w, scene)
            }
        except ArgumentError as error:  # not finite everywhere, or no number
            reason = f"no rule can judge it: {error}"
            return _Decision("second_moment", {}, plain_stretch(paths, "second_moment", reason))
        size = size_of(members, scene)
        depth = size["depth"]
        if not functions or not depth:
            return _Decision("second_moment", {}, plain_stretch(paths, "second_moment", "linear"))
        if self.plain not in ("auto", "second_moment"):
            parameters = dict(self.parameters)
            if self.plain in ("shaped", "mirrored"):
                parameters = {**size, **parameters}
            reason = f"as asked, {layers(depth)} of {listed(functions)}"
            alone = undrawn(members, scene) if self.plain == "mirrored" else None
            if alone is not None:
                reason += f"; without pairs, since {alone} is not drawn in them"
                return _Decision("shaped", parameters, plain_stretch(paths, "shaped", reason))
            stretch = plain_stretch(paths, self.plain, reason)
            if self.plain == "mirrored":
                return _Decision(self.plain, parameters, stretch, _asked_pairs(members, scene))
            return _Decision(self.plain, parameters, stretch)
        if self.plain == "second_moment":
            return _Decision("second_moment", {}, plain_stretch(paths, "second_moment", "as asked"))
        return self._pick(scene, members, size, functions)

    def _pick(
        self,
        scene: Scene,
        members: list[Weight],
        size: Mapping[str, float],
        functions: Mapping[Activation, Function],
    ) -> _Decision:
        """The first rule that keeps everything; without biases or with padding what can be had."""
        paths = tuple(w.path for w in members)
        plain = self._judged("second_moment", functions, size)
        shown = f"{layers(size['depth'])} of {listed(functions)}"
        if plain is not None and plain.holds:
            stretch = plain_stretch(paths, "second_moment", f"{shown}: keeps {plain}")
            return _Decision("second_moment", {}, stretch)
        lost = f"second_moment: {plain}" if plain is not None else "second_moment does not apply"
        missing = next((w.path for w in members if lacks_bias(w, scene)), None)
        alone = next((w.path for w in members if misses_taps(w) and not can_sum_to_zero(w)), None)
        # Kernels stay independent: x^2 in 50 of them trains so, and not in pairs (docs/theory.md).
        matrices = all(len(w.shape) == 2 for w in members)
        pairs = (
            mirror_pairs(members, scene) if matrices and self._outweighed(functions, size) else None
        )
        for name in ("mirrored", "shaped", "centred"):
            if (name == "mirrored" and pairs is None) or (name == "shaped" and missing is not None):
                continue
            verdict = self._judged(name, functions, size)
            if verdict is None or not verdict.holds:
                continue
            parameters = {} if name == "centred" else size
            reason = f"{shown}: keeps {verdict}; {lost}"
            if name == "mirrored":
                reason += "; alone the mean would outweigh the signal"
            if any(map(_oscillates, functions)):
                reason += "; it swings often within one unit, which this start does not use: for a"
                reason += " network of coordinates rule 'siren' keeps the frequencies"
            if alone is not None:
                reason += f"; at the border {alone}, of one channel a unit, lets the mean in"
            return _Decision(name, parameters, plain_stretch(paths, name, reason), pairs or {})
        if missing is not None:
            lost += f"; {missing} has no bias to shape with"
        reason = f"{shown}; {lost}; no rule by weights and biases alone does better"
        return _Decision("second_moment", {}, plain_stretch(paths, "second_moment", reason))

    def _judged(
        self, name: str, functions: Mapping[Activation, Function], size: Mapping[str, float]
    ) -> Verdict | None:
        """What a rule does to the stretch: the worst over its activations; None if it fails."""
        parameters = size if name in ("shaped", "mirrored") else {}
        verdicts = []
        for act, function in functions.items():
            try:
                rule = self._activations.rule(name, function, **parameters)
                verdicts.append(judge(rule, act, size["depth"]))
            except FaninError:
                return None
        return min(verdicts, key=lambda v: (v.holds, v.distance))

    def _outweighed(
        self, functions: Mapping[Activation, Function], size: Mapping[str, float]
    ) -> bool:
        """Whether at a point that shaping takes the mean of f is far larger than its deviation."""
        for function in functions.values():
            try:
                found = self._activations.rule("shaped", function, **size).moments
            except FaninError:
                return False
            if float(found.mean) ** 2 > MEAN * float(found.variance):
                return True
        return False

    def _mirrored(self, weight: Weight, scene: Scene, decision: _Decision) -> Choice:
        """Pairs of opposite weights, between them an orthogonal matrix or kernel."""
        source, pairs = weight.source, decision.pairs[weight.path]
        assert source is not None
        after = self._after(weight, scene, decision)
        beta = after.bias if after is not None else 0.0
        if source.function is None:
            reads = scene.reads(weight)
            target = after.first_variance if after is not None else HEAD
            std = math.sqrt(target / (weight.fans.fan_in * (reads.second_moment or 1.0)))
            reason = f"reads {described(weight)}, E[x^2] = {reads.second_moment:.4g}; mirrored"
            return Choice("mirrored", reason, Mirrored(normal(std), pairs), reads.how, beta)
        rule = self._solved(weight, source.function, decision)
        target = after.operating_point.variance if after is not None else HEAD
        variance = target * rule.last_variance  # of a weight, times the number of inputs
        coherence = 1 / (rule.last_variance * float(rule.moments.variance))
        inner: draw.Distribution = normal(math.sqrt(variance / weight.fans.fan_in))
        gain = math.sqrt(variance / 2)  # half of the inputs are a column of their own
        if weight.role != "head" and centre_stays_inside(weight, scene):
            inner = draw.DeltaOrthogonal(gain, keep="second_moment")
        elif weight.role != "head":
            taps = math.prod(weight.shape[2:]) * weight.shape[1] / weight.fans.fan_in
            inner = draw.Orthogonal(gain * math.sqrt(taps), keep="second_moment")
        power = 1 / (2 * rule.last_variance)
        shown = self._activations.shown(source.function)
        reason = f"reads pairs of {shown}, odd part of E[g^2] = {power:.4g}"
        values = Mirrored(inner, pairs, coherence)
        return Choice("mirrored", reason, values, rule.exactness, beta, centre=rule.centre)

    def _centring(self, weight: Weight, scene: Scene, decision: _Decision) -> Choice:
        """b = beta - E[x] sum W, and the variance that gives the next activation its own."""
        source = weight.source
        assert source is not None
        reads, after = scene.reads(weight), self._after(weight, scene, decision)
        beta, noise = (after.bias, math.sqrt(after.bias_variance)) if after else (0.0, 0.0)
        mixed = source.before == "other" and bool(functions_between(weight, scene))
        if mixed:
            return self._mixed(weight, scene, decision, after)
        if source.function is None or source.before != "weight":
            second = reads.second_moment if reads.second_moment > 0 else 1.0
            target = HEAD if weight.role == "head" else after.first_variance if after else 1.0
            std = math.sqrt(target / (weight.fans.fan_in * second))
            reason = f"reads {described(weight)}, E[x^2] = {second:.4g}"
            return Choice(decision.rule, reason, normal(std), reads.how, beta, noise)
        rule = self._solved(weight, source.function, decision)
        shown, centre = self._activations.shown(source.function), rule.centre
        misses = misses_taps(weight) and not self._by_one_tap(weight, scene)
        by_weight = misses or lacks_bias(weight, scene, head=True)
        counts = centre**2 > 1e-12 * float(rule.moments.variance)
        zero_sum = by_weight and counts and can_sum_to_zero(weight)
        spread, how = float(rule.moments.variance), rule.exactness
        if source.pooled:
            centre, spread, how = reads.mean, reads.variance, reads.how
        elif misses:  # what fell on padding is missing, and less so near the border
            spread, how = reads.second_moment - centre * (2 * reads.mean - centre), reads.how
        variance = rule.weight_variance_times_fan_in * float(rule.moments.variance)
        if weight.role == "head":
            variance, beta, noise = HEAD, 0.0, 0.0
        elif after is not None and after.activation != rule.activation:
            variance = after.operating_point.variance
        std = math.sqrt(variance / (weight.fans.fan_in * spread))
        reason = f"reads {shown} - {centre:.4g}, variance {spread:.4g}"
        reason += ", its inputs sum to zero" if zero_sum else ""
        return Choice(decision.rule, reason, normal(std), how, beta, noise, centre, zero_sum)

    def _mixed(
        self, weight: Weight, scene: Scene, decision: _Decision, after: LayerRule | None
    ) -> Choice:
        """The same for what reads several activations side by side, from the signal itself."""
        reads = scene.reads(weight)
        spread = reads.variance if reads.variance > 0 else 1.0
        target = HEAD if weight.role == "head" else after.first_variance if after else 1.0
        misses = misses_taps(weight) and not self._by_one_tap(weight, scene)
        by_weight = misses or lacks_bias(weight, scene, head=True)
        zero_sum = by_weight and can_sum_to_zero(weight)
        beta, noise = (after.bias, math.sqrt(after.bias_variance)) if after else (0.0, 0.0)
        found = parts(weight, scene)
        shown, summed = f"a mixture - {reads.mean:.4g}", "its inputs sum"
        if found is not None:
            spread = found.variance
            shown = "parts less " + ", ".join(f"{m:.4g}" for m in found.means)
            summed = "each part's inputs sum"
        std = math.sqrt(target / (weight.fans.fan_in * spread))
        reason = f"reads {shown}, variance {spread:.4g}"
        reason += f", {summed} to zero" if zero_sum else ""
        choice = Choice(
            decision.rule, reason, normal(std), reads.how, beta, noise, reads.mean, zero_sum
        )
        return choice if found is None else replace(choice, parts=found.sizes, means=found.means)

    def _solved(self, weight: Weight, function: Function, decision: _Decision) -> LayerRule:
        """The stretch's rule for a function that one of its weights reads."""
        return solved(self._activations, weight, decision.rule, function, decision.parameters)

    def _after(self, weight: Weight, scene: Scene, decision: _Decision) -> LayerRule | None:
        """The rule of the activation that reads this weight's output; None behind the last."""
        for path in scene.by_stretch.get(weight.path, ()):
            source = scene.weights[path].source
            if source is not None and source.function is not None:
                return self._solved(weight, source.function, decision)
        function = next_function(weight, scene) if weight.role != "head" else None
        return self._solved(weight, function, decision) if function is not None else None


def _asked_pairs(members: list[Weight], scene: Scene) -> dict[str, Pairs]:
    """The mirrored axes of a stretch; an error where its units cannot be paired."""
    pairs = mirror_pairs(members, scene)
    if pairs is None:
        raise NotCoveredError(
            f"plan({members[0].path})",
            expected="linear layers or convolutions with biases and even numbers of units, each "
            "reading a function of the one in front",
            got="a stretch whose units cannot be put in pairs",
            fix="use 'shaped'",
        )
    return pairs


def _target(weight: Weight, scene: Scene) -> tuple[float, str]:
    """The second moment that a weight's output should have, and why."""
    if weight.role == "head":
        return HEAD, f"; head, outputs of variance {HEAD:g}"
    if (asked := attended(weight, scene)) is not None:
        return asked
    share, why = branch_share(weight)
    if weight.end is None or weight.end.normed or weight.end.scaled:
        return 1.0, why
    stream = scene.moment(weight.end.join.skip)
    if stream is None or stream <= 0:
        return share, why
    return share * stream, why if math.isclose(stream, 1.0, rel_tol=0.05) else (
        f"{why}, on a stream of E[x^2] = {stream:.4g}"
    )


def _oscillates(act: Activation) -> bool:
    """Whether f turns back more than twice within one unit: sin(w0 x) with a large w0."""
    slopes = np.sign(act.derivative(np.linspace(-1.0, 1.0, 1001)))
    return int((slopes[1:] * slopes[:-1] < 0).sum()) > 2
