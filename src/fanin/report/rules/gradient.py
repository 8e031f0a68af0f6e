"""The way back: does the gradient reach the first layers, at the scale of the last?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.report.advice import gain_advice, weights_sentence
from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.rules.signal import _severity
from fanin.report.view import LOST, TRAINABLE, View, log_ratio, rms
from fanin.torch.probing.measurement import Layer


def relative(row: Layer) -> float | None:
    """Squared gradient with respect to a relative change: second moment times gradient sum.

    It does not change when a scale is moved from one layer to the next, so a small embedding in
    front of a norm layer, or a large input, is no alarm.
    """
    return None if row.gradient_sum is None else row.gradient_sum * row.second_moment


def _profile(view: View) -> dict[int, float]:
    """Log of the relative gradient by depth, against the last hidden layer's."""
    profile = {k: v for k, v in view.by_level(relative).items() if math.isfinite(v)}
    if not profile:
        return {}
    reference = profile[max(profile)]
    if reference == 0:
        return {}  # a closed gate or dead units behind: other rules say so
    return {k: log_ratio(v, reference) for k, v in profile.items()}


@rule(CHECKS, "CHK104", "vanishing-gradient")
def vanishing(view: View) -> Iterator[Finding]:
    """The gradient is lost on its way to the first layers."""
    logs = _profile(view)
    if len(logs) < 2:
        return
    first = min(logs)
    severity = _severity(-logs[first], view)
    if severity is None or _gated(view, first):
        return
    limit = -LOST if severity == "FAIL" else -TRAINABLE
    until = first
    for depth in logs:
        if logs[depth] >= limit:
            break
        until = depth
    steps = max(max(logs) - first, 1)
    factor = math.exp(max(logs[first] / steps / 2, -700))
    yield vanishing.finding(
        severity,
        view.name_at(until),
        f"Vanishing gradient: each layer passes {factor:.2g} of the gradient it gets back, so "
        f"the first {until} layers hardly train{weights_sentence(view)}.",
        f"relative gradient {rms(logs[until])} of the last hidden layer's at layer {until} of "
        f"{view.depth}, {rms(logs[first])} at layer {first}",
        gain_advice(view),
    )


@rule(CHECKS, "CHK105", "exploding-gradient")
def exploding(view: View) -> Iterator[Finding]:
    """The gradient grows on its way to the first layers."""
    logs = _profile(view)
    if len(logs) < 2:
        return
    first = min(logs)
    severity = _severity(logs[first], view)
    if severity is None:
        return
    limit = LOST if severity == "FAIL" else TRAINABLE
    until = first
    for depth in logs:
        if logs[depth] <= limit:
            break
        until = depth
    steps = max(max(logs) - first, 1)
    factor = math.exp(min(logs[first] / steps / 2, 700))
    yield exploding.finding(
        severity,
        view.name_at(until),
        f"Exploding gradient: each layer multiplies the gradient by {factor:.3g} on the way back"
        f"{weights_sentence(view)}.",
        f"relative gradient {rms(logs[until])} times the last hidden layer's at layer {until} of "
        f"{view.depth}, {rms(logs[first])} times at layer {first}",
        gain_advice(view),
    )


def _gated(view: View, depth: int) -> bool:
    """Whether the gradient is exactly zero here because a zero weight behind waits to open."""
    exact = all(row.gradient_sum in (0.0, None) for row in view.levels[depth])
    zero = any(w.trainable and w.gradient and not w.second_moment for w in view.weights.values())
    return exact and zero
