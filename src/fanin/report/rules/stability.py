"""A fixed point that repels: a scale that is right on average and wrong in every draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from fanin.report.advice import needed_gain
from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.rules.loss import start_loss
from fanin.report.view import KURTOSIS, View
from fanin.torch.probing.measurement import Layer

NEUTRAL = 1.005
"""Log-slopes of the variance map up to this are neutral within what a sample of it shows."""
RIGHT = 0.1
"""Relative distance of a gain from the one that keeps the second moment."""


@rule(CHECKS, "CHK108", "unstable-fixed-point")
def unstable(view: View) -> Iterator[Finding]:
    """A stretch without norm or skip whose activation amplifies errors of scale too often."""
    stretch = _longest(view)
    slopes = [row.slope for row in stretch if row.slope is not None and math.isfinite(row.slope)]
    if not slopes:
        return
    if not _gain_is_right(view, stretch):
        return
    typical = math.exp(math.fsum(math.log(max(s, 1e-3)) for s in slopes) / len(slopes))
    if typical <= NEUTRAL:
        return
    log_variance = -math.inf
    for row in stretch:  # what chance added so far is amplified, and a new part comes in
        slope = max(row.slope or 1.0, 1e-3)
        log_variance = _log_add(log_variance + 2 * math.log(slope), math.log(KURTOSIS / row.width))
    if log_variance < 0:
        return
    deviation = math.exp(min(log_variance / 2, 700))
    yield unstable.finding(
        "FAIL" if any(f.severity == "FAIL" for f in start_loss.look(view)) else "WARN",
        stretch[0].name,
        f"Unstable gain: {stretch[0].operation} multiplies any error of the signal's scale by "
        f"{typical:.3g} at each layer, so {len(stretch)} layers without norm or skip drift off by "
        "chance.",
        f"log-slope of the variance map {typical:.3g}; from finite width alone the log second "
        f"moment at the end has a standard deviation of {deviation:.3g}",
        'fanin.init_(model, inputs, rule="shaped")',
    )


def _gain_is_right(view: View, stretch: list[Layer]) -> bool:
    """Whether the weights hold the signal on average; where not, that is the cause."""
    if _biased(view, stretch):
        return False  # a constant bias moves the working point, and with it the slope and the gain
    needed = needed_gain(stretch[0].operation)
    gains = [g for row in stretch for p in row.parents if (g := view.gain(view.layers[p]))]
    if needed is None or not gains:
        return True
    return abs(statistics.median(gains) / needed - 1) < RIGHT


def _biased(view: View, stretch: list[Layer]) -> bool:
    """Whether biases make up a tenth of the pre-activations' second moment, as when centred."""
    shares = []
    for row in stretch:
        for before in (view.layers[p] for p in row.parents):
            biases = [w for n in before.weights if len((w := view.weights[n]).shape) == 1]
            shares += [w.second_moment / max(before.second_moment, 1e-300) for w in biases]
    return bool(shares) and statistics.median(shares) > 0.1


def _longest(view: View) -> list[Layer]:
    """The longest run of activations, each fed by a linear layer that the one before feeds."""
    runs: dict[int, list[Layer]] = {}
    best: list[Layer] = []
    for row in view.trunk:
        if row.kind != "activation" or row.slope is None or len(row.parents) != 1:
            continue
        if view.inside(row):
            continue
        before = view.layers[row.parents[0]]
        if before.kind != "linear":
            continue
        source = before.parents[0] if len(before.parents) == 1 else -1
        runs[row.index] = [*runs.get(source, []), row]
        best = max(best, runs[row.index], key=len)
    return best


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high
