"""Stretches of a model: plain ones, and one line for each residual stream, gates, attentions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fanin.planning.plan import Stretch
from fanin.planning.roles import Scene, Weight
from fanin.signal.fuse import Function
from fanin.theory.activation import Activation


def plain_stretches(scene: Scene) -> list[list[Weight]]:
    """Weights joined by functions, sums and concatenations, outside of residual branches."""
    plain = [w for w in scene.weights.values() if w.is_matrix and w.join is None and not w.tied]
    group: dict[str, list[str]] = {w.path: [w.path] for w in plain}
    for weight in plain:
        for before in _before(weight, scene):
            first, second = group.get(before), group[weight.path]
            if first is not None and first is not second:
                first += second
                group.update(dict.fromkeys(second, first))
    order = {path: i for i, path in enumerate(scene.weights)}
    runs = {id(run): sorted(run, key=order.__getitem__) for run in group.values()}
    return [[scene.weights[path] for path in run] for run in runs.values() if len(run) > 1]


def _before(weight: Weight, scene: Scene) -> list[str]:
    """The weights that a weight reads functions of, alone or side by side."""
    source = weight.source
    if source is None or source.before not in ("weight", "other"):
        return []
    if source.before == "weight" and source.weight is not None:
        return [source.weight]
    assert weight.use is not None
    return scene.flow.behind(weight.use.data) if weight.use.data is not None else []


def functions_between(weight: Weight, scene: Scene) -> list[Function]:
    """The activations that stand between a weight and those in front of it."""
    source = weight.source
    if source is not None and source.before == "weight":
        return [source.function] if source.function is not None else []
    members = (scene.weights.get(path) for path in _before(weight, scene))
    found = (next_function(w, scene) for w in members if w is not None)
    return [f for f in found if f is not None]


def next_function(weight: Weight, scene: Scene) -> Function | None:
    """The activation that reads a weight's output as it is."""
    assert weight.use is not None
    return scene.flow.activated.get(weight.use.output)


def other_stretches(scene: Scene) -> list[Stretch]:
    """One line for each residual stream, for what reads gates, and for recurrent layers."""
    found: dict[int, list[Weight]] = {}
    for weight in scene.weights.values():
        if weight.join is not None and weight.is_matrix:
            found.setdefault(weight.join.stream, []).append(weight)
    stretches = []
    for members in found.values():
        n = members[0].branches
        normed = [w for w in members if w.end is not None and w.end.normed]
        scaled = [w for w in members if w.end is not None and w.end.scaled]
        branches = f"{n} branch{'es' if n > 1 else ''}"
        reason = f"{branches}; the last projection of each carries 1/sqrt({n}), once; "
        beside = max((w.end.beside for w in members if w.end is not None), default=1)
        if beside > 1:
            reason += f"where {beside} end side by side they share it; "
        reason += "the skip keeps what shaping would"
        if normed:
            reason = f"{branches}, whose size the norm behind the last projection sets"
        elif scaled:
            reason = f"{branches}, whose size a learned scale sets"
        paths = tuple(w.path for w in members)
        stretches.append(Stretch(paths, "residual", "second_moment", reason))
    gated = tuple(
        w.path
        for w in scene.weights.values()
        if w.is_matrix and w.join is None and w.source is not None and w.source.before == "product"
    )
    if gated:
        reason = "gated: shaping has nothing to say of products"
        stretches.append(Stretch(gated, "gated", "second_moment", reason))
    stretches += _bare_attentions(scene)
    recurrent_paths = tuple(w.path for w in scene.weights.values() if w.role == "recurrent")
    if recurrent_paths:
        reason = "gates from the input at unit variance, orthogonal from the state"
        stretches.append(Stretch(recurrent_paths, "recurrent", "lecun, orthogonal", reason))
    return stretches


def _bare_attentions(scene: Scene) -> list[Stretch]:
    """One line for attentions without a skip around them: what no start can give them."""
    reading = tuple(
        w.path
        for w in scene.weights.values()
        if w.is_matrix
        and w.join is None
        and w.source is not None
        and w.source.before == "attention"
    )
    if not reading:
        return []
    n = len(reading)
    reason = (
        f"{n} attention{'s' if n > 1 else ''} without a skip: outputs count as one of the values"
    )
    reason += "; averages over positions make these alike, which no weights and biases undo"
    return [Stretch(reading, "attention", "second_moment", reason)]


def size_of(members: list[Weight], scene: Scene) -> dict[str, float]:
    """Depth and width of a stretch, as shaping asks for them."""
    reads = [w.use.data for w in members if w.use is not None and w.use.data is not None]
    fans = [w.fans.fan_in for w in members if functions_between(w, scene)] or [math.inf]
    width = len(fans) / sum(1 / n for n in fans) if math.isfinite(fans[0]) else math.inf
    return {"depth": scene.slopes.depth(reads), "width": width}


def plain_stretch(paths: tuple[str, ...], rule: str, reason: str) -> Stretch:
    """A stretch without norms, skips or products, by its weights.

    Example:
        >>> plain_stretch(("0.weight",), "he", "as asked").kind
        'plain'
    """
    return Stretch(paths, "plain", rule, reason)


def layers(depth: float) -> str:
    """A depth in words.

    Example:
        >>> layers(1.0), layers(2.5)
        ('1 nonlinear layer', '2.5 nonlinear layers')
    """
    return f"{depth:.3g} nonlinear layer{'s' if depth > 1 else ''}"


def listed(functions: Mapping[Activation, Function]) -> str:
    """The names of activations."""
    return ", ".join(act.name for act in functions)
