"""The loss at the start, against that of a model that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.report.advice import parameter
from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.view import DEVIATIONS, View
from fanin.torch.probing.measurement import Layer, Loss

EXCESS = 1.0
"""Nats above the expected loss: logits of variance 2, where 1/2 nat is that of variance 1."""


@rule(CHECKS, "CHK109", "start-loss")
def start_loss(view: View) -> Iterator[Finding]:
    """A start loss far above that of a uniform guess."""
    loss = view.measurement.loss
    if loss is None or loss.expected is None or not math.isfinite(loss.value):
        return
    slack = DEVIATIONS * loss.standard_error
    if loss.name == "mse":
        limit = worse = 10 * loss.expected + slack
    else:
        limit = loss.expected + EXCESS + slack
        worse = 2 * loss.expected + EXCESS + slack
    if loss.value <= limit:
        return
    head = _head(view)
    where, cause, fix = _blame(view, head, loss)
    yield start_loss.finding(
        "FAIL" if loss.value > worse else "WARN",
        where,
        cause,
        f"loss {loss.value:.4g}, expected {loss.expected:.4g} ({loss.meaning})"
        + (
            ""
            if loss.logit_second_moment is None
            else f"; logits have std {math.sqrt(loss.logit_second_moment):.3g}"
        ),
        fix,
    )


def _head(view: View) -> Layer | None:
    """The last layer with a weight before the output."""
    return next((row for row in reversed(view.trunk) if row.kind == "linear" and row.weights), None)


def _blame(view: View, head: Layer | None, loss: Loss) -> tuple[str, str, str]:
    """Where the scale of the output comes from."""
    gain = None if head is None else view.gain(head)
    if head is None or gain is None:
        return "", "The model starts worse than a guess.", "fanin.init_(model, inputs)"
    weight = view.weights[head.weights[0]]
    fan_in = (gain / weight.std) ** 2 if weight.std else 1.0
    should = 1 / math.sqrt(fan_in)
    tied = any(row.kind == "embedding" and weight.name in row.weights for row in view.trunk)
    if gain > 2:
        what = "tied embedding" if tied else "head"
        return (
            head.name,
            f"The {what} {weight.name} has std {weight.std:.3g}, so that logits sum "
            f"{fan_in:.0f} terms to a gain of {gain:.3g}: use 1/sqrt(fan_in) = {should:.3g}.",
            f"fanin.torch.init.normal_({parameter(weight.name)}, std={should:.3g})",
        )
    reads = max((view.layers[p].second_moment for p in head.parents), default=1.0)
    return (
        head.name,
        f"The head has gain {gain:.3g} and reads values of root mean square "
        f"{math.sqrt(reads):.3g}: the scale was lost before it.",
        "fanin.init_(model, inputs)",
    )
