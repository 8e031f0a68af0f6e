"""What goes in, and values that are no numbers: the causes that come before all others."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.report.findings import CHECKS, Finding, Severity, rule
from fanin.report.view import LOST, View, listed
from fanin.torch.probing.measurement import Input

SCALE = 10.0
"""Root mean square beyond which an input is not standardised by any reading of the word."""
FEW = 8
"""Below this batch size a variance over samples is known to a factor of two at best."""


@rule(CHECKS, "CHK114", "nonfinite")
def nonfinite(view: View) -> Iterator[Finding]:
    """NaN or infinity: in an input, in a weight, or made at a layer."""
    say = nonfinite.finding
    for given in view.measurement.inputs:
        if given.nonfinite:
            yield say(
                "FAIL",
                given.name,
                "The input holds NaN or infinity.",
                f"input {given.name}: not finite",
                "torch.nan_to_num(inputs)  # or mend the data",
            )
            return
    broken = [w for w in view.weights.values() if w.nonfinite]
    if broken:
        yield say(
            "FAIL",
            broken[0].name,
            "A parameter holds NaN or infinity, as memory does that was never initialised.",
            f"{len(broken)} of {len(view.weights)} parameters: {listed([w.name for w in broken])}",
            "fanin.init_(model, inputs)",
        )
        return
    first = next((row for row in view.layers if row.nonfinite and not row.masked), None)
    if first is not None:
        before = max((view.layers[p].second_moment for p in first.parents), default=0.0)
        yield say(
            "FAIL",
            first.name,
            f"Inputs and weights are finite, and {first.operation} makes NaN or infinity of them.",
            f"first at layer {first.index + 1} of {len(view.layers)} ({first.dtype}), "
            f"which reads a root mean square of {math.sqrt(before):.3g}",
            "fanin.init_(model, inputs)"
            if first.kind in ("linear", "recurrent")
            else f"# guard the argument of {first.operation}, as with an epsilon",
        )
    elif view.measurement.loss is not None and not math.isfinite(view.measurement.loss.value):
        yield say(
            "FAIL",
            "",
            "Every layer is finite, and the loss is not.",
            f"loss {view.measurement.loss.value}",
            "# look at the targets and at the loss itself",
        )


@rule(CHECKS, "CHK113", "input-scale")
def input_scale(view: View) -> Iterator[Finding]:
    """A real input whose scale no layer removes and that rules of initialisation do not expect."""
    for given in view.measurement.inputs:
        if given.second_moment is None or given.nonfinite or not _raw(view):
            continue
        size = math.sqrt(given.second_moment)
        if not (size > SCALE or 0 < size < math.exp(-LOST / 2)):
            continue
        yield input_scale.finding(
            _severity(view, given),
            given.name,
            f"Weights are scaled for inputs of mean square 1; this one lies in "
            f"[{given.low:.4g}, {given.high:.4g}] and no norm layer follows it.",
            f"root mean square {size:.3g}, where 1 is expected",
            _normalise(given),
        )


def _raw(view: View) -> bool:
    """Whether the first weight layer's output meets something else before a norm."""
    first = next((row for row in view.layers if row.kind in ("linear", "recurrent", "norm")), None)
    if first is None or first.kind == "norm":
        return False
    readers = [row for row in view.layers if first.index in row.parents]
    return not any(row.kind == "norm" for row in readers)


def _severity(view: View, given: Input) -> Severity:
    """FAIL where the scale alone saturates the first activation or spoils the start loss."""
    first = next((row for row in view.layers if row.kind == "activation"), None)
    if first is not None and (first.saturated or 0.0) > 0.5:
        return "FAIL"
    loss = view.measurement.loss
    worse = loss is not None and loss.expected is not None and loss.value > 2 * loss.expected + 1
    return "FAIL" if worse else "WARN"


def _normalise(given: Input) -> str:
    if given.low >= 0 and 100 < given.high <= 255:
        return "inputs = inputs / 127.5 - 1  # normalize to [-1, 1]"
    return "inputs = (inputs - inputs.mean(0)) / inputs.std(0)"


@rule(CHECKS, "CHK116", "batch-too-small")
def batch_too_small(view: View) -> Iterator[Finding]:
    """A batch that cannot show whether inputs are told apart."""
    say = batch_too_small.finding
    if view.batch == 1:
        yield say(
            "NOTE",
            "",
            "One sample cannot show whether inputs are told apart.",
            "batch of 1",
            "# pass a batch of 8 or more different samples",
        )
    elif not view.compares:
        yield say(
            "NOTE",
            "",
            "All samples of the batch are the same, so nothing can tell them apart.",
            f"batch of {view.batch}, variance over samples 0",
            "# pass different samples",
        )
    elif view.batch < FEW:
        error = math.sqrt(2 / (view.batch - 1))
        yield say(
            "NOTE",
            "",
            "Few samples: shares of dead units and the distance of inputs are rough.",
            f"batch of {view.batch}: a variance over samples has a relative standard error of "
            f"{error:.0%}",
            "# pass a batch of 8 or more different samples",
        )
