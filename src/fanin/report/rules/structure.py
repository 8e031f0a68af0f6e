"""What can never train, at any scale: closed pairs, equal units, no gradient, idle modules."""

from __future__ import annotations

from collections.abc import Iterator

from fanin.report.advice import parameter
from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.view import View, listed


@rule(CHECKS, "CHK117", "equal-units")
def equal_units(view: View) -> Iterator[Finding]:
    """A matrix whose rows are all the same: its units get the same gradient for ever."""
    found = [
        w
        for w in view.weights.values()
        if w.equal_rows
        and w.trainable
        and any(w.name in row.weights for row in view.layers if row.kind in ("linear", "recurrent"))
    ]
    if found:
        yield equal_units.finding(
            "FAIL",
            found[0].name,
            "All units of the layer start with the same weights, get the same gradient, and stay "
            "the same.",
            f"{found[0].shape[0]} equal rows in {len(found)} weights: "
            f"{listed([w.name for w in found])}",
            "fanin.init_(model, inputs)",
        )


@rule(CHECKS, "CHK112", "zero-pair")
def zero_pair(view: View) -> Iterator[Finding]:
    """Two zero factors in a row: each has a gradient only while the other is not zero."""
    found = view.measurement.never_trains
    if found:
        yield zero_pair.finding(
            "FAIL",
            found[0],
            "Two zero factors follow each other: the gradient of each is multiplied by the other, "
            "so both stay zero for ever.",
            f"{len(found)} zero weights with zero gradient, also after every other zero weight is "
            f"opened: {listed(found)}",
            f"fanin.torch.init.lecun_normal_({parameter(found[0])})  # one of the two",
        )


@rule(CHECKS, "CHK118", "gradient-stops")
def gradient_stops(view: View) -> Iterator[Finding]:
    """Parameters that the outputs were computed from and that get no gradient."""
    used = {w for row in view.trunk for w in row.weights if w in view.weights}
    trainable = [w for w in view.weights.values() if w.trainable]
    if not trainable:
        yield gradient_stops.finding(
            "NOTE",
            "",
            "Every parameter is frozen, so only the signal was judged.",
            f"0 of {len(view.weights)} parameters require a gradient",
        )
        return
    cut = [w for w in trainable if w.name in used and w.gradient is None]
    if not cut:
        return
    weights = [row for row in view.trunk if any(w.name in row.weights for w in cut)]
    yield gradient_stops.finding(
        "FAIL" if 2 * len(cut) > len([w for w in trainable if w.name in used]) else "WARN",
        weights[-1].name,
        "The output depends on these parameters and no gradient reaches them: something after "
        "them is detached, runs without gradients, or is not differentiable.",
        f"{len(cut)} of {len(trainable)} trainable parameters, the last in {weights[-1].name}",
        "# look behind this layer for detach(), no_grad(), argmax, round or .data",
    )


@rule(CHECKS, "CHK115", "never-called")
def never_called(view: View) -> Iterator[Finding]:
    """Modules with parameters that took no part in the forward pass."""
    idle = view.measurement.never_called
    if idle:
        trainable = [
            w for w in view.weights.values() if w.trainable and w.name.rpartition(".")[0] in idle
        ]
        yield never_called.finding(
            "WARN" if trainable else "NOTE",
            idle[0],
            "Modules with parameters are not called by forward: they will not train, and data "
            "parallel training waits for their gradients.",
            f"{len(idle)} modules never called: {listed(idle)}",
            "# call them in forward, remove them, or freeze them",
        )
