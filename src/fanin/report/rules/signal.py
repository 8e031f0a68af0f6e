"""The way forward: does what tells inputs apart reach the last layer, at a usable scale?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.report.advice import gain_advice, weights_sentence
from fanin.report.findings import CHECKS, Finding, Severity, rule
from fanin.report.view import LOST, TRAINABLE, View, first_persistent, log_ratio, rms


def _severity(distance: float, view: View) -> Severity | None:
    """How bad a log ratio is: beyond chance by what half precision resolves, or by six e-folds."""
    excess = distance - view.fluctuation
    return "FAIL" if excess > LOST else "WARN" if excess > TRAINABLE else None


@rule(CHECKS, "CHK101", "vanishing-signal")
def vanishing(view: View) -> Iterator[Finding]:
    """The part of the signal that differs between inputs is lost before the last layer."""
    profile = view.by_level(view.signal)
    if not profile:
        return
    reference = min(view.input_signal, 1.0)
    logs = {depth: log_ratio(value, reference) for depth, value in profile.items()}
    last = max(logs)
    severity = _severity(-logs[last], view)
    if severity is None or _closed(view):
        return
    limit = -LOST if severity == "FAIL" else -TRAINABLE
    first = first_persistent(logs, lambda v: v < limit) or last
    factor = math.exp(max(logs[first] / first / 2, -700))
    yield vanishing.finding(
        severity,
        view.name_at(first),
        f"Vanishing: what differs between inputs shrinks to {factor:.2g} of itself at each of "
        f"the first {first} layers{weights_sentence(view)}.",
        f"signal between inputs {rms(logs[first])} of the input's at layer {first} of "
        f"{view.depth}, {rms(logs[last])} at layer {last}",
        gain_advice(view),
    )


@rule(CHECKS, "CHK102", "exploding-signal")
def exploding(view: View) -> Iterator[Finding]:
    """The signal grows by orders of magnitude before the last layer."""
    profile = view.by_level(lambda row: row.second_moment)
    if not profile:
        return
    given = [i.second_moment for i in view.measurement.inputs if i.second_moment]
    reference = max(*given, 1.0, 0.0) if given else max(view.input_signal, 1.0)
    logs = {depth: log_ratio(value, reference) for depth, value in profile.items()}
    last = max(logs)
    severity = _severity(logs[last], view)
    if severity is None:
        return
    limit = LOST if severity == "FAIL" else TRAINABLE
    first = first_persistent(logs, lambda v: v > limit) or last
    factor = math.exp(min(logs[last] / last / 2, 700))
    yield exploding.finding(
        severity,
        view.name_at(first),
        f"Exploding: the signal grows by {factor:.3g} at each of {last} layers"
        f"{weights_sentence(view)}.",
        f"root mean square {rms(logs[first])} times the input's at layer {first} of {view.depth}, "
        f"{rms(logs[last])} times at layer {last}",
        gain_advice(view),
    )


@rule(CHECKS, "CHK103", "collapsed-inputs")
def collapsed(view: View) -> Iterator[Finding]:
    """All inputs give nearly the same tensor, whatever its scale."""
    profile = view.by_level(lambda row: row.distance)
    if not profile or not view.compares or any(vanishing.look(view)):
        return
    apart = [
        min(i.spread / i.second_moment, 1.0)
        for i in view.measurement.inputs
        if i.spread and i.second_moment
    ]
    reference = max(apart, default=1.0)
    logs = {depth: log_ratio(value, reference) for depth, value in profile.items()}
    last = max(logs)
    severity = _severity(-logs[last], view)
    if severity is None or _closed(view):
        return
    limit = -LOST if severity == "FAIL" else -TRAINABLE
    first = first_persistent(logs, lambda v: v < limit) or last
    yield collapsed.finding(
        severity,
        view.name_at(first),
        "Collapsed: all inputs point the same way, because what they share (a mean that the "
        f"activation or the biases add) outgrows what differs{weights_sentence(view)}.",
        f"distance of two inputs (1 - correlation) {profile[first]:.2g} at layer {first} of "
        f"{view.depth}, {profile[last]:.2g} at layer {last}; {reference:.2g} in the input",
        gain_advice(view, centred=True),
    )


def _closed(view: View) -> bool:
    """Whether a zero weight closes the trunk on purpose, as a zero-initialised gate does."""
    return any(
        row.zero
        and row.kind == "linear"
        and all(not view.weights[w].second_moment for w in row.weights)
        for row in view.trunk
    )
